"""Runs found below a directory and read from their small files, in milliseconds each. Imports no torch."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt.checkpoint.files import latest_checkpoint
from gpt.config.load import read_values
from gpt.errors import InputError
from gpt.files import locked
from gpt.rundir import ABOUT, INDEX, METRICS, NOT_FINITE, RESULT, read_about, read_result, read_sweep

CONFIG = "config.yaml"
BESIDE_CONFIG = (".hydra", ABOUT, METRICS, RESULT, "checkpoints")  # one of them makes a config that of a run
RUNNING = "running"
UNFINISHED = "unfinished"  # killed, or not begun
STATES = ["done", "interrupted", "failed", RUNNING, UNFINISHED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A run as the list shows it. ``config`` holds the saved values by dotted key."""

    path: Path
    state: str  # one of STATES
    config: dict[str, Any]
    parameters: int | None
    tokens: int | None
    loss: float | None  # of the last evaluation, in nats per token
    when: float  # seconds since 1970, of its end, or of its last sign of life
    commit: str | None  # of the code that ran last; with a plus, if it was changed since


@dataclass(slots=True)
class Listing:
    """Runs and sweeps below some directories, and what could not be read."""

    runs: list[Entry] = field(default_factory=list)
    sweeps: dict[Path, list[Entry]] = field(default_factory=dict)  # the jobs that have begun
    jobs: dict[Path, int] = field(default_factory=dict)  # the number of all jobs of a sweep
    skipped: list[InputError] = field(default_factory=list)


def list_runs(directories: list[Path]) -> Listing:
    """Read all runs and sweeps below directories. What is damaged is skipped."""
    listing = Listing()
    for directory in directories:
        for path in find(directory):
            try:
                _add(path, listing)
            except InputError as error:
                listing.skipped.append(error)

    # A sweep has the runs that are directly below it.
    for entry in listing.runs:
        jobs = listing.sweeps.get(entry.path.parent)
        if jobs is not None:
            jobs.append(entry)
    return listing


def _add(path: Path, listing: Listing) -> None:
    """Add the run or the sweep of a directory. Raises InputError."""
    if (path / CONFIG).exists():
        listing.runs.append(read_entry(path))
    else:
        listing.jobs[path] = len(read_sweep(path)["jobs"])
        listing.sweeps[path] = []


def find(directory: Path) -> Iterator[Path]:
    """Yield the directories of runs and of sweeps at or below a directory, in the order of their names."""
    for root, names, files in os.walk(directory):
        # A config alone may be of anything. The directories inside a run hold no others.
        inside = {*files, *names}
        is_run = CONFIG in inside and not inside.isdisjoint(BESIDE_CONFIG)
        names[:] = [] if is_run else sorted(name for name in names if not name.startswith("."))
        if is_run or INDEX in files:
            yield Path(root)


def newest_unfinished(directory: Path, or_done: bool) -> Path | None:
    """Return the run below a directory that was last at work and can go on, with ``or_done`` also one that is done.

    Runs in use are left out, the jobs of sweeps, which go on with the command of the sweep, and runs that could only
    fail again. Raises InputError for a result that cannot be read.
    """
    runs = []
    for path in find(directory):
        if (path / CONFIG).is_file() and not _is_job(path):
            runs.append(path)
    runs.sort(key=last_change, reverse=True)
    for path in runs:
        result = read_result(path) or {}
        is_done = result.get("status") == "done"
        # Without a checkpoint to change something at, the same numbers come again.
        is_hopeless = result.get("cause") == NOT_FINITE and latest_checkpoint(path) is None
        if (or_done or not is_done) and not is_hopeless and not is_in_use(path):
            return path
    return None


def _is_job(path: Path) -> bool:
    """Return whether a run is a job of a sweep, or was one until another replaced it."""
    return (path.parent / INDEX).exists() or (path.parent.parent / INDEX).exists()


def read_entry(path: Path) -> Entry:
    """Read a run. Raises InputError, with the path, for files that are damaged or that this version cannot read."""
    config = _flat(read_values(path / CONFIG))
    result = read_result(path)
    about = read_about(path) or {"starts": [{}]}
    if result is not None:
        state = result["status"]
    else:
        state = RUNNING if is_in_use(path) else UNFINISHED
        result = {}
    return Entry(
        path=path,
        state=state,
        config=config,
        parameters=about.get("parameters"),
        tokens=result.get("tokens"),
        loss=result.get("val_loss"),
        when=last_change(path),
        commit=_commit(about["starts"][-1]),
    )


def is_in_use(run_dir: Path) -> bool:
    """Return whether a command or a training has locked a run."""
    try:
        for path in (run_dir, run_dir / METRICS):
            if path.exists():
                with locked(path):
                    pass
    except InputError:
        return True
    return False


def last_change(run_dir: Path) -> float:
    """Return the time at which a run ended, or last wrote its logs, or was made."""
    for name in (RESULT, METRICS, CONFIG):
        path = run_dir / name
        if path.exists():
            return path.stat().st_mtime
    return 0.0


def _commit(start: dict[str, Any]) -> str | None:
    """Return the commit of a start of a run, with a plus where the code was changed since."""
    code = start.get("git") or {}
    commit = code.get("commit")
    if commit is None:
        return None
    return commit[:8] + ("+" if code.get("changed") else "")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{key}.")
        else:
            flat[key] = value
    return flat
