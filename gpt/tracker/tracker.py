"""What a run leaves behind and says meanwhile: metrics.jsonl, histograms.jsonl, samples.txt, the terminal."""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt.console import plain_console
from gpt.errors import TrainingError
from gpt.rundir import HISTOGRAMS, METRICS, SAMPLES

if TYPE_CHECKING:
    from gpt.tracker.mirror import Mirror


class Tracker:
    """Writes the logs of a run, cut to the bytes that ``logs`` says belong to where it starts, and speaks.

    On a terminal a progress bar, in a pipe plain lines. ``mirror`` starts once the logs are cut. Use in a ``with``.
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
        self.run_dir, self.total_steps, self.mirror = run_dir, total_steps, mirror
        self.files = {}
        for name in (METRICS, SAMPLES, *([HISTOGRAMS] if with_histograms or HISTOGRAMS in logs else [])):
            file = open(run_dir / name, "ab")
            file.truncate(min(logs.get(name, 0), file.tell()))  # histograms that were deleted are not made up
            file.seek(0, os.SEEK_END)  # truncating leaves the position, which sync() reports, where the end was
            self.files[name] = file
        self.console = plain_console()
        columns = [
            TextColumn("{task.description} {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
        ]
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task("step", total=total_steps, completed=step, line="")

    def __enter__(self) -> "Tracker":
        self.bar.start()
        self.mirror.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()
        for file in self.files.values():
            file.close()

    def say(self, text: str) -> None:
        """A line for the user, above the progress bar."""
        with contextlib.suppress(OSError):  # a terminal that is gone
            self.console.print(text)

    def row(self, row: dict[str, Any]) -> None:
        """Append a step's metrics to metrics.jsonl and show them."""
        self._append(METRICS, json.dumps(row, allow_nan=False) + "\n")
        for news in self.mirror.news():
            self.say(news)
        line = describe(row)
        self.bar.update(self.task, completed=row["step"], line=line)
        if "val/loss" in row or not self.console.is_terminal:
            self.say(f"step {row['step']:>{len(str(self.total_steps))}}/{self.total_steps}  {line}")

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
        """What is written must be found: a directory can be moved or removed while a run holds its files open."""
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


class Silent:
    """What ranks other than 0 have in place of a Tracker: they say and write nothing."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *error) -> None:
        pass

    def say(self, text: str) -> None:
        """See :class:`Tracker`."""

    def row(self, row: dict[str, Any]) -> None:
        """See :class:`Tracker`."""


def describe(row: dict[str, Any]) -> str:
    """A row of metrics in a line."""
    parts = [f"{row['tokens']:,} tokens", f"loss {row['train/loss']:.4f}"]
    if "val/loss" in row:
        parts.append(f"val {row['val/loss']:.4f}")
    if "val/exact_match" in row:
        parts.append(f"exact {row['val/exact_match']:.2%}")
    parts += [
        f"lr {row['optim/lr']:.2e}",
        f"norm {row['optim/grad_norm']:.2f}" if "optim/grad_norm" in row else "overflow, no update",
        f"{row['perf/tokens_per_sec']:,.0f} tok/s",
    ]
    if "perf/mfu" in row:
        parts.append(f"mfu {row['perf/mfu']:.1%}")
    return "  ".join(parts)
