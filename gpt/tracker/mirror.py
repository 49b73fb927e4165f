"""The training's end of a mirror: a process that copies the logs of a run elsewhere. It cannot disturb the training.

The process itself is a module of gpt/mirrors.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpt.console import plain_console
from gpt.files import ROOT

MODULES = {"wandb": "gpt.mirrors.wandb", "wandb_offline": "gpt.mirrors.wandb", "tensorboard": "gpt.mirrors.tensorboard"}
PATIENCE = 10.0  # seconds that a run waits for its mirror at its end
LOG = "logs/mirror.log"  # stderr of the mirror and of the library that it uses


class Mirror:
    """The mirror process of a run, if the run's tracker has one. Use in a ``with``; start it when the logs are cut.

    ``may_stay``: the process may outlive its run, for as long as it likes.
    """

    def __init__(self, tracker: str, run_dir: Path, may_stay: bool):
        self.module = MODULES.get(tracker)
        self.run_dir = run_dir
        self.may_stay = may_stay
        self.process: subprocess.Popen | None = None
        self.unread = b""  # output of the process that news() has not returned yet

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *error) -> None:
        if self.process:
            self.conclude()

    def start(self) -> None:
        """Start the process, if there is one. A failure becomes news."""
        if self.module is None:
            return
        # The process must find this project, wherever it was started from.
        python_path = str(ROOT)
        if inherited := os.environ.get("PYTHONPATH"):
            python_path += os.pathsep + inherited
        try:
            log = self.run_dir / LOG
            log.parent.mkdir(exist_ok=True)
            with open(log, "ab") as stderr:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", self.module, "--beside", str(self.run_dir.resolve())],
                    stdin=subprocess.PIPE,  # it ends with this process, however that ends
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=os.environ | {"PYTHONPATH": python_path},
                    start_new_session=True,  # Ctrl-C is for the run, which then ends its mirror
                )
            os.set_blocking(self.process.stdout.fileno(), False)
        except OSError as error:
            self._add_news(f"not started: {error}; {how_to_send_rest(self.module, self.run_dir)}")

    def news(self) -> list[str]:
        """Return the lines that the process has printed since the last call, for the user."""
        if self.process:
            # Ask for the exit code before reading, so that the last output is not lost.
            code = self.process.poll()
            with contextlib.suppress(BlockingIOError):
                while output := os.read(self.process.stdout.fileno(), 65536):
                    self.unread += output
            if code is not None:
                self.end()
            if code:
                how = signal.Signals(-code).name if code < 0 else f"code {code}"
                cure = how_to_send_rest(self.module, self.run_dir)
                self._add_news(f"ended by {how}, see {self.run_dir / LOG}; {cure}")
        # What follows the last line break is half a line.
        *lines, self.unread = self.unread.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def conclude(self) -> None:
        """Let the process copy the rest, for up to PATIENCE, and print its news."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        # The closed pipe tells the process that the run is over.
        deadline = time.monotonic() + PATIENCE
        console = plain_console()
        while self.process and time.monotonic() < deadline:
            for line in self.news():
                console.print(line)
            time.sleep(0.05)
        # Still there: leave it alone, or end it.
        if self.process and self.may_stay:
            console.print(f"mirror      goes on uploading by itself; {self.run_dir / LOG} says what it meets")
            self.process.stdout.close()
        elif self.process:
            cure = how_to_send_rest(self.module, self.run_dir)
            console.print(f"mirror      not done within {PATIENCE:.0f} s; {cure}")
            self.end()

    def end(self) -> None:
        """End the process, if it has not ended. Processes that its library has started end with it."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process = None

    def _add_news(self, text: str) -> None:
        self.unread += f"mirror      {text}\n".encode()


def what_next(tracker: str, directory: Path) -> list[str]:
    """Return the line that says how a run or a sweep is uploaded, or looked at, where that is left to the user."""
    if tracker == "wandb_offline":
        return [f"upload      python -m {MODULES[tracker]} {directory}"]
    if tracker == "tensorboard":
        return [f"look        tensorboard --logdir {directory}"]
    return []


def how_to_send_rest(module: str, run_dir: Path) -> str:
    """Return, in words for the user, the command that copies what is missing."""
    return f"for the rest: python -m {module} {run_dir}"
