"""Names and groups of runs in words, short enough for one line of a warning."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from gpt.compare.arms import Arm
from gpt.compare.runs import Run

SHOWN = 4  # names in a list, and lists in a warning
SHOWN_OF_GROUP = 2  # names in each of several lists


def group(items: Iterable, key: Callable[..., Hashable]) -> dict[Any, list]:
    """Group items that have a key in common, in the order in which they come."""
    groups: dict[Any, list] = {}
    for item in items:
        alike = groups.setdefault(key(item), [])
        alike.append(item)
    return groups


def name_runs(arms: list[Arm], runs: list[Run], shown: int = SHOWN) -> str:
    """Name runs in words: an arm all of whose finished runs are meant by its label."""
    names = []
    for arm in arms:
        finished = arm.finished
        meant = []
        for run in finished:
            if run in runs:
                meant.append(run.name)
        is_whole = len(meant) == len(finished)
        if meant and is_whole:
            names.append(arm.label)
        else:
            names += meant
    return shorten(names, shown=shown)


def name_groups(arms: list[Arm], groups: dict[Any, list[Run]]) -> str:
    """Return values in words, each with its runs."""
    parts = []
    for value, runs in groups.items():
        words = f"{value:,}" if isinstance(value, int) else value
        names = name_runs(arms, runs, SHOWN_OF_GROUP)
        parts.append(f"{words} ({names})")
    return shorten(parts, "; ")


def name_others(arms: list[Arm], groups: dict[Any, list[Run]]) -> str:
    """Return the runs that have one thing, and those that have another, whose values nobody could read."""
    names = [name_runs(arms, runs, SHOWN_OF_GROUP) for runs in groups.values()]
    return shorten(names, "; another for ")


def shorten(names: Iterable[str], separator: str = ", ", shown: int = SHOWN) -> str:
    """Return a list in words that does not fill the screen."""
    names = list(names)
    text = separator.join(names[:shown])
    n_more = len(names) - shown
    if n_more > 0:
        text += f" and {n_more} more"
    return text
