"""A job of a sweep: one run in a directory of its own, whose files tell its state."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from gpt.cli.run_checks import CheckedRun
from gpt.config.load import changed_keys, flatten, read
from gpt.config.schema import Config
from gpt.errors import InputError
from gpt.rundir import METRICS, check_layout, lock_run_dir, read_result
from gpt.sweep.slots import Process, Slot

if TYPE_CHECKING:
    from gpt.cluster.slurm import Submitted

PLACES = ("files", "dir", "url")  # keys that say where data lies; for a run that goes on, resume checks what is there
REPLACED = "replaced"  # the directory in a sweep's, of runs that sweep.on_change=rerun has replaced


class State(StrEnum):
    """The state of a job, in the words that the user sees."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    KEPT = "kept"  # done by an earlier command
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    LEFT_OUT = "left out"  # this machine cannot run it


@dataclass
class Job:
    """A run of a sweep, and its state.

    ``note`` explains the state to the user. A job that is kept has no config unless it was composed again.
    """

    name: str
    overrides: list[str]
    composed: DictConfig | None
    config: Config | None
    run_dir: Path
    state: State = State.WAITING
    note: str = ""
    replaces_run: bool = False  # its directory holds a run with another config
    handle: "Process | Submitted | None" = None
    slot: Slot | None = None  # None on SLURM
    started: float = 0.0  # by time.monotonic()
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    checked: CheckedRun | None = None  # of a job that is to be submitted

    @property
    def is_finished(self) -> bool:
        """True if its run is complete."""
        return self.state in (State.DONE, State.KEPT)

    @property
    def on_slurm(self) -> bool:
        """True if SLURM runs it."""
        return self.config.cluster.name == "slurm"

    def end(self, state: State, note: str) -> None:
        """Record how the job ended. A job is done only if it has left a result."""
        self.state = state
        self.note = note
        self.seconds = time.monotonic() - self.started
        if state != State.DONE:
            return

        # The process has ended well; whether the run is complete is in its result.
        result = None
        with contextlib.suppress(InputError):
            result = read_result(self.run_dir)
        if is_done(result):
            self.result = result
        else:
            self.state = State.FAILED
            self.note = f"ended without a result; see {self.run_dir}"


def in_state(jobs: list[Job], state: State) -> list[Job]:
    """Return the jobs that are in a state."""
    return [job for job in jobs if job.state == state]


def is_done(result: dict[str, Any] | None) -> bool:
    """Return whether the content of a result.json is that of a complete run."""
    return result is not None and result["status"] == "done"


@contextlib.contextmanager
def naming_job(number: int, n_jobs: int, details: list[str]) -> Iterator[None]:
    """Add the number of a job, and details that identify it, to an InputError that is about this job."""
    try:
        yield
    except InputError as error:
        identity = f" ({' '.join(details)})" if details else ""
        raise type(error)(f"job {number + 1} of {n_jobs}{identity}: {error.problem}", error.cure) from error


def determine_state(job: Job) -> None:
    """Set the state of a job by its directory: no run, a complete run, or one that goes on. Raises InputError."""
    check_layout(job.run_dir)
    saved_config = job.run_dir / "config.yaml"
    if not saved_config.is_file():
        if (job.run_dir / METRICS).exists():
            raise InputError(
                f"{job.run_dir} holds a run without config.yaml",
                "move it away, or take another directory",
            )
        return  # no run yet

    # SLURM may still run what an earlier command has submitted.
    if job.on_slurm:
        from gpt.cluster.slurm import attach

        job.handle = attach(job.config, job.run_dir)

    # A run with another config is another run, and so is one that is done, on other data.
    saved = read(saved_config)
    changed = changed_keys(saved, job.config, any_length=False)
    result = None if changed else read_result(job.run_dir)
    if is_done(result):
        changed = _changed_data(saved, job.config, result)
    if changed:
        _replace_or_refuse(job, changed)
        return

    # The rest continue, unless they run already.
    if is_done(result):
        job.state = State.KEPT
        job.result = result
    elif job.handle is None:
        with lock_run_dir(job.run_dir):  # by no other command
            job.config.resume = str(job.run_dir)


def _changed_data(saved: Config, config: Config, result: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the places of the data that changed since a run was done, if other data lies there. Raises InputError."""
    old_values = flatten(saved.data)
    new_values = flatten(config.data)
    moved = {}
    for name in PLACES:
        old = old_values.get(name)
        new = new_values.get(name)
        if old != new:
            moved[f"data.{name}"] = (old, new)
    if not moved:
        return {}

    # The same text may have moved.
    from data.preparation import prepare
    from gpt.tokens.tokenfile import data_fingerprint

    chars = result["tokenizer"]["chars"] if config.init_from else None
    train, val = prepare(config.data, chars)
    return {} if data_fingerprint(train, val) == result.get("data_fingerprint") else moved


def _replace_or_refuse(job: Job, changed: dict[str, tuple[Any, Any]]) -> None:
    """Let a job replace the run in its directory, where ``sweep.on_change`` allows it. Raises InputError."""
    if job.config.sweep.on_change == "refuse":
        listed = ", ".join(f"{key} {was} -> {now}" for key, (was, now) in changed.items())
        raise InputError(
            f"{job.run_dir} holds a run with another config: {listed}",
            "take another directory (hydra.sweep.dir=DIR), or run it anew with sweep.on_change=rerun",
        )
    job.replaces_run = True
    job.note = REPLACED
    job.handle = None


def set_aside(run_dir: Path, replaced: Path) -> None:
    """Move a run into the directory of replaced runs, under a name that is free."""
    replaced.mkdir(exist_ok=True)
    number = 1
    target = replaced / f"{run_dir.name}-1"
    while target.exists():
        number += 1
        target = replaced / f"{run_dir.name}-{number}"
    run_dir.rename(target)
