"""Filters of runs by the keys of their configs."""

from typing import Any

from gpt.config.counts import as_count
from gpt.config.explain import unknown_key
from gpt.config.groups import GROUPS
from gpt.config.schema import counted_by, fields_of
from gpt.runs.listing import Entry


def check_filters(filters: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the values that dotted keys may have, from what was typed. Raises InputError for unknown keys."""
    checked = {}
    for typed, values in filters.items():
        # A group is its option: model=tiny is model.name=tiny.
        key = f"{typed}.name" if typed in GROUPS else typed
        if key != "state" and not fields_of(key):
            raise unknown_key(typed)
        checked[key] = as_count(values) if counted_by(key) else values
    return checked


def matches(entry: Entry, filters: dict[str, list[Any]]) -> bool:
    """Return whether a run has one of the values that are wanted of each key."""
    values = entry.config | {"state": entry.state}
    return all(key in values and values[key] in wanted for key, wanted in filters.items())
