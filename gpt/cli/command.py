"""The frame of every command: help, refusals and exit codes. Imports Hydra only when it is needed."""

import atexit
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.console import mute
from gpt.errors import InputError, Interrupted, TrainingError

if TYPE_CHECKING:
    from gpt.cli.run_checks import CheckedRun

# Characters of a line of a message; a refused argument may have thousands.
LONGEST_LINE = 500
# Lines of a message.
MOST_LINES = 4
# Seconds for which torchrun's other ranks keep silent: mostly rank 0 says the same, and torchrun then ends them.
RANK_0_FIRST = 3


def run(task: "Callable[[CheckedRun], Any]") -> int:
    """Run ``task`` with what the command line asks for, composed and checked; return the exit code."""
    if _asks_for_help():
        from gpt.cli.help import help_text

        return _print_help(help_text(_config_dirs(sys.argv[1:])))

    def compose_and_run() -> None:
        from gpt.cli.hydra_run import run_hydra

        run_hydra(task)

    return _guard(compose_and_run)


def script(command: Callable[[], None], about: str) -> int:
    """Run a command that has no Hydra job, or print ``about``; return the exit code."""
    if _asks_for_help():
        return _print_help(about)
    return _guard(command)


def _asks_for_help() -> bool:
    return "--help" in sys.argv[1:] or "-h" in sys.argv[1:]


def _config_dirs(argv: list[str]) -> list[Path]:
    """Return the directories of options that --config-dir names."""
    directories = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            directories.append(Path(value if equals else following).expanduser())
    return directories


def _print_help(text: str) -> int:
    """Print the answer to --help; return the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return _end_unread()
    return 0


def _end_unread() -> int:
    """End without a word, because nobody reads the output any more, as behind ``| head``; return the exit code."""
    mute(sys.stdout.fileno())
    return 1


def directories_and_values(argv: list[str], own: Sequence[str], usage: str) -> tuple[list[Path], dict[str, str]]:
    """Return the directories among the arguments, and the values of the keys in ``own``.

    An existing path is a directory, even if its name looks like KEY=VALUE. Raises InputError.
    """
    from gpt.config.values import did_you_mean
    from gpt.files import as_path

    directories = []
    values = {}
    for argument in argv:
        key, equals, value = argument.partition("=")

        # A key, once, with a value.
        if key in own and equals and not os.path.exists(argument):
            if key in values:
                raise InputError(f"{key}={values[key]} and {argument}: two values", f"give one; usage: {usage}")
            if not value:
                raise InputError(f"{argument} names nothing", f"usage: {usage}")
            values[key] = value
            continue

        # Or else a directory, once.
        if not argument:
            raise InputError("an empty argument names nothing", f"usage: {usage}")
        path = as_path("directory", argument)
        if not path.exists() and (equals or argument.startswith("-")):
            hint = did_you_mean(key.lstrip("-"), list(own))
            raise InputError(f"{argument}: no such argument, and no such directory", f"usage: {usage}{hint}")
        if any(path.resolve() == other.resolve() for other in directories):
            raise InputError(f"{argument} is there twice", "give every directory once")
        directories.append(path)
    if not directories:
        raise InputError("no directory is given", f"usage: {usage}")
    return directories, values


def _guard(command: Callable[[], None]) -> int:
    """Call ``command``; turn the ways in which it may end into an exit code and a few lines on stderr."""
    if sys.version_info >= (3, 14):  # hydra-core 1.3's argument parser fails there with a traceback
        print("error: gptlab needs Python 3.11 to 3.13, because Hydra 1.3 fails on 3.14", file=sys.stderr)
        return 2
    from gpt.cluster.environment import set_environment
    from gpt.signals import ending_at_once  # not for --help, of which it would be half the time

    set_environment()
    atexit.register(gc.freeze)  # or else the interpreter looks for garbage in all of torch, which takes a second
    set_by_user = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and exiting
    try:
        with ending_at_once():
            command()
        sys.stdout.flush()  # here, where a closed pipe is no traceback
    except (InputError, TrainingError, Interrupted) as error:
        if set_by_user == "1":
            traceback.print_exc()
        return _report(error)
    except KeyboardInterrupt:
        print("\nstopped at once", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        return _end_unread()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("gpt", "data"):
            raise
        cure = "pip install -r requirements.txt, or make train"
        print(f"error: the package {error.name} is missing\n  {cure}", file=sys.stderr)
        return 1
    finally:
        # Other processes get the variable as the user has set it.
        if set_by_user is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = set_by_user
    return 0


def _report(error: InputError | TrainingError | Interrupted) -> int:
    """Print why the command ended; return its exit code."""
    prefix = "" if isinstance(error, Interrupted) else "error: "
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(RANK_0_FIRST)
        prefix += f"rank {rank}: "
    message = _shortened(error) if isinstance(error, InputError) else str(error)
    print(prefix + message, file=sys.stderr)
    return error.exit_code


def _shortened(error: InputError) -> str:
    """Return problem and cure on a few lines, none of which fills the screen."""
    half = LONGEST_LINE // 2
    lines = []
    for line in str(error).splitlines()[:MOST_LINES]:
        is_long = len(line) > LONGEST_LINE
        lines.append(f"{line[:half]} … {line[-half:]}" if is_long else line)
    return "\n".join(lines)
