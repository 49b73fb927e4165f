"""Runs read back from their output directories, and the arms that they form. Imports no torch."""

import json
import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from gpt.config.checks import did_you_mean
from gpt.config.load import flatten, read
from gpt.errors import InputError
from gpt.rundir import HISTOGRAMS, METRICS, SAMPLES, check_layout, read_about, read_result, read_sweep
from gpt.tracker.mirror import Tail
from gpt.tracker.tracker import read_metrics

AXES = ("tokens", "steps", "time", "FLOPs")  # what losses are drawn against; time in seconds
VAL, TRAIN = "val/loss", "train/loss"
ABSENT = "–"  # in place of a value that an option has no key for

# Keys that say who keeps the run and where, not what it computes; data.seed is left out where it follows the seed.
ADMINISTRATIVE = re.compile(
    r"seed|name|tags|resume|plan|plan_mfu|tracker\..*|checkpoint\..*|sweep\.(?!arm$).*"
    r"|data\.(dir|cache_dir|files|processes|references)|trainer\.log_every"
)

Curve = dict[str, list[float]]  # AXES and "loss"; an axis that is not known is empty


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Run:
    """What a run has left: its flattened config, its result ({} where there is none) and its metrics."""

    name: str
    path: Path
    state: str  # done, interrupted, failed, or unfinished: running, killed, or not begun
    config: dict[str, Any]
    result: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def tokens(self) -> int:
        return self.rows[-1]["tokens"] if self.rows else 0

    @property
    def val_loss(self) -> float | None:
        """The last evaluation's, in nats per token."""
        return self.last(VAL)

    @property
    def best_val_loss(self) -> float | None:
        return min((row[VAL] for row in self.rows if VAL in row), default=None)

    @property
    def is_counted(self) -> bool:
        """Whether it can enter the statistics."""
        return self.state == "done" and self.val_loss is not None

    @property
    def seconds(self) -> float | None:
        """See :func:`training_seconds`."""
        return training_seconds(self.rows)[-1] if self.rows else None

    @property
    def tokens_per_sec(self) -> float | None:
        """Median over the rows without the first, which a compiler or cold caches slow down."""
        speeds = [row["perf/tokens_per_sec"] for row in self.rows]
        return statistics.median(speeds[1:] or speeds) if speeds else None

    def last(self, key: str) -> float | None:
        """The last value of a metric."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)


@dataclass(slots=True)
class Arm:
    """Runs that differ in nothing but the seed."""

    label: str
    values: dict[str, str]  # of the keys that differ between arms
    runs: list[Run] = field(default_factory=list)

    @property
    def counted(self) -> dict[int, Run]:
        """The runs that enter the statistics, in the order of their seeds: of several with one seed the first."""
        first = {run.seed: run for run in reversed(self.runs) if run.is_counted}
        return {seed: first[seed] for seed in sorted(first)}

    @property
    def repeated(self) -> list[Run]:
        """Counted runs whose seed the arm has already."""
        counted = self.counted
        return [run for run in self.runs if run.is_counted and counted[run.seed] is not run]


@dataclass(slots=True)
class Found:
    """What the given directories hold. ``sweep``: the one directory of several runs that was given, or None."""

    runs: list[Run]
    sweep: Path | None
    baseline: str | None  # as its sweep.json says
    not_started: list[str]  # jobs of the sweep without a directory


def training_seconds(rows: list[dict[str, Any]]) -> list[float]:
    """Seconds spent in training until each row: the sum of (tokens - tokens before) / tokens per second.

    Derived, because rows have no clock: so it survives resumption, and leaves out evaluation and saving.
    """
    elapsed, before, seconds = 0.0, 0, []
    for row in rows:
        elapsed += (row["tokens"] - before) / row["perf/tokens_per_sec"]
        before = row["tokens"]
        seconds.append(elapsed)
    return seconds


def curve(run: Run, key: str, most: int | None = None) -> Curve:
    """A loss against every axis.

    With more than ``most`` points, each is the mean of as many consecutive ones as make it fit, placed at the last.
    """
    flops = run.result.get("flops_per_token")
    points = [
        (row["tokens"], row["step"], seconds, row["tokens"] * (flops or 0), row[key])
        for row, seconds in zip(run.rows, training_seconds(run.rows), strict=True)
        if key in row
    ]
    size = -(-len(points) // most) if most else 1
    blocks = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    made: Curve = {axis: [block[-1][i] for block in blocks] for i, axis in enumerate(AXES)}
    made["loss"] = [statistics.fmean(point[-1] for point in block) for block in blocks]
    return made if flops else made | {"FLOPs": []}


def mean_curve(curves: list[Curve]) -> Curve | None:
    """The mean of curves that have the same points, or None where they have not."""
    if not curves or not curves[0]["tokens"] or any(c["tokens"] != curves[0]["tokens"] for c in curves):
        return None
    return {
        key: [statistics.fmean(values) for values in zip(*(c[key] for c in curves), strict=False)] for key in curves[0]
    }


def find(directories: list[Path]) -> Found:
    """Read the runs that these directories are or hold, each once. Raises InputError."""
    paths, found = {}, Found([], None, None, [])
    for directory in directories:
        inside, sweep = run_directories(directory)
        paths |= {path.resolve(): path for path in inside}
        if sweep is not None:
            found.not_started += [name for name in sweep["jobs"] if not (directory / name / "config.yaml").is_file()]
        if len(directories) == 1 and inside != [directory]:
            found.sweep, found.baseline = directory, sweep and sweep.get("baseline")
    found.runs = [load(path, name) for path, name in zip(paths.values(), unique_names(list(paths)), strict=True)]
    if not any(run.rows for run in found.runs):
        raise InputError(
            f"{' '.join(map(str, directories))}: no run there has logged a step yet",
            "wait for the first rows of metrics.jsonl, or give other directories",
        )
    return found


def run_directories(directory: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """The runs that a directory is or holds, in the order of its sweep, and what its sweep.json says.

    Raises InputError where there are none.
    """
    if not directory.is_dir():
        near = [path.name for path in directory.parent.glob("*/")]
        raise InputError(
            f"{directory}: no such directory",
            f"give output directories of runs or sweeps{did_you_mean(directory.name, near)}",
        )
    if (directory / "config.yaml").is_file():
        return [directory], None
    sweep = read_sweep(directory)
    inside = sorted((p for p in directory.glob("[!.]*/") if (p / "config.yaml").is_file()), key=by_number)
    if not inside:
        empty = not any(directory.iterdir())
        raise InputError(
            f"{directory} {'is empty' if empty else 'holds no run: no config.yaml in it, nor directly below'}",
            "give output directories of runs or sweeps, such as outputs/sweeps/NAME",
        )
    order = {name: i for i, name in enumerate(sweep["jobs"] if sweep else [])}
    return sorted(inside, key=lambda p: order.get(p.name, len(order))), sweep


def by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them: lr-2 before lr-10."""
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(re.split(r"(\d+)", path.name))]


