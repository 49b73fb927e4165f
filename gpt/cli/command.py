"""What the commands share: help, refusals and exit codes. Imports Hydra only when it is needed."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt.console import mute
from gpt.errors import InputError, Interrupted, TrainingError
from gpt.signals import ending_at_once

LONGEST_LINE = 500  # characters of a message, where what was given has thousands

# Seconds for which torchrun's other ranks keep silent: mostly rank 0 says the same, and torchrun then ends them.
RANK_0_FIRST = 3


def use_huge_pages() -> None:
    """Let torch ask for pages of 2 MB where a tensor fills them (Linux, CPU): touching new memory costs half.

    Before torch is imported. What the user has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def run(task: Callable[[Any], Any]) -> int:
    """Run ``task`` with the config that Hydra composes from the command line; returns the exit code."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        from gpt.cli.help import help_text

        print(help_text())
        return 0

    def hydra_run() -> None:
        from gpt.cli.compose import run_hydra

        run_hydra(task)

    return guard(hydra_run)


def script(command: Callable[[], None], about: str) -> int:
    """Run a command that has no Hydra job, or say what it is for; returns the exit code."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(about)
        return 0
    return guard(command)


def directories_and_values(argv: list[str], own: Sequence[str], usage: str) -> tuple[list[Path], dict[str, str]]:
    """Directories, and values of what ``own`` names. An existing path is a directory, whatever its name holds.

    Raises InputError.
    """
    from gpt.config.checks import did_you_mean
    from gpt.files import as_path

    directories, given = [], {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        is_own = key in own and bool(equals) and not os.path.exists(argument)
        if is_own and key in given:
            raise InputError(f"{key}={given[key]} and {argument}: two values", f"give one; usage: {usage}")
        if is_own and value:
            given[key] = value
        elif is_own or not argument:
            raise InputError(f"{argument or 'an empty argument'} names nothing", f"usage: {usage}")
        elif not (path := as_path("directory", argument)).exists() and (equals or argument.startswith("-")):
            raise InputError(
                f"{argument}: no such argument, and no such directory",
                f"usage: {usage}{did_you_mean(key.lstrip('-'), list(own))}",
            )
        elif path.resolve() in (other.resolve() for other in directories):
            raise InputError(f"{argument} is there twice", "give every directory once")
        else:
            directories.append(path)
    if not directories:
        raise InputError("no directory is given", f"usage: {usage}")
    return directories, given


def guard(command: Callable[[], None]) -> int:
    """Call ``command`` and turn the ways in which it may end into an exit code and a few lines on stderr."""
    if sys.version_info >= (3, 14):  # hydra-core 1.3's argument parser fails there with a traceback
        print("error: gptlab needs Python 3.11 to 3.13, because Hydra 1.3 fails on 3.14", file=sys.stderr)
        return 2
    use_huge_pages()
    set_by_user = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and exiting
    try:
        with ending_at_once():
            command()
    except (InputError, TrainingError, Interrupted) as error:
        if set_by_user == "1":
            traceback.print_exc()
        return report(error)
    except KeyboardInterrupt:
        print("\nstopped at once", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # nobody reads what is said, as behind | head
        mute(sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("gpt", "data"):
            raise
        print(
            f"error: the package {error.name} is missing\n  pip install -r requirements.txt, or make train",
            file=sys.stderr,
        )
        return 1
    finally:
        if set_by_user is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = set_by_user
    return 0


def report(error: InputError | TrainingError | Interrupted) -> int:
    """Say why the run ended; returns its exit code."""
    prefix = "" if isinstance(error, Interrupted) else "error: "
    if (rank := os.environ.get("RANK", "0")) != "0":
        time.sleep(RANK_0_FIRST)
        prefix += f"rank {rank}: "
    print(f"{prefix}{shortened(error) if isinstance(error, InputError) else error}", file=sys.stderr)
    return error.exit_code


def shortened(error: InputError) -> str:
    """What is wrong and what helps, on four lines at most, none of which fills the screen."""
    half = LONGEST_LINE // 2
    lines = str(error).splitlines()[:4]
    return "\n".join(f"{line[:half]} … {line[-half:]}" if len(line) > LONGEST_LINE else line for line in lines)
