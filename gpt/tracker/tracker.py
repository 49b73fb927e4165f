"""The logs of a run (metrics.jsonl, histograms.jsonl, samples.txt) and its lines on the terminal."""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt.console import plain_console
from gpt.errors import TrainingError
from gpt.evaluation.metrics import PREFIX, metric_of
from gpt.rundir import HISTOGRAMS, METRICS, SAMPLES

if TYPE_CHECKING:
    from gpt.tracker.mirror import Mirror

GAP = "  "  # between figures
WIDEST_BAR = 40  # characters
NARROWEST_BAR = 4
LONGEST_TIME = 8  # characters of 12:34:56


class Tracker:
    """Writes the logs of a run and prints its progress: a bar on a terminal, plain lines in a pipe.

    ``logs`` is how many bytes of each log belong to the step where the run starts; what is beyond is cut off, and
    then ``mirror`` starts. Use in a ``with``.
    """

    def __init__(
        self,
        run_dir: Path,
        logs: dict[str, int],
        step: int,
        total_steps: int,
        mirror: "Mirror",
        with_histograms: bool = False,
    ):
        self.run_dir = run_dir
        self.total_steps = total_steps
        self.mirror = mirror
        names = [METRICS, SAMPLES]
        if with_histograms or HISTOGRAMS in logs:
            names.append(HISTOGRAMS)
        self.files = {name: self._open(name, logs.get(name, 0)) for name in names}
        self.console = plain_console()
        self.bar_column = BarColumn(WIDEST_BAR)
        columns = [
            TextColumn("{task.description} {task.completed}/{task.total}"),
            self.bar_column,
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
        ]
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task("step", total=total_steps, completed=step, line="")

    def _open(self, name: str, length: int) -> BinaryIO:
        """Open a log to append to, cut to a length."""
        file = open(self.run_dir / name, "ab")
        file.truncate(min(length, file.tell()))  # histograms that were deleted are not made up
        file.seek(0, os.SEEK_END)  # truncating leaves the position, which sync() returns, where the end was
        return file

    def __enter__(self) -> "Tracker":
        self.bar.start()
        self.mirror.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()
        for file in self.files.values():
            file.close()

    def say(self, text: str) -> None:
        """Print a line, above the progress bar."""
        with contextlib.suppress(OSError):  # a terminal that is gone
            self.console.print(text)

    def row(self, row: dict[str, Any]) -> None:
        """Append a step's metrics to metrics.jsonl and show them."""
        self._append(METRICS, json.dumps(row, allow_nan=False) + "\n")
        for news in self.mirror.news():
            self.say(news)
        # The step, the first of the figures, a bar and the time left share the line of a terminal.
        room = self.console.width - len(f"step {self.total_steps}/{self.total_steps}") - LONGEST_TIME - 3
        line = fitting(row, room - NARROWEST_BAR)
        self.bar_column.bar_width = max(NARROWEST_BAR, min(WIDEST_BAR, room - len(line)))
        self.bar.update(self.task, completed=row["step"], line=line)
        if _evaluated(row) or not self.console.is_terminal:
            self.say(f"step {row['step']:>{len(str(self.total_steps))}}/{self.total_steps}  {describe(row)}")

    def histograms(self, step: int, histograms: dict[str, Any]) -> None:
        """Append a step's histograms to histograms.jsonl."""
        self._append(HISTOGRAMS, json.dumps({"step": step, **histograms}, allow_nan=False) + "\n")

    def sample(self, step: int, text: str) -> None:
        """Append a sample to samples.txt; :func:`gpt.tracker.logs.parse_samples` reads it back."""
        self._append(SAMPLES, f"--- step {step}\n{text}\n")

    def sync(self) -> dict[str, int]:
        """Bring the logs to the disk; returns their lengths in bytes. Raises TrainingError where they are gone."""
        for name, file in self.files.items():
            self._check_in_place(name)
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self.files.items()}

    def _check_in_place(self, name: str) -> None:
        """Raise TrainingError if a log was moved or removed while the run holds it open."""
        path = self.run_dir / name
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(path), os.fstat(self.files[name].fileno())):
                return
        raise TrainingError(
            f"{path} is no longer there: it, or a directory above it, was moved or removed during the run\n"
            "  where it was moved to, it goes on: python train.py resume=DIRECTORY"
        )

    def _append(self, name: str, text: str) -> None:
        self._check_in_place(name)
        self.files[name].write(text.encode())
        self.files[name].flush()


class NullTracker:
    """The tracker of all ranks but the first: prints and writes nothing."""

    def __enter__(self) -> "NullTracker":
        return self

    def __exit__(self, *error) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def row(self, row: dict[str, Any]) -> None:
        pass

    def sample(self, step: int, text: str) -> None:
        pass

    def histograms(self, step: int, histograms: dict[str, Any]) -> None:
        pass

    def sync(self) -> dict[str, int]:
        return {}


def _evaluated(row: dict[str, Any]) -> list[str]:
    """Return the names of the metrics of evaluation tasks in a row."""
    return [key.removeprefix(PREFIX) for key in row if key.startswith(PREFIX)]


def describe(row: dict[str, Any]) -> str:
    """Return a row of metrics as a line of text."""
    return GAP.join(_figures(row))


def fitting(row: dict[str, Any], width: int) -> str:
    """Return the first figures of a row of metrics, as many as fit a width."""
    line = ""
    for figure in _figures(row):
        longer = line + GAP + figure if line else figure
        if len(longer) > width:
            break
        line = longer
    return line


def _figures(row: dict[str, Any]) -> list[str]:
    """Return the metrics of a row as text, the most important ones first."""
    parts = [f"{row['tokens']:,} tokens", f"loss {row['train/loss']:.4f}"]
    for name in _evaluated(row):
        metric = metric_of(name)
        label = "val" if name == "loss" else metric.label
        parts.append(f"{label} {row[PREFIX + name]:{metric.format}}")
    parts.append(f"lr {row['optim/lr']:.2e}")
    # Only an overflow in float16 leaves a row without a norm.
    parts.append(f"norm {row['optim/grad_norm']:.2f}" if "optim/grad_norm" in row else "overflow, no update")
    parts.append(f"{row['perf/tokens_per_sec']:,.0f} tok/s")
    if "perf/mfu" in row:
        parts.append(f"mfu {row['perf/mfu']:.1%}")
    return parts