def unique_names(paths: list[Path]) -> list[str]:
    """The names of directories, with as many of their parents as tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def load(path: Path, name: str) -> Run:
    """Read a run. Raises InputError, with the path, for files that are damaged or that this version cannot read."""
    config = flatten(read(path / "config.yaml"))
    result, rows = read_result(path) or {}, read_rows(path)
    state = result.get("status", "unfinished")
    if rows and rows[-1]["step"] > result.get("step", math.inf):
        state = "unfinished"  # continued since
    return Run(name=name, path=path, state=state, config=config, result=result, rows=rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, none where it has not begun. Raises InputError for other files of that name."""
    try:
        rows = read_metrics(path)
        for row in rows:
            needed = [row["step"], row["tokens"], row[TRAIN], row["perf/tokens_per_sec"], row.get(VAL, 0)]
            if not all(math.isfinite(value) for value in needed) or row["perf/tokens_per_sec"] <= 0:
                raise ValueError("a row that is not finite")
            if not all(isinstance(value, (int, float, NoneType)) for value in row.values()):
                raise ValueError("a value that is no number")
        return rows
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise InputError(
            f"{path / METRICS} cannot be read: {error!r:.100}", "leave that run out, or restore what its run wrote"
        ) from error


def check_logs(run_dir: Path) -> None:
    """All that a mirror copies of a run can be read. Raises InputError."""
    check_layout(run_dir)
    load(run_dir, run_dir.name)
    read_about(run_dir)
    Tail(run_dir / HISTOGRAMS).histograms()
    Tail(run_dir / SAMPLES).text()


def as_text(value: Any) -> str:
    """A value of the config as one would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")


def differing(runs: list[Run]) -> list[dict[str, str]]:
    """Of each run the values of the keys that differ between runs and are not administrative, seed aside."""
    flat = [{k: as_text(v) for k, v in run.config.items() if not ADMINISTRATIVE.fullmatch(k)} for run in runs]
    order_seeds = [values.pop("data.seed") for values in flat]
    alike: dict[tuple, list[int]] = {}
    for i, values in enumerate(flat):
        alike.setdefault(tuple(values.items()), []).append(i)
    for group in alike.values():
        follows = all(order_seeds[i] == str(runs[i].seed) for i in group)
        for i in group:
            flat[i]["data.seed"] = "${seed}" if follows else order_seeds[i]
    keys = {key: None for values in flat for key in values}
    differ = [key for key in keys if len({values.get(key, ABSENT) for values in flat}) > 1]
    return [{key: values.get(key, ABSENT) for key in differ} for values in flat]


def find_arms(runs: list[Run]) -> list[Arm]:
    """Runs that agree in all keys but the seed, together, in the order of their first runs."""
    groups: dict[tuple[str, ...], Arm] = {}
    for run, values in zip(runs, differing(runs), strict=True):
        groups.setdefault(tuple(values.values()), Arm(run.config["name"], values)).runs.append(run)
    arms = list(groups.values())
    if len(arms) > 1:
        for arm, label in zip(arms, labels([arm.values for arm in arms]), strict=True):
            arm.label = label
    return arms


def labels(arms: list[dict[str, str]]) -> list[str]:
    """Short and unique names of arms: of the keys that differ those, in the order of :func:`rank`, that split more."""
    taken: list[str] = []
    for key in sorted(arms[0], key=rank):  # stable: else in the order of the config
        with_it, without = (len({tuple(arm[k] for k in keys) for arm in arms}) for keys in ([*taken, key], taken))
        if with_it > without:
            taken.append(key)
    lasts = [key.rpartition(".")[2] for key in taken]
    shown = {
        key: key.removesuffix(".name") if last == "name" else last if lasts.count(last) == 1 else key
        for key, last in zip(taken, lasts, strict=True)
    }
    named = [[arm[k] if k == "sweep.arm" else f"{shown[k]}={arm[k]}" for k in taken] for arm in arms]
    return [" ".join(part for part in parts if part != "null") or "no arm" for parts in named]


def rank(key: str) -> int:
    """Where a key stands when arms are named: the sweep's own names, the options of groups, single keys."""
    return 0 if key == "sweep.arm" else 1 if re.fullmatch(r"\w+\.name", key) else 2
