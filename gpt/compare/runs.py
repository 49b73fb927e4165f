"""Runs read back from their output directories. Imports no torch."""

import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from gpt.config.load import flatten, read
from gpt.config.values import did_you_mean
from gpt.errors import InputError
from gpt.evaluation.metrics import METRICS, PREFIX
from gpt.rundir import METRICS as METRICS_FILE
from gpt.rundir import RESULT, read_about, read_result, read_sweep
from gpt.tracker.logs import read_metrics

VAL = "val/loss"
TRAIN = "train/loss"
SPEED = "perf/tokens_per_sec"

CURE = "leave that run out, or restore what its run wrote"

Row = dict[str, Any]  # of metrics.jsonl


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Run:
    """Contents of a run's directory: its flattened config, result ({} where there is none), metrics and starts."""

    name: str
    path: Path
    state: str  # done, interrupted, failed, or unfinished: running, killed, or not begun
    config: dict[str, Any]
    result: dict[str, Any]
    rows: list[Row]
    starts: list[dict[str, Any]]  # of about.json

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def tokens(self) -> int:
        return self.rows[-1]["tokens"] if self.rows else 0

    @property
    def val_loss(self) -> float | None:
        """Loss of the last evaluation in nats per token."""
        return self.last(VAL)

    @property
    def best_val_loss(self) -> float | None:
        losses = [row[VAL] for row in self.rows if VAL in row]
        return min(losses, default=None)

    @property
    def is_counted(self) -> bool:
        """True if the run can enter the statistics."""
        return self.state == "done" and self.val_loss is not None

    @property
    def seconds(self) -> float | None:
        return training_seconds(self.rows)[-1] if self.rows else None

    @property
    def tokens_per_sec(self) -> float | None:
        """Median over the rows without the first, which a compiler or cold caches slow down."""
        speeds = [row[SPEED] for row in self.rows]
        return statistics.median(speeds[1:] or speeds) if speeds else None

    def last(self, key: str) -> float | None:
        """Return the last value of a key of metrics.jsonl."""
        for row in reversed(self.rows):
            if key in row:
                return row[key]
        return None

    def metric(self, name: str) -> float | None:
        """Return the last value of a validation metric."""
        return self.last(PREFIX + name)


def metric_names(runs: list[Run]) -> list[str]:
    """Return the names of validation metrics beside the loss: the declared ones, then others that runs have."""
    names = dict.fromkeys(METRICS)  # a set that keeps its order
    for run in runs:
        for row in run.rows:
            for key in row:
                if key.startswith(PREFIX):
                    names[key.removeprefix(PREFIX)] = None
    names.pop("loss")
    return list(names)


def measured_names(runs: list[Run]) -> list[str]:
    """Return the names of validation metrics beside the loss that runs have."""
    names = []
    for name in metric_names(runs):
        if any(run.metric(name) is not None for run in runs):
            names.append(name)
    return names


def training_seconds(rows: list[Row]) -> list[float]:
    """Return the seconds spent in training until each row: the sum of (tokens - tokens before) / tokens per second.

    Derived, because rows have no clock: so it survives resumption, and leaves out evaluation and saving.
    """
    # Rows may be any number of steps apart.
    seconds = []
    elapsed = 0.0
    tokens_before = 0
    for row in rows:
        elapsed += (row["tokens"] - tokens_before) / row[SPEED]
        tokens_before = row["tokens"]
        seconds.append(elapsed)
    return seconds


@dataclass(slots=True)
class Selection:
    """Runs in the directories that a user gives. ``sweep``: the one directory of several runs, or None."""

    runs: list[Run] = field(default_factory=list)
    sweep: Path | None = None
    index: dict[str, Any] = field(default_factory=dict)  # sweep.json of that directory, where it has one
    not_started: list[str] = field(default_factory=list)  # jobs of the sweep without a directory

    @property
    def baseline(self) -> str | None:
        """Name of the arm that the sweep compares with."""
        return self.index.get("baseline")


def find(directories: list[Path]) -> Selection:
    """Read the runs that directories are or hold, each once. Raises InputError."""
    selection = Selection()
    # A run may be given twice: by itself and in its sweep.
    paths: dict[Path, Path] = {}  # as given, by resolved path
    for directory in directories:
        inside, sweep = run_directories(directory)
        for path in inside:
            paths[path.resolve()] = path
        if sweep is not None:
            for name in sweep["jobs"]:
                if not _is_run(directory / name):
                    selection.not_started.append(name)
        if len(directories) == 1 and inside != [directory]:
            selection.sweep = directory
            selection.index = sweep or {}
    # Directories of several sweeps may have equal names.
    names = _unique_names(list(paths))
    for path, name in zip(paths.values(), names, strict=True):
        run = load(path, name)
        selection.runs.append(run)
    if not any(run.rows for run in selection.runs):
        listed = " ".join(map(str, directories))
        raise InputError(
            f"{listed}: no run there has logged a step yet",
            "wait for the first rows of metrics.jsonl, or give other directories",
        )
    return selection


