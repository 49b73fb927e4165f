"""Numbers of tokens and of steps as people write them: 1_000_000, 1e6, 300k, 5M, 1.5B. Here they become ints."""

import re
from typing import Any

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
# Two digits of exponent, so that no number takes memory before it is refused.
COUNT = re.compile(r"([+-]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)([kmbt]?)", re.IGNORECASE)
FORMS = "1000, 1_000, 1e6, 300k, 5M, 1.5M or 10B"


def as_count(value: Any) -> Any:
    """Return a count as a whole number, in a list each of them; whatever is no count stays as it is."""
    if isinstance(value, list):
        return [as_count(element) for element in value]
    match = COUNT.fullmatch(str(value)) if isinstance(value, (str, float)) else None
    if match is None:
        return value

    # Fractions are exact: 1.5M is whole, and 1.5 is not. --help, which shows the forms, need not wait for them.
    from fractions import Fraction

    digits, suffix = match.groups()
    number = Fraction(digits) * SUFFIXES[suffix.lower()]
    return int(number) if number.denominator == 1 else value
