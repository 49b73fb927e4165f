"""Filters of runs by the keys of their configs."""

from typing import Any

from gpt.config.counts import as_count
from gpt.config.explain import unknown_key
from gpt.config.groups import GROUPS
from gpt.config.lookup import counted_by, fields_of
from gpt.config.values import check_names, did_you_mean
from gpt.errors import InputError
from gpt.runs.listing import STATES, Entry

MOST_NAMED = 8  # values in a message


def check_filters(filters: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the values that dotted keys may have, from what was typed. Raises InputError."""
    checked = {}
    for typed, values in filters.items():
        # A group is its option: model=tiny is model.name=tiny.
        key = f"{typed}.name" if typed in GROUPS else typed
        if key == "state":
            for state in values:
                check_names(key, state, STATES)
        elif not fields_of(key):
            if typed in GROUPS:
                raise InputError(f"{typed} is no key of a run", "a run keeps its name: name=…, or a part of the recipe")
            raise unknown_key(typed, ("state",))
        checked[key] = as_count(values) if counted_by(key) else values
    return checked


def matches(entry: Entry, filters: dict[str, list[Any]]) -> bool:
    """Return whether a run has one of the values that are wanted of each key."""
    values = entry.config | {"state": entry.state}
    return all(key in values and _is_one_of(values[key], wanted) for key, wanted in filters.items())


def explain_none(entries: list[Entry], filters: dict[str, list[Any]]) -> list[str]:
    """Return, for each key of whose wanted values no run has any, the values that there are."""
    lines = []
    for key, wanted in filters.items():
        if any(matches(entry, {key: wanted}) for entry in entries):
            continue
        present = dict.fromkeys(str((entry.config | {"state": entry.state}).get(key)) for entry in entries)
        values = sorted(present)
        n_more = len(values) - MOST_NAMED
        more = f" and {n_more} more" if n_more > 0 else ""
        typed = ",".join(map(str, wanted))
        hint = did_you_mean(typed, values)
        lines.append(f"no run has {key}={typed}; there are {', '.join(values[:MOST_NAMED])}{more}{hint}")
    return lines


def _is_one_of(value: Any, wanted: list[Any]) -> bool:
    """Return whether a value is wanted; of a list, one of its elements is enough."""
    elements = value if isinstance(value, list) else []
    return value in wanted or any(element in wanted for element in elements)
