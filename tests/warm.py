"""A command of the project in a process forked from one that has imported torch: seconds less for every test.

What the command starts itself is forked too: ranks, jobs of a sweep. The tests of Ctrl-C, of ranks that fail and of
several machines start commands as users do, with subprocess.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO

PRELOAD = """
    torch._dynamo matplotlib.figure scipy.stats data.preparation gpt.cli.hydra_run gpt.cluster.launch gpt.cli.plan gpt.sweep gpt.trainer
""".split()
FORK = multiprocessing.get_context("fork")


def run(root: Path, script: str, arguments: tuple[str, ...], cwd: Path, env: dict[str, str], said: Path) -> None:
    """Run a script or a module as if it had been called, its output in the files ``said``/out and ``said``/err."""
    from gpt.signals import end_with
    from gpt.sweep import slots

    os.setsid()
    end_with(os.getppid())
    multiprocessing.set_start_method("fork", force=True)  # as it is for a user; inherited was forkserver
    multiprocessing.context._concrete_contexts["spawn"] = FORK
    slots.Process._start = staticmethod(Forked)
    with open(said / "out", "wb") as out, open(said / "err", "wb") as err:
        become([str(root / script), *arguments], script.endswith(".py"), cwd, env, out, err)


def become(argv: list[str], is_file: bool, cwd: Path, env: dict[str, str], out: IO[bytes], err: IO[bytes]) -> None:
    """Be the command ``argv``."""
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    if is_file:
        runpy.run_path(argv[0], run_name="__main__")
    else:
        runpy.run_module(Path(argv[0]).name, run_name="__main__", alter_sys=True)


class Forked:
    """A job of a sweep; to :class:`gpt.sweep.slots.Process` what a subprocess.Popen is."""

    def __init__(self, command: list[str], environment: dict[str, str], slot, log: IO[bytes]):
        self.process = FORK.Process(target=self.job, args=(command[1:], environment, slot, log, os.getpid()))
        self.process.start()

    @staticmethod
    def job(argv: list[str], environment: dict[str, str], slot, log: IO[bytes], parent: int) -> None:
        from hydra.core.global_hydra import GlobalHydra

        from gpt.sweep.slots import _enter

        _enter(slot, parent)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log.fileno(), 1)
        os.closerange(3, 1024)  # such as the lock on the sweep's directory
        resource_tracker._resource_tracker._fd = None  # one of its own is started
        GlobalHydra.instance().clear()
        become(argv, True, Path.cwd(), environment, sys.stdout, sys.stdout)

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> None:
        self.process.join()
