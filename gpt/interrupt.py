"""How processes end: at the next step boundary after Ctrl-C or SIGTERM, and never later than who started them."""

import ctypes
import os
import signal
import threading

from gpt.errors import Interrupted

GO_ON, FINISH_STEP, END_NOW = range(3)
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LIBC = ctypes.CDLL(None)  # found before anything is forked


def end_with(parent: int) -> None:
    """Let this process be killed when ``parent``, which has started it, ends, however that ends. On Linux only."""
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # gone before it was asked
        os._exit(Interrupted.exit_code)


class Interrupt:
    """While in the ``with``, the first SIGINT or SIGTERM asks for an end after the step; a second one ends at once.

    ``stop`` holds what was asked for; in shared memory, it asks the processes that share it. ``listens`` is false in
    those, where another process listens.
    """

    def __init__(self, stop: ctypes.c_int | None = None, listens: bool = True) -> None:
        self.stop = ctypes.c_int(GO_ON) if stop is None else stop
        self.listens = listens and threading.current_thread() is threading.main_thread()  # the others get no signals
        self._previous = {}

    @property
    def received(self) -> bool:
        """Whether the run is to end."""
        return self.stop.value != GO_ON

    def __enter__(self) -> "Interrupt":
        if self.listens:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if self.received:
            self.stop.value = END_NOW
            raise KeyboardInterrupt
        self.stop.value = FINISH_STEP
