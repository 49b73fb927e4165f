"""Parts that all mirror processes share: they follow the logs of a run, and give way to its training."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.compare.runs import load, run_directories
from gpt.console import say
from gpt.rundir import HISTOGRAMS, METRICS, SAMPLES, check_layout, read_about
from gpt.tracker.logs import Tail

POLL = 1.0  # seconds between two looks at the logs
NICENESS_AT_START = 10
NICENESS = 19  # afterwards: a mirror takes the processor only when training leaves it


def beside_run(argv: list[str]) -> Path | None:
    """Return the run beside which a training has started this process; None where a user calls the command."""
    if len(argv) == 2 and argv[0] == "--beside" and Path(argv[1]).is_dir():
        return Path(argv[1])
    return None


def watch_training(seconds: float, last_words: str) -> threading.Event:
    """Return an event that is set when the training that started this process is over.

    If this process is still there so many seconds later, it prints ``last_words`` and ends itself.
    """
    over = threading.Event()

    def wait() -> None:
        # The pipe ends with whoever holds its other end. Reading through Python's own stdin would hold a lock.
        while os.read(sys.stdin.fileno(), 1):
            pass
        over.set()
        time.sleep(seconds)
        say(last_words)
        os._exit(0)

    # Starting up takes seconds of a processor that training needs.
    with contextlib.suppress(OSError):
        os.nice(NICENESS_AT_START)
    threading.Thread(target=wait, daemon=True).start()
    return over


def runs_in(directories: list[Path]) -> list[Path]:
    """Return the runs that directories are or hold. Raises InputError."""
    run_dirs: list[Path] = []
    for directory in directories:
        inside, _ = run_directories(directory)
        run_dirs += inside
    return run_dirs


def already_over() -> threading.Event:
    """Return the event of a run that is over before its mirror starts."""
    over = threading.Event()
    over.set()
    return over


def yield_processor() -> None:
    """Give all threads of this process, and of those that its library has started, the lowest priority."""
    with contextlib.suppress(OSError):  # only Linux has /proc
        for thread in _threads(os.getpid()):
            os.setpriority(os.PRIO_PROCESS, thread, NICENESS)


def _threads(pid: int) -> Iterator[int]:
    """Yield the threads of a process and of its descendants."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        yield int(task.name)
        for child in (task / "children").read_text().split():
            yield from _threads(int(child))


def follow(run_dir: Path, over: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the rows of metrics.jsonl as they are added, until the run is over."""
    metrics = Tail(run_dir / METRICS)
    while True:
        # Ask before reading: the file of a run that is over is whole.
        is_last = over.is_set()
        yield from metrics.rows()
        if is_last:
            return
        over.wait(POLL)


def check_readable(run_dir: Path) -> None:
    """Check that everything that a mirror copies of a run can be read. Raises InputError."""
    check_layout(run_dir)
    load(run_dir, run_dir.name)
    read_about(run_dir)
    Tail(run_dir / HISTOGRAMS).histograms()
    Tail(run_dir / SAMPLES).text()
