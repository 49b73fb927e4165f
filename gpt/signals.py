"""Signals: a run ends at the next step boundary, and no process outlives the one that started it.

A command handles signals by :func:`ending_at_once`; while there is a step to finish, :class:`Interrupt` takes over.
Ranks are started with signals blocked (:func:`block_signals_in_children`), and obey ``stop``, which they share with the
process that started them. Workers that read data ignore signals.
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

PROMISE = "ends after this step and saves; a second one ends at once, without saving"

# Values of ``stop``, by which ranks are asked to end.
GO_ON = 0
FINISH_STEP = 1
END_NOW = 2

INSISTENT = (signal.SIGINT, signal.SIGTERM)  # a second one of these ends a run at once
STOPPING = (*INSISTENT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ALL_SIGNALS = (*STOPPING, signal.SIGQUIT)  # that this module handles; SIGQUIT always ends a run at once
PATIENCE = 2.0  # seconds after which a signal that has not ended a command is sent to it again

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LIBC = ctypes.CDLL(None)  # loaded before anything is forked


class Stopped(Exception):
    """A long computation was left before its end, because of a signal."""


def never() -> bool:
    """Return False: nothing stops a long computation."""
    return False


def end_with(parent: int) -> None:
    """Kill this process when ``parent``, which started it, ends in any way. On Linux only."""
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(Interrupted.exit_code)


def ignore_signals() -> None:
    """Ignore signals, which terminals and schedulers send to a whole group; the parent ends this process."""
    for number in ALL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Raise KeyboardInterrupt on every signal that asks for an end, as Ctrl-C does, while nothing else handles it."""
    received: list[int] = []
    over = threading.Event()

    def end(number: int, frame) -> None:
        _mute_lost_terminal()
        if _is_importing(frame):  # the exception would be swallowed there, or end in C++ with an abort
            send_after(0.05, number)
            return
        received.append(number)
        send_after(PATIENCE, number)  # in case something between here and there swallows the exception
        raise KeyboardInterrupt

    def send_after(seconds: float, number: int) -> None:
        timer = threading.Timer(seconds, send, [number])
        timer.daemon = True
        timer.start()

    def send(number: int) -> None:
        if over.is_set():
            return
        if _is_ending():  # it waits for what it has started, and a second exception would leave that alone
            send_after(PATIENCE, number)
        else:
            os.kill(os.getpid(), number)

    # What Python drops in a destructor or a callback it reports: not this exception, since the signal is sent again.
    def hush(unraisable) -> None:
        if unraisable.exc_type is not KeyboardInterrupt or not received:
            previous_hook(unraisable)

    previous_hook = sys.unraisablehook
    sys.unraisablehook = hush
    try:
        with _handling(dict.fromkeys(ALL_SIGNALS, end)):
            yield
    except Exception as error:
        if received:  # the signal interrupted something, which then failed
            raise KeyboardInterrupt from error
        raise
    finally:
        over.set()
        sys.unraisablehook = previous_hook


def _is_ending() -> bool:
    """Return whether the main thread is on its way out with a KeyboardInterrupt."""
    handled = sys._current_exceptions().get(threading.main_thread().ident)
    error = handled[1] if isinstance(handled, tuple) else handled  # a tuple before Python 3.12
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _is_importing(frame) -> bool:
    """Return whether a module is being imported where the signal came in."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextmanager
def _handling(handlers: dict) -> Iterator[None]:
    """Install signal handlers for a while, except for SIGHUP where nohup ignores it."""
    previous = {}
    if threading.current_thread() is threading.main_thread():  # other threads get no signals
        for number, handler in handlers.items():
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def block_signals_in_children() -> Iterator[None]:
    """Start processes with signals blocked until they call :func:`unblock_signals`; this process still gets them.

    A terminal signals all processes, and one that is still importing would end with a traceback.
    """
    # A thread that blocks no signals gets those of this process.
    is_over = threading.Event()
    receiver = threading.Thread(target=is_over.wait, daemon=True)
    receiver.start()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        resource_tracker.ensure_running()  # started now, because that unblocks some signals
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        is_over.set()
        receiver.join()


def unblock_signals() -> None:
    """Unblock the signals that were blocked when this process was started; those that are pending come first."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL_SIGNALS)


class Interrupt:
    """Context in which the first signal asks the run to end after its step, and a second one ends it at once.

    SIGHUP never counts as the second one, because a closed terminal sends it more than once. ``stop`` holds the
    request, in shared memory where ranks must see it; a rank has an Interrupt that installs no handlers
    (``listens=False``). ``promise`` is printed on the first signal.
    """

    def __init__(self, stop: ctypes.c_int | None = None, listens: bool = True, promise: str = PROMISE) -> None:
        self.stop = ctypes.c_int(GO_ON) if stop is None else stop
        self.promise = promise

        # SIGQUIT ends the run at once, even as the first signal.
        handlers = {}
        if listens:
            handlers = dict.fromkeys(STOPPING, self._receive)
            handlers[signal.SIGQUIT] = self._end
        self._handling = _handling(handlers)

    @property
    def received(self) -> bool:
        """True once the run has been asked to end."""
        return self.stop.value != GO_ON

    def __enter__(self) -> "Interrupt":
        self._handling.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._handling.__exit__(*error)

    def _receive(self, number: int, frame) -> None:
        """Handle a signal: the first one asks for an end, a second insistent one ends at once."""
        _mute_lost_terminal()
        if not self.received:
            self.stop.value = FINISH_STEP
            clear = "\r\x1b[2K" if os.isatty(2) else ""  # the progress bar, or the ^C that the terminal shows
            line = f"{clear}{signal.Signals(number).name}: {self.promise}\n"
            with suppress(OSError):
                os.write(2, line.encode())  # unbuffered: the signal may have interrupted another print
        elif number in INSISTENT:
            self._end(number, frame)

    def _end(self, number: int, frame) -> None:
        _mute_lost_terminal()
        self.stop.value = END_NOW
        raise KeyboardInterrupt


def _mute_lost_terminal() -> None:
    """Discard what goes to a terminal that is gone: writing would fail, and end what is being saved."""
    for descriptor in (1, 2):
        with suppress(OSError):
            is_character_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if is_character_device and not os.isatty(descriptor):
                mute(descriptor)
