"""The terminal: lines for the user, who may be gone."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200


def mute(descriptor: int) -> None:
    """Write to nowhere what goes to a descriptor."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def say(text: str) -> None:
    """Print a line for the user. A user who is gone stops nothing."""
    try:
        print(text, flush=True)
    except OSError:
        mute(1)


def plain_console() -> "Console":
    """A rich console that prints text as it is, and in a pipe does not cut lines."""
    from rich.console import Console  # not for commands that only print a line

    class LastingConsole(Console):
        """A console whose reader may go away, which would otherwise end the process."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            mute(sys.stdout.fileno())

    console = LastingConsole(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console
