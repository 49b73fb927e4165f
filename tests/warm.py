"""Commands of the project in processes forked from one that has imported torch: seconds less for every test.

What such a command starts itself is forked too: ranks, jobs of a sweep, mirrors, the workers of torchrun. Tests of what
happens while a process imports, and of what it imports, start commands as users do, with subprocess.
"""

import atexit
import importlib
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOAD = """
    torch._dynamo matplotlib.figure scipy.stats data.preparation gpt.cli.hydra_run gpt.cluster.launch gpt.cli.plan
    gpt.sweep gpt.trainer warm_up wandb pandas requests
""".split()
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(PRELOAD)
# Environment variables of a session: where the warm process listens, and where composed configs are kept.
ADDRESS = "GPTLAB_TESTS_WARM_PROCESS"
COMPOSED = "GPTLAB_TESTS_COMPOSED"
FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).parents[1]
FILES = ("train.py", "eval.py")  # and the modules of these packages are what is forked where a command starts it
PACKAGES = ("gpt.", "data.", "torch.distributed.run")


def process(target: Callable[..., None], *args: Any) -> multiprocessing.Process:
    """A process forked from the warm one, which is started if it has not been; the process runs ``target(*args)``."""
    _ensure_running()
    return WARM.Process(target=target, args=args)


def _ensure_running() -> None:
    """Start the warm process, once. It finds modules in this directory by its environment: Python 3.11 gives it no path."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *filter(None, [before])])
    forkserver._forkserver.ensure_running()  # and not the module's, which knows nothing of use_that_of_all
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before


def start_for_workers() -> None:
    """Start the warm process, for all workers of this session."""
    _ensure_running()
    os.environ[ADDRESS] = forkserver._forkserver._forkserver_address


def use_that_of_all() -> None:
    """Have this worker's commands forked from the process that the session has started."""
    server = forkserver._forkserver
    server._forkserver_address = os.environ[ADDRESS]
    server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # the session holds the one that counts
    server.ensure_running = resource_tracker.ensure_running


@dataclass(frozen=True)
class Settings:
    """What a test may set of a command's process: its environment, constants, and the size up to which files grow."""

    environment: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)  # by dotted name, such as gpt.cluster.slurm.POLL
    file_size: int | None = None

    def apply(self) -> None:
        """Set them in this process."""
        for name, value in self.constants.items():
            module, _, constant = name.rpartition(".")
            imported = importlib.import_module(module)
            assert hasattr(imported, constant), name
            setattr(imported, constant, value)
        if self.file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size, self.file_size))


def run(script: str, arguments: tuple[str, ...], cwd: Path, settings: Settings, output: Path) -> None:
    """Run a script or a module as if it had been called, its output in the files ``output``/out and ``output``/err."""
    from gpt.signals import end_with

    assert "warm_up" in sys.modules, "the warm process could not import it"
    os.setsid()
    end_with(os.getppid())
    for name, number in (("out", 1), ("err", 2)):  # a test may have made a pipe of that name
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    fork_what_is_started()
    os.environ.clear()
    os.environ.update(settings.environment)
    os.chdir(cwd)
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    settings.apply()
    become([str(ROOT / script) if script in FILES else script, *arguments])


def serve(connection: Connection, modules: Sequence[str], settings: Settings) -> None:
    """Import modules, and run the commands that come through ``connection`` in processes forked from this one."""
    from gpt.signals import end_with

    end_with(os.getppid())
    fork_what_is_started()
    os.environ.clear()
    os.environ.update(settings.environment)
    for module in modules:
        importlib.import_module(module)
    settings.apply()
    while asked := connection.recv():
        done = subprocess.run(**asked, capture_output=True, text=True, timeout=120)
        connection.send(done)


def become(argv: Sequence[str]) -> None:
    """Be the command ``argv``: the path of a script, or the name of a module, and its arguments."""
    name = argv[0]
    sys.argv = list(argv)
    if name.endswith(".py"):
        sys.path.insert(0, str(Path(name).parent))
        runpy.run_path(name, run_name="__main__")
    else:
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def fork_what_is_started() -> None:
    """Let this process fork ranks and commands of the project where it would start a Python for them."""
    multiprocessing.set_start_method("fork", force=True)  # as it is for a user; inherited was forkserver
    multiprocessing.context._concrete_contexts["spawn"] = FORK
    execute = subprocess._fork_exec

    def fork_or_execute(arguments, programs, close_fds, keep, cwd, environment, *rest):
        called = command_of([os.fsdecode(argument) for argument in arguments])
        if called is None:
            return execute(arguments, programs, close_fds, keep, cwd, environment, *rest)
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            return pid
        code = 1
        try:
            pipes, (_, new_session, *_), before = rest[:8], rest[8:15], rest[15]
            settle_in(pipes, cwd, environment, new_session, before)
            become(called)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            leave(code)

    subprocess._fork_exec = fork_or_execute


def command_of(arguments: list[str]) -> list[str] | None:
    """The command that a Python is started for, as :func:`become` takes it, if it is one of those to be forked."""
    program, *rest = arguments
    if program != sys.executable:
        return None
    if rest[:1] == ["-u"]:
        rest = rest[1:]
    if rest[:1] == ["-m"] and rest[1].startswith(PACKAGES):
        return rest[1:]
    return rest if rest and Path(rest[0]) in [ROOT / name for name in FILES] else None


def settle_in(pipes: Sequence[int], cwd: bytes | None, environment: list[bytes] | None, new_session: bool, before):
    """Do in a forked process what starting a program does: files, directory, environment and signals."""
    from hydra.core.global_hydra import GlobalHydra

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0) if pipes[0] < 0 else os.dup2(pipes[0], 0)
    for number, descriptor in ((1, pipes[3]), (2, pipes[5])):
        if descriptor >= 0:
            os.dup2(descriptor, number)
    os.closerange(3, 1024)  # such as the lock on the sweep's directory
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", errors="backslashreplace", buffering=1)
    resource_tracker._resource_tracker._fd = None  # one of its own is started
    if cwd is not None:
        os.chdir(cwd)
    if environment is not None:
        os.environ.clear()
        os.environ.update(os.fsdecode(entry).split("=", 1) for entry in environment)
    for number in signal.Signals:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.unraisablehook = sys.__unraisablehook__
    atexit._clear()
    GlobalHydra.instance().clear()
    if new_session:
        os.setsid()
    if before is not None:
        before()


def leave(code: int) -> None:
    """End this process as the interpreter does at its end, and not as whoever it was forked from would."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue
    os._exit(code)
