"""Ctrl-C and SIGTERM end a run at the next step boundary."""

import signal
import threading


class Interrupt:
    """While in the ``with``, the first SIGINT or SIGTERM sets ``received``; a second one ends at once."""

    def __init__(self) -> None:
        self.received = False
        self._previous = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
