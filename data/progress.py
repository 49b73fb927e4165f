"""The progress of a preparation: tokens, tokens per second, time left, and whether the disk holds the rest."""

import shutil
import time
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt.console import plain_console
from gpt.errors import InputError

SECONDS = 10  # between two lines where there is no terminal


class Meter:
    """A progress bar on a terminal, a line now and then in a pipe. Use in a ``with``."""

    def __init__(self, n_tokens: int, itemsize: int):
        self.itemsize = itemsize
        self.n_before = n_tokens  # of an earlier command, which do not count in the rate
        self.begun = time.monotonic()
        self.printed = self.begun
        self.console = plain_console()
        columns = [
            BarColumn(),
            TextColumn("{task.percentage:.0f} %  {task.fields[line]}"),
            TimeRemainingColumn(),
        ]
        self.bar = Progress(
            *columns,
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=1.0, line="")

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()

    def show(self, n_tokens: int, share: float) -> None:
        """Show the number of tokens so far, and the share of the source that they are."""
        # The size of the whole follows from the share, once there is one.
        now = time.monotonic()
        rate = (n_tokens - self.n_before) / max(1e-9, now - self.begun)
        line = f"{n_tokens:,} tokens  {rate:,.0f} tok/s"
        if share:
            gigabytes = n_tokens / share * self.itemsize / 1e9
            line += f"  about {gigabytes:,.2f} GB in all"

        # On a terminal the bar has the time left; in a pipe the line has it.
        self.bar.update(self.task, completed=share, line=line)
        if not self.console.is_terminal and now - self.printed > SECONDS:
            self.printed = now
            if share:
                seconds_left = (n_tokens / share - n_tokens) / max(1, rate)
                line += f"  {share:.0%}, {seconds_left / 60:,.1f} min left"
            self.console.print(line)


def check_room(
    directory: Path,
    n_tokens: int,
    share: float,
    itemsize: int,
    shard_tokens: int,
) -> None:
    """Refuse what the disk will not hold, as far as the first tokens tell. Raises InputError."""
    total = n_tokens / share if share else n_tokens
    # A shard is there twice while it is written, as raw tokens and as HDF5.
    twice = min(total, shard_tokens)
    needed = (total - n_tokens + twice) * itemsize
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise InputError(
            f"{directory.parent} has {free / 1e9:,.2f} GB free, and {total:,.0f} tokens or so need {needed / 1e9:,.2f}",
            "make room, or take a directory on another disk: data.cache_dir=DIR",
        )
