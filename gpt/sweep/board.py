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
from gpt.compare.tables import FittedTable, Grid, duration
from gpt.console import plain_console
from gpt.rundir import METRICS
from gpt.sweep.jobs import Job, State, in_state
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
        self.is_comparing = False

    def __enter__(self) -> "Board":
        n_jobs = len(self.jobs)
        n_kept = len(in_state(self.jobs, State.KEPT))
        n_slots = len(self.slots)
        at_once = f", {n_slots} at a time" if n_slots > 1 else ""
        self.console.print(
            f"{self.title}: {n_jobs} jobs, {n_kept} finished before{at_once} -> {self.dir}",
            soft_wrap=True,
        )

        # From here on, lines are printed above the table.
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

        # How far the sweep is, the job, and its figures.
        n_jobs = len(self.jobs)
        waiting = in_state(self.jobs, State.WAITING)
        running = in_state(self.jobs, State.RUNNING)
        n_over = n_jobs - len(waiting) - len(running)
        words = [
            f"[{n_over}/{n_jobs}]",
            f"{job.state:<11}",
            job.name,
        ]
        if job.is_finished:
            words.append(_val_loss(job))
        if job.state == State.DONE:
            words.append(duration(job.seconds))
        self.console.print("  ".join(words))

        # The reason, and where to read more.
        if job.state == State.FAILED:
            log = job.handle.log if job.handle else job.run_dir
            self.console.print(f"  {job.note}\n  see {log}")
        elif job.note:
            self.console.print(f"  {job.note}")

    def refresh(self) -> None:
        """Draw the live table again, if it is time."""
        now = time.monotonic()
        if self.live and now - self.refreshed > REFRESH:
            self.refreshed = now
            self.live.update(self.progress(), refresh=True)

    def announce_comparison(self) -> None:
        """Show in the live table that all jobs have ended, and that their runs are compared now."""
        self.is_comparing = True
        self.refreshed = 0.0
        self.refresh()

    def progress(self) -> Table:
        """Return the table of the jobs that fit the terminal: those that run, and around them."""
        table = Table(
            box=None,
            pad_edge=False,
            caption=self._caption(),
            caption_justify="left",
        )
        # Where the terminal is narrow, names are cut, and no numbers.
        table.add_column("job")
        table.add_column("state", no_wrap=True)
        for name in ("step", "loss", "left"):
            table.add_column(name, justify="right", no_wrap=True)

        # Where not all jobs fit, a third of the rows stand above the first job that is not over.
        n_rows = max(5, self.console.height - 6)
        current = 0
        for number, job in enumerate(self.jobs):
            is_over = job.state not in (State.RUNNING, State.WAITING)
            if not is_over:
                current = number
                break
        n_hidden = max(0, len(self.jobs) - n_rows)
        first = min(current - n_rows // 3, n_hidden)
        first = max(0, first)
        shown = self.jobs[first : first + n_rows]
        for job in shown:
            figures = _figures(job)
            name = Text(job.name, no_wrap=True, overflow="ellipsis")
            table.add_row(name, Text(job.state, STYLES.get(job.state, "")), *figures)

        if n_hidden:
            table.add_row(f"and {n_hidden} more", "", "", "", "")
        return table

    def _caption(self) -> str:
        """Return the number of jobs in each state, and an estimate of the time left."""
        text = self._counts()
        if self.is_comparing:
            return f"{text}; comparing the runs …"

        # The rest take as long as those that have run; those that run now are half done, on average.
        done = in_state(self.jobs, State.DONE)
        n_left = len(in_state(self.jobs, State.WAITING)) + len(in_state(self.jobs, State.RUNNING)) / 2
        if done and n_left:
            mean = sum(job.seconds for job in done) / len(done)
            seconds_left = n_left * mean / len(self.slots)
            text += f"; about {duration(seconds_left)} left"
        return text

    def _counts(self) -> str:
        """Return the number of jobs in each state."""
        states = Counter(job.state for job in self.jobs)
        return ", ".join(f"{number} {state}" for state, number in states.items())

    def conclude(self, comparison: Comparison | None) -> None:
        """Print the closing table of all jobs, and their comparison."""
        rows = []
        for job in self.jobs:
            result = job.result
            row = [
                job.name,
                job.state,
                _formatted(result.get("val_loss"), ".4f"),
                _formatted(result.get("best_val_loss"), ".4f"),
                _formatted(result.get("tokens"), ","),
                job.note.partition("\n")[0],
            ]
            rows.append(row)

        # On a terminal it stays, where the live table is gone.
        header = ["job", "state", "val loss", "best", "tokens", "note"]
        if not any(job.note for job in self.jobs):
            header.pop()
            rows = [row[:-1] for row in rows]
        grid = Grid(f"{self.title}: {self._counts()}", header, rows, {"job", "state", "note"})
        self.console.print(FittedTable(grid, "python -m gpt.runs format=json", STYLES))

        if comparison is not None:
            files = comparison.files
            self.console.print()
            self.console.print(render(comparison, with_runs=False))
            self.console.print(f"\npage  {files['page']}\nplot  {files['plot']}")


def _formatted(value: float | None, style: str) -> str:
    """Return a number as text; empty where there is none."""
    if value is None:
        return ""
    return format(value, style)


def _val_loss(job: Job) -> str:
    """Return the validation loss of a finished job as text."""
    loss = job.result.get("val_loss")
    if loss is None:
        return ""
    return f"val {loss:.4f}"


def _figures(job: Job) -> tuple[str, str, str]:
    """Return the step, the loss and the time left of a job, as text."""
    nothing = ("", "", "")
    if job.is_finished:
        step = job.result.get("step", "")
        return str(step), _val_loss(job), ""
    if job.state != State.RUNNING:
        return nothing

    # A run logs its figures in metrics.jsonl.
    row = _last_row(job.run_dir)
    if row is None:
        return nothing
    step = f"{row['step']:,}/{job.config.total_steps:,}"
    loss = f"{row['train/loss']:.4f}"
    seconds_left = _seconds_left(job, row)
    return step, loss, duration(seconds_left)


def _last_row(run_dir: Path) -> dict[str, Any] | None:
    """Return the last complete row of metrics.jsonl; None while there is none."""
    # The run may be writing its last row right now.
    try:
        with open(run_dir / METRICS, "rb") as file:
            n_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, n_bytes - TAIL))
            tail = file.read()
        lines = tail.split(b"\n")
        complete = lines[:-1]
        if not complete:
            return None
        return json.loads(complete[-1])
    except (OSError, ValueError):
        return None


def _seconds_left(job: Job, row: dict[str, Any]) -> float:
    """Return the time until a run ends, at the speed of its last row."""
    tokens_left = job.config.total_tokens - row["tokens"]
    return tokens_left / row["perf/tokens_per_sec"]
