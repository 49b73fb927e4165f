"""How processes end: at the next step boundary after a signal, and never later than who started them.

From its start to its end a command handles signals by :func:`ending_at_once`, and meanwhile, as long as there is a step
to finish, by :class:`Interrupt`. Ranks are started with signals blocked (:func:`children_without_signals`), and then do
what the process that started them says in ``stop``. Workers that read data ignore signals.
"""

import ctypes
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker

from gpt.console import mute
from gpt.errors import Interrupted

GO_ON, FINISH_STEP, END_NOW = range(3)
INSISTENT = (signal.SIGINT, signal.SIGTERM)  # which end a run at once when they come again
STOPPING = (*INSISTENT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LIBC = ctypes.CDLL(None)  # found before anything is forked


class Stopped(Exception):
    """Something long was left before its end, because a signal has come."""


def never() -> bool:
    """Whether to stop something long: no."""
    return False


def end_with(parent: int) -> None:
    """Let this process be killed when ``parent``, which has started it, ends, however that ends. On Linux only."""
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # gone before it was asked
        os._exit(Interrupted.exit_code)


def ignore_signals() -> None:
    """Leave it to the process that started this one to end it: terminals and schedulers signal all of a group."""
    for number in (*STOPPING, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


_heard: list[int] = []  # signals since the command began, of which an import may have swallowed the exception


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let every signal that asks for an end raise KeyboardInterrupt, as Ctrl-C does, while nothing else handles it."""

    def end(number: int, frame) -> None:
        mute_lost_terminal()
        _heard.append(number)
        raise KeyboardInterrupt

    def again(unraisable) -> None:
        if unraisable.exc_type is KeyboardInterrupt and _heard:  # it was raised where Python cannot pass it on
            os.kill(os.getpid(), _heard[-1])
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, again
    try:
        with _handling(dict.fromkeys((*STOPPING, signal.SIGQUIT), end)):
            yield
    except Exception as error:
        if _heard:  # it came in the midst of something, which then failed
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = hook
        _heard.clear()


@contextmanager
def _handling(handlers: dict) -> Iterator[None]:
    """Install handlers for a while, except for SIGHUP where nohup ignores it."""
    previous = {}
    if threading.current_thread() is threading.main_thread():  # the others get no signals
        for number, handler in handlers.items():
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def children_without_signals() -> Iterator[None]:
    """Start processes with signals blocked until they call :func:`let_signals_in`; this process goes on hearing them.

    A terminal signals all processes, and one that is still importing would end with a traceback.
    """
    over = threading.Event()
    listener = threading.Thread(target=over.wait, daemon=True)  # blocks none, so that the system hands them to it
    listener.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, signal.SIGQUIT))
    try:
        resource_tracker.ensure_running()  # which unblocks some again, so that it is started now
        signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, signal.SIGQUIT))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        over.set()
        listener.join()


def let_signals_in() -> None:
    """Get the signals that were blocked when this process was started, those that have come meanwhile first."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPPING, signal.SIGQUIT))


class Interrupt:
    """While in the ``with``, the first signal asks for an end after the step, and says so; a second one ends at once.

    SIGHUP never counts as the second, because a closed terminal sends it more than once. ``stop`` holds what was asked
    for, in shared memory where ranks are to see it; these have an Interrupt too, which does not listen (``listens``).
    ``promise`` is what the user is told.
    """

    def __init__(
        self,
        stop: ctypes.c_int | None = None,
        listens: bool = True,
        promise: str = "ends after this step and saves; a second one ends at once, without saving",
    ) -> None:
        self.stop = ctypes.c_int(GO_ON) if stop is None else stop
        handlers = dict.fromkeys(STOPPING, self._receive) | {signal.SIGQUIT: self._end}
        self._handling = _handling(handlers if listens else {})
        self.promise = promise

    @property
    def received(self) -> bool:
        """Whether the run is to end."""
        return self.stop.value != GO_ON

    def __enter__(self) -> "Interrupt":
        self._handling.__enter__()
        if _heard:
            self._receive(_heard[-1], None)
            _heard.clear()
        return self

    def __exit__(self, *error) -> None:
        self._handling.__exit__(*error)

    def _receive(self, number: int, frame) -> None:
        mute_lost_terminal()
        if not self.received:
            self.stop.value = FINISH_STEP
            with suppress(OSError):  # written at once, whatever else is being printed
                os.write(2, f"{_fresh_line()}{signal.Signals(number).name}: {self.promise}\n".encode())
        elif number in INSISTENT:
            self._end(number, frame)

    def _end(self, number: int, frame) -> None:
        mute_lost_terminal()
        self.stop.value = END_NOW
        raise KeyboardInterrupt


def _fresh_line() -> str:
    """Characters that clear the progress bar, or what the terminal shows of Ctrl-C."""
    return "\r\x1b[2K" if os.isatty(2) else ""


def mute_lost_terminal() -> None:
    """Write to nowhere what goes to a terminal that is gone: it would fail, and end what is being saved."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                mute(descriptor)
