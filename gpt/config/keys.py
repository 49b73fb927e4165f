"""Declarations of what a key may hold, for the fields in gpt/config/schema.py. Checks, help and docs read them.

Imports next to nothing: --help needs it at once.
"""

import math
from collections.abc import Iterable
from typing import Any

# Names of declarations in the metadata of a field.
ALLOWED = "allowed"
COUNTS = "counts"  # what a key counts, "tokens" or "steps": it takes 5M and 1e6 (gpt/config/counts.py)


class Choice:
    """One of several values, from a list or from the keys of a dict that may still grow."""

    def __init__(self, values: Iterable[str]):
        self.values = values

    @property
    def in_words(self) -> str:
        """The values, for a person."""
        return ", ".join(self.values)


class Text:
    """Any text; what form it must have is checked elsewhere, if at all."""

    in_words = "text"


class Range:
    """Numbers between bounds.

    ``at_least``, ``above``, ``at_most`` and ``below`` bound what makes sense, and ``problem`` is what is said of the
    rest. ``smallest`` and ``largest`` stop slips of the keyboard that would take hours or all memory: they lie far
    beyond what anyone has used, for which ``reason`` gives the evidence.
    """

    def __init__(
        self,
        *,
        at_least: float | None = None,
        above: float | None = None,
        at_most: float | None = None,
        below: float | None = None,
        smallest: float | None = None,
        largest: float | None = None,
        reason: str = "",
        problem: str = "makes no sense",
    ):
        self.at_least = at_least
        self.above = above
        self.at_most = at_most
        self.below = below
        self.smallest = smallest
        self.largest = largest
        self.reason = reason
        self.problem = problem

    def contains(self, value: float) -> bool:
        """True where a number makes sense."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    @property
    def sense_in_words(self) -> str:
        """The numbers that make sense, for a person."""
        return _bounds_in_words(self.at_least, self.above, self.at_most, self.below)

    @property
    def in_words(self) -> str:
        """The numbers that are accepted, for a person: ``largest`` closes a range that is open at its top."""
        at_most = self.largest if self.at_most is None and self.below is None else self.at_most
        return _bounds_in_words(self.at_least, self.above, at_most, self.below)


def _bounds_in_words(
    at_least: float | None,
    above: float | None,
    at_most: float | None,
    below: float | None,
) -> str:
    """Bounds for a person: at most one at each end."""
    # An open bound at the bottom.
    if above is not None and at_most is not None:
        return f"more than {above:,}, up to {at_most:,}"
    if above is not None:
        return f"more than {above:,}" if below is None else f"between {above:,} and {below:,}"

    # A closed one, and one of either kind, or none, at the top.
    if at_most is not None:
        return f"0 to {at_most:,}" if at_least == 0 else f"between {at_least:,} and {at_most:,}"
    if below is not None:
        return f"{at_least:,} up to, not including, {below:,}"
    return "0 or more" if at_least == 0 else f"at least {at_least:,}"


# --- declarations for the fields of the schema

Allowed = Choice | Range | Text


def choice(values: Iterable[str]) -> Any:
    """Declare a key that takes one of some values."""
    return _declare({ALLOWED: Choice(values)})


def number(counts: str | None = None, **bounds: Any) -> Any:
    """Declare a key that takes a number, or a list of numbers, within bounds (:class:`Range`), and what it counts."""
    if counts is None:
        return _declare({ALLOWED: Range(**bounds)})
    return _declare({ALLOWED: Range(**bounds), COUNTS: counts})


def pairs(counts: str) -> Any:
    """Declare a key that takes a list of pairs of whole numbers, and what they count."""
    return _declare({COUNTS: counts})


def text() -> Any:
    """Declare a key that takes any text."""
    return _declare({ALLOWED: Text()})


def _declare(metadata: dict[str, Any]) -> Any:
    """Return a field of a dataclass without a default, which stands in conf/."""
    from dataclasses import field  # takes as long as all the rest of --help

    return field(metadata=metadata)
