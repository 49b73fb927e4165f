"""The output of a sweep: on a terminal a live table of its jobs, in a pipe a line per event, and a closing table."""

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpt.compare import Comparison, render
from gpt.compare.tables import duration
from gpt.console import plain_console
from gpt.rundir import METRICS
from gpt.sweep.jobs import Job, State
from gpt.sweep.slots import Slot

REFRESH = 0.5  # seconds
TAIL = 8192  # bytes, in which the last row of metrics.jsonl is
STYLES = {
    State.RUNNING: "cyan",
    State.DONE: "green",
    State.KEPT: "green dim",
    State.FAILED: "red",
    State.INTERRUPTED: "yellow",
}


class Board:
    """Shows the jobs of a sweep while it runs. Use in a ``with``."""

    def __init__(self, title: str, jobs: list[Job], slots: list[Slot], sweep_dir: Path):
        self.title = title
        self.jobs = jobs
        self.slots = slots
        self.dir = sweep_dir
        self.console = plain_console()
        self.live: Live | None = None
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.refreshed = 0.0  # by time.monotonic()

    def __enter__(self) -> "Board":
        n_kept = sum(job.state == State.KEPT for job in self.jobs)
        at_once = f", {len(self.slots)} at a time" if len(self.slots) > 1 else ""
        self.console.print(
            f"{self.title}: {len(self.jobs)} jobs, {n_kept} finished before{at_once} -> {self.dir}", soft_wrap=True
        )
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error) -> None:
        if self.live:
            self.live.stop()

    def report(self, job: Job) -> None:
        """Print that a job has started or ended. On a terminal the table shows it, and only failures are printed."""
        if self.live and job.state != State.FAILED:
            return
        n_over = sum(other.state not in (State.WAITING, State.RUNNING) for other in self.jobs)
        words = [f"[{n_over}/{len(self.jobs)}]", f"{job.state:<11}", job.name]
        if job.is_finished:
            words.append(_val_loss(job))
        if job.state == State.DONE:
            words.append(duration(job.seconds))
        self.console.print("  ".join(words))

        # The reason, and where to read more.
        if job.state == State.FAILED:
            self.console.print(f"  {job.note}\n  see {job.handle.log if job.handle else job.run_dir}")
        elif job.note:
            self.console.print(f"  {job.note}")

    def refresh(self) -> None:
        """Draw the live table again, if it is time."""
        if self.live and time.monotonic() - self.refreshed > REFRESH:
            self.refreshed = time.monotonic()
            self.live.update(self.progress(), refresh=True)

    def progress(self) -> Table:
        """Return the table of the jobs that fit the terminal: those that run, and around them."""
        table = Table(box=None, pad_edge=False, caption=self._caption(), caption_justify="left")
        _add_columns(table, "job", "state", "step>", "loss>", "left>")

        # A third of the rows stand above the first job that is not over.
        n_rows = max(5, self.console.height - 6)
        current = 0
        for number, job in enumerate(self.jobs):
            if job.state in (State.RUNNING, State.WAITING):
                current = number
                break
        first = max(0, min(current - n_rows // 3, len(self.jobs) - n_rows))
        for job in self.jobs[first : first + n_rows]:
            table.add_row(job.name, _styled(job.state), *_figures(job))

        n_hidden = len(self.jobs) - min(n_rows, len(self.jobs))
        if n_hidden:
            table.add_row(f"and {n_hidden} more", "", "", "", "")
        return table

    def _caption(self) -> str:
        """Return the number of jobs in each state, and an estimate of the time left."""
        states = Counter(job.state for job in self.jobs)
        text = ", ".join(f"{number} {state}" for state, number in states.items())

        # The rest take as long as those that have run; those that run now are half done, on average.
        seconds = [job.seconds for job in self.jobs if job.state == State.DONE]
        n_left = states[State.WAITING] + states[State.RUNNING] / 2
        if seconds and n_left:
            mean = sum(seconds) / len(seconds)
            text += f"; about {duration(n_left * mean / len(self.slots))} left"
        return text

    def conclude(self, comparison: Comparison | None) -> None:
        """Print the closing table of all jobs, and their comparison."""
        table = Table(box=None, pad_edge=False)
        _add_columns(table, "job", "state", "val loss>", "best>", "tokens>", "")
        for job in self.jobs:
            table.add_row(
                job.name,
                _styled(job.state),
                _formatted(job.result.get("val_loss"), ".4f"),
                _formatted(job.result.get("best_val_loss"), ".4f"),
                _formatted(job.result.get("tokens"), ","),
                job.note.splitlines()[0] if job.note else "",
            )
        self.console.print()
        self.console.print(table)
        if comparison is not None:
            self.console.print()
            self.console.print(render(comparison, with_runs=False))
            self.console.print(f"\npage  {comparison.files['page']}\nplot  {comparison.files['plot']}")


def _add_columns(table: Table, *names: str) -> None:
    """Add columns that are not wrapped. Names that end in ``>`` are of numbers, which are aligned on the right."""
    for name in names:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", no_wrap=True)


def _styled(state: State) -> Text:
    """Return a state in its color."""
    return Text(state, STYLES.get(state, ""))


def _formatted(value: float | None, style: str) -> str:
    """Return a number as text; empty where there is none."""
    return "" if value is None else format(value, style)


def _val_loss(job: Job) -> str:
    """Return the validation loss of a finished job as text."""
    loss = job.result.get("val_loss")
    return "" if loss is None else f"val {loss:.4f}"


def _figures(job: Job) -> tuple[str, str, str]:
    """Return the step, the loss and the time left of a job, as text."""
    if job.is_finished:
        return str(job.result.get("step", "")), _val_loss(job), ""
    row = _last_row(job.run_dir) if job.state == State.RUNNING else None
    if row is None:
        return "", "", ""
    step = f"{row['step']:,}/{job.config.total_steps:,}"
    loss = f"{row['train/loss']:.4f}"
    return step, loss, duration(_seconds_left(job, row))


def _last_row(run_dir: Path) -> dict[str, Any] | None:
    """Return the last complete row of metrics.jsonl; None while there is none."""
    try:
        with open(run_dir / METRICS, "rb") as file:
            n_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, n_bytes - TAIL))
            *complete, _ = file.read().split(b"\n")
        return json.loads(complete[-1]) if complete else None
    except (OSError, ValueError):
        return None


def _seconds_left(job: Job, row: dict[str, Any]) -> float:
    """Return the time until a run ends, at the speed of its last row."""
    return (job.config.total_tokens - row["tokens"]) / row["perf/tokens_per_sec"]
