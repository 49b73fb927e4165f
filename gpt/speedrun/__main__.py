"""Judge a speedrun: python -m gpt.speedrun DIR [records=FILE]

DIR is the directory of a finished sweep, sweeps=speedrun or sweeps=speedrun_gpu, as make speedrun makes it. Shows how
long every arm took to its loss, in seconds and tokens and beside nanoGPT's recipe in the same sweep, and whether that
is a record: the mean loss of five seeds or more on the whole validation split below the target, with p < 0.01. Adds a
line for every arm to speedrun/records.jsonl, or to another FILE. docs/speedrun.md has the rules.
"""

import sys

from gpt.cli import command
from gpt.console import plain_console
from gpt.errors import InputError
from gpt.files import as_path

USAGE = "python -m gpt.speedrun DIR [records=FILE]"


def main() -> None:
    from gpt.compare.arms import find_arms
    from gpt.compare.runs import find
    from gpt.compare.tables import FittedTable
    from gpt.compare.words import shorten
    from gpt.speedrun.records import RECORDS, append, as_record
    from gpt.speedrun.standings import rank, track_of
    from gpt.speedrun.tables import standings_grid, verdict

    directories, given = command.directories_and_values(sys.argv[1:], ("records",), USAGE)
    path = as_path("records", given["records"]) if "records" in given else RECORDS
    if len(directories) > 1:
        raise InputError("several directories", f"a speedrun is one sweep; usage: {USAGE}")
    selection = find(directories)
    name, track = track_of(selection)
    standings = rank(selection, find_arms(selection.runs, is_sweep=True), track)

    console = plain_console()
    console.print(FittedTable(standings_grid(standings, track), str(path)))
    print()
    for standing in standings:
        console.print(verdict(standing, track))
    not_counted = [run.name for run in selection.runs if not run.is_counted] + selection.not_started
    if not_counted:
        console.print(f"not finished, and not counted: {shorten(not_counted)}")
    append([as_record(name, standing) for standing in standings], path)
    print(f"\nrecords  {path}")


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
