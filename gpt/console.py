"""The terminal: output that a closed terminal or a closed pipe does not turn into an error."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200  # characters of a line, where there is no terminal to measure


def mute(descriptor: int) -> None:
    """Discard all further output to a file descriptor."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def say(text: str) -> None:
    """Print a line at once. Where nobody reads it any more, discard all output from then on."""
    try:
        print(text, flush=True)
    except OSError:
        mute(1)


def plain_console() -> "Console":
    """Return a rich console that prints text without markup, and in a pipe does not cut lines."""
    from rich.console import Console  # slow to import, for commands that only print a line

    class LastingConsole(Console):
        """A console that goes quiet when its reader goes away, instead of ending the process."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            mute(sys.stdout.fileno())

    console = LastingConsole(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console
