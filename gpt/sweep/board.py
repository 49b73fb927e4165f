"""What a sweep says: on a terminal a live table of its jobs, in a pipe a line per event, at its end a closing table."""

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpt.compare import Comparison, render
from gpt.compare.tables import duration
from gpt.console import plain_console
from gpt.rundir import METRICS
from gpt.sweep.slots import Slot

if TYPE_CHECKING:
    from gpt.sweep.jobs import Job

REFRESH = 0.5  # seconds
TAIL = 8192  # bytes, in which the last row of metrics.jsonl is
STYLES = {"running": "cyan", "done": "green", "kept": "green dim", "failed": "red", "interrupted": "yellow"}


class Board:
    """Shows the jobs of a sweep while it runs. Use in a ``with``."""

    def __init__(self, title: str, jobs: "list[Job]", slots: list[Slot], sweep_dir: Path):
        self.title, self.jobs, self.slots, self.dir = title, jobs, slots, sweep_dir
        self.console = plain_console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.refreshed = 0.0

    def __enter__(self) -> "Board":
        kept = sum(job.state == "kept" for job in self.jobs)
        at_once = f", {len(self.slots)} at a time" if len(self.slots) > 1 else ""
        self.console.print(
            f"{self.title}: {len(self.jobs)} jobs, {kept} finished before{at_once} -> {self.dir}", soft_wrap=True
        )
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error) -> None:
        if self.live:
            self.live.stop()

    def event(self, job: "Job") -> None:
        """Say that a job has started or ended; on a terminal the table does, but for failures."""
        if self.live and job.state != "failed":
            return
        over = sum(other.state not in ("waiting", "running") for other in self.jobs)
        words = [f"[{over}/{len(self.jobs)}]", f"{job.state:<11}", job.name]
        if job.is_finished:
            words.append(losses(job))
        if job.state == "done":
            words.append(duration(job.seconds))
        self.console.print("  ".join(words))
        if job.state == "failed":
            self.console.print(f"  {job.note}\n  see {job.handle.log if job.handle else job.run_dir}")
        elif job.note:
            self.console.print(f"  {job.note}")

    def refresh(self) -> None:
        """Draw the table anew, if it is time."""
        if self.live and time.monotonic() - self.refreshed > REFRESH:
            self.refreshed = time.monotonic()
            self.live.update(self.progress(), refresh=True)

    def progress(self) -> Table:
        """The jobs, as far as they fit the terminal: those that run, and around them."""
        table = Table(box=None, pad_edge=False, caption=self.left(), caption_justify="left")
        add_columns(table, "job", "state", "step>", "loss>", "left>")
        room = max(5, self.console.height - 6)
        begin = next((i for i, job in enumerate(self.jobs) if job.state in ("running", "waiting")), 0)
        first = max(0, min(begin - room // 3, len(self.jobs) - room))
        for job in self.jobs[first : first + room]:
            table.add_row(job.name, Text(job.state, STYLES.get(job.state, "")), *self.figures(job))
        hidden = len(self.jobs) - min(room, len(self.jobs))
        if hidden:
            table.add_row(f"and {hidden} more", "", "", "", "")
        return table

    def figures(self, job: "Job") -> tuple[str, str, str]:
        """Step, loss and time left of a job."""
        if job.is_finished:
            return str(job.result.get("step", "")), losses(job), ""
        row = last_row(job.run_dir) if job.state == "running" else None
        if row is None:
            return "", "", ""
        loss = f"{row['train/loss']:.4f}"
        return f"{row['step']:,}/{job.config.total_steps:,}", loss, duration(seconds_left(job, row))

    def left(self) -> str:
        """How many jobs are over, and how long the rest may take, by those that have run."""
        states = Counter(job.state for job in self.jobs)
        ran = [job.seconds for job in self.jobs if job.state == "done"]
        text = ", ".join(f"{number} {state}" for state, number in states.items())
        if ran and states["waiting"] + states["running"]:
            rest = (states["waiting"] + states["running"] / 2) * sum(ran) / len(ran) / len(self.slots)
            text += f"; about {duration(rest)} left"
        return text

    def conclude(self, comparison: Comparison | None) -> None:
        """The closing table of all jobs, and what their comparison says."""
        table = Table(box=None, pad_edge=False)
        add_columns(table, "job", "state", "val loss>", "best>", "tokens>", "")
        for job in self.jobs:
            loss, best, tokens = (job.result.get(key) for key in ("val_loss", "best_val_loss", "tokens"))
            table.add_row(
                job.name,
                Text(job.state, STYLES.get(job.state, "")),
                "" if loss is None else f"{loss:.4f}",
                "" if best is None else f"{best:.4f}",
                "" if tokens is None else f"{tokens:,}",
                job.note.splitlines()[0] if job.note else "",
            )
        self.console.print()
        self.console.print(table)
        if comparison is not None:
            self.console.print()
            self.console.print(render(comparison, with_runs=False))
            self.console.print(f"\npage  {comparison.files['page']}\nplot  {comparison.files['plot']}")


def add_columns(table: Table, *names: str) -> None:
    """Columns that are not wrapped; those of numbers, aligned on the right, have names that end in ``>``."""
    for name in names:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", no_wrap=True)


def losses(job: "Job") -> str:
    """The validation loss of a finished job."""
    loss = job.result.get("val_loss")
    return "" if loss is None else f"val {loss:.4f}"


def last_row(run_dir: Path) -> dict[str, Any] | None:
    """The last whole row of metrics.jsonl; None while there is none."""
    try:
        with open(run_dir / METRICS, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None


def seconds_left(job: "Job", row: dict[str, Any]) -> float:
    """Until the run ends, at the speed of its last row."""
    return (job.config.total_tokens - row["tokens"]) / row["perf/tokens_per_sec"]