def run_directories(directory: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """Return the runs that a directory is or holds, in the order of its sweep, and its sweep.json.

    Raises InputError where there are none.
    """
    if not directory.is_dir():
        siblings = [path.name for path in directory.parent.glob("*/")]
        hint = did_you_mean(directory.name, siblings)
        raise InputError(
            f"{directory}: no such directory",
            f"give output directories of runs or sweeps{hint}",
        )
    if _is_run(directory):
        return [directory], None

    # A sweep, or another directory of runs.
    sweep = read_sweep(directory)
    inside = [path for path in directory.glob("[!.]*/") if _is_run(path)]
    if not inside:
        is_empty = not any(directory.iterdir())
        problem = "is empty" if is_empty else "holds no run: no config.yaml in it, nor directly below"
        raise InputError(
            f"{directory} {problem}",
            "give output directories of runs or sweeps, such as outputs/sweeps/NAME",
        )
    inside.sort(key=_natural_order)
    if sweep:
        # Directories that are no jobs of the sweep come last.
        jobs = list(sweep["jobs"])
        positions = {name: i for i, name in enumerate(jobs)}
        inside.sort(key=lambda path: positions.get(path.name, len(jobs)))
    return inside, sweep


def _is_run(directory: Path) -> bool:
    return (directory / "config.yaml").is_file()


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts names by the numbers in them: lr-2 before lr-10."""
    key = []
    for i, part in enumerate(re.split(r"(\d+)", path.name)):
        is_number = i % 2 == 1
        key.append((int(part), "") if is_number else (0, part))
    return key


def _unique_names(paths: list[Path]) -> list[str]:
    """Return the names of directories, with as many of their parents as tell them apart."""
    # Whole paths are unique, so the loop ends with unique names.
    deepest = max(len(path.parts) for path in paths)
    for depth in range(1, deepest + 1):
        names = []
        for path in paths:
            last_parts = path.parts[-depth:]
            names.append("/".join(last_parts))
        if len(set(names)) == len(names):
            break
    return names


def load(path: Path, name: str) -> Run:
    """Read a run. Raises InputError, with the path, for files that are damaged or that this version cannot read."""
    config = flatten(read(path / "config.yaml"))
    result = read_result(path) or {}
    for key, value in result.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path / RESULT} cannot be read: {key} is {value}", CURE)
    rows = read_rows(path)
    about = read_about(path) or {"starts": []}
    # The result is that of an earlier end, if the run has gone on.
    state = result.get("status", "unfinished")
    end = result.get("step", math.inf)
    if rows and rows[-1]["step"] > end:
        state = "unfinished"
    return Run(
        name=name,
        path=path,
        state=state,
        config=config,
        result=result,
        rows=rows,
        starts=about["starts"],
    )


def read_rows(path: Path) -> list[Row]:
    """Return the rows of metrics.jsonl, none where the run has not begun. Raises InputError for a damaged file."""
    place = str(path / METRICS_FILE)
    try:
        rows = read_metrics(path)
        for number, row in enumerate(rows, 1):
            place = f"{path / METRICS_FILE}, line {number},"
            _check_row(row)
        return rows
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise InputError(
            f"{place} cannot be read: {error!r:.100}",
            CURE,
        ) from error


def _check_row(row: Row) -> None:
    """Check that a row has what a comparison needs. Raises ValueError, KeyError, TypeError or AttributeError."""
    # What validation measures may be absent; a metric may also be null.
    needed = ["step", "tokens", TRAIN, SPEED]
    if VAL in row:
        needed.append(VAL)
    for key in needed:
        if not isinstance(row[key], (int, float)):
            raise ValueError(f"{key} is no number")
    if row[SPEED] <= 0:
        raise ValueError(f"{SPEED} is not above 0")

    # What is compared is finite: a run that meets another loss ends before it logs it. Other keys may be anything.
    for key, value in row.items():
        if not isinstance(value, (int, float, NoneType)):
            raise ValueError(f"{key} is no number")
        is_compared = key in needed or key.startswith(PREFIX)
        if is_compared and value is not None and not math.isfinite(value):
            raise ValueError(f"{key} is {value}")
