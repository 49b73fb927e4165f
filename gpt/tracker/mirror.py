"""A copy of a run's logs elsewhere, made by a process beside the training. Whatever becomes of it, training goes on.

:class:`Mirror` is the training's end of it; the rest is for the process itself, such as gpt/mirrors/wandb.py.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.console import plain_console, say
from gpt.errors import InputError
from gpt.files import CURE, ROOT, parse_object
from gpt.rundir import METRICS

MODULES = {"wandb": "gpt.mirrors.wandb", "wandb_offline": "gpt.mirrors.wandb", "tensorboard": "gpt.mirrors.tensorboard"}
PATIENCE = 10.0  # seconds that a run waits for its mirror at its end
POLL = 1.0  # seconds between two looks of a mirror at the logs
NICENESS, LAST = 10, 19  # of a mirror while it starts, and then: it takes the processor only when training leaves it
LOG = "logs/mirror.log"  # what a mirror, or the library that it uses, says besides


class Mirror:
    """The process that mirrors a run, if the run's tracker has one. Use in a ``with``, and start it when logs are cut.

    ``may_stay``: it may go on after its run, by itself, as long as it likes.
    """

    def __init__(self, tracker: str, run_dir: Path, may_stay: bool):
        self.module, self.run_dir, self.may_stay = MODULES.get(tracker), run_dir, may_stay
        self.process: subprocess.Popen | None = None
        self.heard = b""

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *error) -> None:
        if self.process:
            self.conclude()

    def start(self) -> None:
        """Start it, if there is one; what goes wrong is news."""
        if self.module is None:
            return
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            log = self.run_dir / LOG
            log.parent.mkdir(exist_ok=True)
            with open(log, "ab") as stderr:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", self.module, "--beside", str(self.run_dir.resolve())],
                    stdin=subprocess.PIPE,  # it ends with this process, however that ends
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                    start_new_session=True,  # Ctrl-C is for the run, which sees to its mirror
                )
            os.set_blocking(self.process.stdout.fileno(), False)
        except OSError as error:
            self.heard += f"mirror      not started: {error}; {cure(self.module, self.run_dir)}\n".encode()

    def news(self) -> list[str]:
        """What it has said since it was asked last, for the user."""
        if self.process:
            code = self.process.poll()  # before it is heard, so that nothing of what it said is lost
            with contextlib.suppress(BlockingIOError):
                while said := os.read(self.process.stdout.fileno(), 65536):
                    self.heard += said
            if code is not None:
                self.end()
            if code:
                how = signal.Signals(-code).name if code < 0 else f"code {code}"
                why = f"ended by {how}, see {self.run_dir / LOG}; {cure(self.module, self.run_dir)}"
                self.heard += f"mirror      {why}\n".encode()
        *lines, self.heard = self.heard.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def conclude(self) -> None:
        """Let it copy the rest, for up to PATIENCE, and pass on what it says."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        deadline, console = time.monotonic() + PATIENCE, plain_console()
        while self.process and time.monotonic() < deadline:
            for line in self.news():
                console.print(line)
            time.sleep(0.05)
        if self.process and self.may_stay:
            console.print(f"mirror      goes on uploading by itself; {self.run_dir / LOG} says what it meets")
            self.process.stdout.close()
        elif self.process:
            console.print(f"mirror      not done within {PATIENCE:.0f} s; {cure(self.module, self.run_dir)}")
            self.end()

    def end(self) -> None:
        """End it, if it has not ended. What its library has started ends with it."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process = None


def beside_run(argv: list[str]) -> Path | None:
    """The run beside which a mirror was started, as :meth:`Mirror.start` does it; None where a user calls it."""
    if len(argv) == 2 and argv[0] == "--beside" and Path(argv[1]).is_dir():
        return Path(argv[1])
    return None


def cure(module: str, run_dir: Path) -> str:
    """How to bring there what is missing."""
    return f"for the rest: python -m {module} {run_dir}"


def attend(seconds: float, last_words: str) -> threading.Event:
    """An event that is set when the run that started this process is over.

    Says ``last_words`` and ends this process so many seconds later, if it is still there.
    """
    over = threading.Event()

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):  # ends with whoever holds the other end; Python's own would hold a lock
            pass
        over.set()
        time.sleep(seconds)
        say(last_words)
        os._exit(0)

    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    threading.Thread(target=wait, daemon=True).start()
    return over


def step_back() -> None:
    """Leave the processor to training: this process, and what its library has started, come last in all threads."""

    def family(pid: int) -> Iterator[int]:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            yield int(task.name)
            for child in (task / "children").read_text().split():
                yield from family(int(child))

    with contextlib.suppress(OSError):  # no Linux
        for thread in family(os.getpid()):
            os.setpriority(os.PRIO_PROCESS, thread, LAST)


class Tail:
    """A file that grows, from its beginning on."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0

    def text(self) -> str:
        """The whole lines that have been added since the last call."""
        if not self.path.exists():
            return ""
        with open(self.path, "rb") as file:
            file.seek(self.position)
            whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self.position += len(whole)
        try:
            return whole.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(error) from error

    def rows(self) -> list[dict[str, Any]]:
        """These lines, where each is a JSON object. Raises InputError."""
        try:
            return [parse_object(line) for line in self.text().splitlines()]
        except ValueError as error:
            raise self.damaged(error) from error

    def histograms(self) -> dict[int, dict[str, Any]]:
        """These lines of histograms.jsonl by step: of each parameter least, greatest and counts. Raises InputError."""
        found = {}
        for line in self.rows():
            try:
                found[line.pop("step")] = line
                for held in line.values():
                    math.fsum([held["min"], held["max"], *held["counts"]])
            except (KeyError, TypeError) as error:
                raise self.damaged(error) from error
        return found

    def damaged(self, error: Exception) -> InputError:
        """An error in the file."""
        return InputError(f"{self.path} is damaged, or none of ours: {error}", CURE)


def follow(run_dir: Path, over: threading.Event) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl as they are added, until the run is over."""
    metrics = Tail(run_dir / METRICS)
    while True:
        is_last = over.is_set()  # asked before the file is read, which then is whole
        yield from metrics.rows()
        if is_last:
            return
        over.wait(POLL)
