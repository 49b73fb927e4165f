"""Set runs side by side: python -m gpt.compare DIR… [baseline=NAME] [out=DIR] [formats=pdf,svg]

DIR is the output directory of a run, or of a sweep, or any other that has runs directly below it. Runs that differ in
nothing but the seed form an arm. Says whether the runs can be compared, then losses, speed and memory of every arm and
run; with a baseline (baseline=NAME, an arm as named in the table; else the sweep's own) also each arm's difference from
it, with its 95 % interval, a test over common seeds, and a verdict. Writes compare.txt, compare.json, compare.png and
compare.html into the sweep's directory, or into out=DIR (outputs/compare, where several directories are given); with
formats=pdf,svg the plot in these formats too.
"""

import shlex
import sys

from gpt.cli import command
from gpt.compare import render, report
from gpt.console import plain_console
from gpt.files import as_path

OWN = ("baseline", "out", "formats")  # arguments with a value
USAGE = "python -m gpt.compare DIR… [baseline=NAME] [out=DIR] [formats=pdf,svg]"


def main() -> None:
    directories, given = command.directories_and_values(sys.argv[1:], OWN, USAGE)
    out = as_path("out", given["out"]) if "out" in given else None
    # A list as in the config, or without its brackets.
    listed = given.get("formats", "").strip("[]")
    formats = [name.strip() for name in listed.split(",") if name.strip()]
    typed = shlex.join(["python", "-m", "gpt.compare", *sys.argv[1:]])
    comparison = report(directories, given.get("baseline"), out, formats, typed)
    # In color for a terminal, and as in compare.txt for everything else.
    console = plain_console()
    if console.is_terminal:
        console.print(render(comparison))
    else:
        print(comparison.text, end="")
    print()
    if comparison.replaced:
        print(f"in place of the comparison that was in {comparison.directory}; out=DIR keeps both")
    for kind, path in comparison.files.items():
        print(f"{kind:4}  {path}")


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
