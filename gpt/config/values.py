"""Refusals of what a key cannot hold by itself. Imports no torch.

The choices and the range of each key stand beside it in gpt/config/schema.py.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from gpt.config.keys import ALLOWED, Range
from gpt.errors import InputError

LARGEST_INTEGER = 2**63 - 1  # torch and numpy count in 64 bits
WANDB_NAME = r"(?=.*\S)[^/\\#?%:]{1,128}"  # W&B's rule for the names of projects and users
# Names that torch and others have for our values.
SYNONYMS = {"gpu": "cuda", "metal": "mps", "float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}


def did_you_mean(word: str, allowed: list[str]) -> str:
    """Return a closing question for a message, or nothing when no allowed word is close."""
    if SYNONYMS.get(word) in allowed:
        return f"; did you mean {SYNONYMS[word]}?"
    longer = [name for name in allowed if name.startswith(f"{word}_")]  # gpt2_124m for gpt2
    close = longer or difflib.get_close_matches(word, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check_names(key: str, value: str, allowed: list[str]) -> None:
    """Refuse a value that is none of those allowed. Raises InputError."""
    if value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise InputError(f"{key}={value} is not known", f"allowed: {', '.join(allowed)}{hint}")


def check_wandb_name(key: str, name: str | None) -> None:
    """Refuse what cannot name a project or a user in W&B; None is its default. Raises InputError."""
    if name is not None and not re.fullmatch(WANDB_NAME, name):
        raise InputError(
            f"{key}={name!r} is no name in W&B",
            r"allowed: 1 to 128 characters, none of / \ # ? % :",
        )


def values_of(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every dotted key with its value and what it may hold (None: whatever its type may)."""
    for field in fields(section):
        key = prefix + field.name
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from values_of(value, f"{key}.")
        else:
            yield key, value, field.metadata.get(ALLOWED)


def check_64_bits(key: str, value: Any) -> None:
    """Refuse whole numbers that torch cannot count with. Raises InputError."""
    for number in _whole_numbers(value):
        if abs(number) > LARGEST_INTEGER:
            raise InputError(
                f"{key}={value} does not fit into 64 bits",
                f"allowed: up to {LARGEST_INTEGER}",
            )


def _whole_numbers(value: Any) -> Iterator[int]:
    """Yield the whole numbers in a value, at any depth of its lists."""
    if isinstance(value, list):
        for element in value:
            yield from _whole_numbers(element)
    elif isinstance(value, int):
        yield value


def check_not_too_much(key: str, value: float | None, allowed: Range) -> None:
    """Refuse what would take hours or all memory. Raises InputError."""
    if value is not None and allowed.largest is not None and value > allowed.largest:
        raise InputError(
            f"{key}={value} is too much",
            f"allowed: up to {allowed.largest:,}; {allowed.reason}",
        )


def check_range(key: str, value: Any, allowed: Range) -> None:
    """Refuse a number, or a list of numbers, outside a range; null is no number. Raises InputError."""
    if value is None:
        return
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if not allowed.contains(number):
            raise InputError(f"{key}={value} {allowed.problem}", f"allowed: {allowed.sense_in_words}")
        if allowed.smallest is not None and number < allowed.smallest:
            raise InputError(f"{key}={value} is too small", f"allowed: at least {allowed.smallest}")


def nearest(number: int, unit: int) -> str:
    """Return the multiples of a unit around a number."""
    # 0 is a multiple of everything, and of no use.
    lower = number // unit * unit
    multiples = [multiple for multiple in (lower, lower + unit) if multiple > 0]
    return " or ".join(map(str, multiples))
