"""List runs and sweeps: python -m gpt.runs [DIR…] [KEY=VALUE]… [sort=COLUMN] [format=json]

Shows every run and sweep below DIR (outputs/), with its state, model, text, size in parameters, tokens, validation
loss, date, and the commit of its code. A key of the config, or state, keeps only the runs with that value: model=tiny
seed=1,2 state=failed. sort=loss puts the lowest loss first, sort=-loss the highest; other columns are run, state,
model, data, size, tokens, when and commit. format=json prints the same for programs. Damaged directories are named and
skipped.
"""

import json
import os
import sys
from typing import Any

from gpt.cli import command
from gpt.config.values import check_names
from gpt.console import plain_console
from gpt.errors import InputError

OWN = ("sort", "format")  # arguments with a value
USAGE = "python -m gpt.runs [DIR…] [KEY=VALUE]… [sort=COLUMN] [format=json]"
DEFAULT = "outputs"


def main() -> None:
    from gpt.compare.tables import FittedTable, wrapped
    from gpt.runs.listing import list_runs
    from gpt.runs.select import check_filters, explain_none, matches
    from gpt.runs.tables import COLUMNS, as_json, remarks, runs_grid, sort_entries, sweeps_grid

    # Directories, how to show them, and filters.
    filters = []
    others = []
    for argument in sys.argv[1:]:
        key, equals, _ = argument.partition("=")
        is_filter = equals and key not in OWN and not os.path.exists(argument)
        (filters if is_filter else others).append(argument)
    if all(argument.partition("=")[0] in OWN for argument in others):
        others.append(DEFAULT)
    directories, given = command.directories_and_values(others, OWN, USAGE)
    column = given.get("sort", "when")
    form = given.get("format", "text")
    check_names("sort", column.removeprefix("-"), list(COLUMNS))
    check_names("format", form, ["text", "json"])
    for directory in directories:
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory", f"give one that holds runs; usage: {USAGE}")

    wanted = check_filters(_values(filters))

    listing = list_runs(directories)
    entries = [entry for entry in listing.runs if matches(entry, wanted)]
    entries = sort_entries(entries, column)
    if form == "json":
        print(json.dumps(as_json(entries, listing), indent=1))
        return

    console = plain_console()
    console.print(FittedTable(runs_grid(entries), "format=json"))
    notes = remarks(entries, column)
    if listing.runs and not entries:
        notes = explain_none(listing.runs, wanted)
    for note in notes:
        console.print(wrapped(f"\n{note}"))
    if listing.sweeps and not filters:
        console.print(FittedTable(sweeps_grid(listing), "format=json"))
    for error in listing.skipped:
        console.print(f"\nskipped  {error.problem}")


def _values(arguments: list[str]) -> dict[str, list[Any]]:
    """Return the values that were typed for each key; several are alternatives. Raises InputError."""
    from hydra.core.override_parser.types import OverrideType, QuotedString

    from gpt.cli.arguments import parse

    values: dict[str, list[Any]] = {}
    for override in parse(arguments):
        key = override.key_or_group
        is_one_or_a_choice = override.is_choice_sweep() or not override.is_sweep_override()
        if override.type != OverrideType.CHANGE or not is_one_or_a_choice or key in values:
            raise InputError(f"{override.input_line} is no filter", "allowed: KEY=VALUE or KEY=A,B, once for each key")
        value = override.value()
        choices = value.list if override.is_choice_sweep() else [value]
        values[key] = [choice.text if isinstance(choice, QuotedString) else choice for choice in choices]
    return values


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
