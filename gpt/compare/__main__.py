"""Set runs side by side: python -m gpt.compare DIR… [baseline=NAME] [out=DIR]

DIR is the output directory of a run, or of a sweep, or any other that has runs directly below it. Runs that differ in
nothing but the seed form an arm. Says whether the runs can be compared, then losses, speed and memory of every arm and
run; with a baseline (baseline=NAME, an arm as named in the table; else the sweep's own) also each arm's difference from
it, with its 95 % interval, a test over common seeds, and a verdict. Writes compare.txt, compare.json, compare.png and
compare.html into the sweep's directory, or into out=DIR (outputs/compare, where several directories are given).
"""

import sys
from pathlib import Path

from gpt import cli
from gpt.checks import did_you_mean
from gpt.compare import render, report
from gpt.errors import InputError
from gpt.tracker import plain_console

OWN = ("baseline", "out")  # arguments with a value
USAGE = "python -m gpt.compare DIR… [baseline=NAME] [out=DIR]"


def arguments(argv: list[str]) -> tuple[list[Path], dict[str, str]]:
    """Directories, and values of what is named. An existing path is a directory, whatever its name holds.

    Raises InputError.
    """
    directories, given = [], {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        path = Path(argument).expanduser()
        if path.exists() or not (equals or argument.startswith("-")):
            directories.append(path)
        elif key not in OWN or not equals:
            raise InputError(
                f"{argument}: no such argument, and no such directory",
                f"usage: {USAGE}{did_you_mean(key.lstrip('-'), list(OWN))}",
            )
        elif not value:
            raise InputError(f"{argument} names nothing", f"usage: {USAGE}")
        else:
            given[key] = value
    if not directories:
        raise InputError("no directory is given", f"usage: {USAGE}")
    return directories, given


def main() -> None:
    directories, given = arguments(sys.argv[1:])
    out = Path(given["out"]).expanduser() if "out" in given else None
    comparison = report(directories, given.get("baseline"), out)
    console = plain_console()
    if console.is_terminal:
        console.print(render(comparison))
    else:
        print(comparison.text, end="")
    print()
    for kind, path in comparison.files.items():
        print(f"{kind}  {path}")


if __name__ == "__main__":
    sys.exit(cli.script(main, __doc__))
