"""Readers of a run's logs: of whole files, and of files that still grow."""

import json
import math
import re
from pathlib import Path
from typing import Any

from gpt.errors import InputError
from gpt.files import CURE, parse_object
from gpt.rundir import METRICS


class Tail:
    """Reads a growing file from its beginning: each call returns the lines that were added since the last one."""

    def __init__(self, path: Path):
        self.path = path
        self.position = 0

    def text(self) -> str:
        """Return the new text up to the end of its last whole line. Raises InputError."""
        if not self.path.exists():
            return ""
        with open(self.path, "rb") as file:
            file.seek(self.position)
            added = file.read()
        # The writer may be in the middle of a line: that part is read next time.
        whole_lines = added[: added.rfind(b"\n") + 1]
        self.position += len(whole_lines)
        try:
            return whole_lines.decode()
        except UnicodeDecodeError as error:
            raise self._damaged(error) from error

    def rows(self) -> list[dict[str, Any]]:
        """Return the new lines of a file that holds a JSON object per line. Raises InputError."""
        try:
            return [parse_object(line) for line in self.text().splitlines()]
        except ValueError as error:
            raise self._damaged(error) from error

    def histograms(self) -> dict[int, dict[str, Any]]:
        """Return the new lines of histograms.jsonl by step: min, max and counts by parameter. Raises InputError."""
        by_step = {}
        for row in self.rows():
            try:
                by_step[row.pop("step")] = row
                for histogram in row.values():
                    # Fails unless all of them are numbers.
                    math.fsum([histogram["min"], histogram["max"], *histogram["counts"]])
            except (KeyError, TypeError) as error:
                raise self._damaged(error) from error
        return by_step

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.path} is damaged, or none of ours: {error}", CURE)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return all whole rows of metrics.jsonl."""
    text = (run_dir / METRICS).read_text()
    rows = []
    for line in text.splitlines(keepends=True):
        # A run that was killed may have left half of a row.
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def parse_samples(text: str) -> list[tuple[int, str]]:
    """Return the samples in whole lines of samples.txt, each with its step."""
    _, *parts = re.split(r"^--- step (\d+)\n", text, flags=re.MULTILINE)
    steps = parts[::2]
    samples = parts[1::2]

    # Each ends with a line break that is not its own.
    parsed = []
    for step, sample in zip(steps, samples, strict=True):
        parsed.append((int(step), sample[:-1]))
    return parsed
