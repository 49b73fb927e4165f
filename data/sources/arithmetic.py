"""Sums, differences, products and quotients, made up here: the answer backwards, the question no target of the loss.

(As Andrej Karpathy's "Let's build GPT" suggests in its exercises; digits backwards, because carrying goes that way.)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.sources.base import Documents
from data.sources.pieces import Cursor, Piece
from gpt.config.schema import ArithmeticConfig
from gpt.errors import InputError
from gpt.tokens.order import derive_seed, permute

BLOCK = 4096  # problems drawn at once
MAX_DIGITS = 9  # so that all problems can be counted in 63 bits


class Arithmetic(Documents):
    """Different problems in a random order: ``val_problems`` for validation, then ``problems`` for training.

    Their operands have ``digits`` digits, with zeros in front. Which problems there are, and in which order, follows
    from ``operations`` and ``digits`` alone, so those for validation stay the same whatever ``problems`` is.
    """

    has_mask = True

    def __init__(self, data: ArithmeticConfig, cache_dir: Path):
        super().__init__(data, cache_dir)
        if not data.operations or set(data.operations) - set("+-*/") or data.digits > MAX_DIGITS:
            raise InputError(
                f"data.operations={data.operations!r} with data.digits={data.digits} is not known",
                f"allowed: some of +-*/ such as '+-', and up to {MAX_DIGITS} digits",
            )
        self.operations = "".join(dict.fromkeys(data.operations))
        self.base = 10**data.digits
        counts = [self.base * (self.base - (operation == "/")) for operation in self.operations]
        self.ends = np.cumsum(counts)
        self.n_problems = data.val_problems + data.problems
        if self.n_problems > self.ends[-1]:
            raise InputError(
                f"data.problems={data.problems:,} and data.val_problems={data.val_problems:,} are more than there are",
                f"different problems of {data.digits} digits with {self.operations}: {self.ends[-1]:,}",
            )
        self.key = derive_seed("arithmetic", self.operations, data.digits)

    def inputs(self) -> Any:
        """See :class:`data.sources.base.Source`."""
        return [self.operations, self.data.digits, self.data.problems, self.data.val_problems]

    def describe(self) -> str:
        """See :class:`data.sources.base.Source`."""
        return f"{self.n_problems:,} problems"

    def share(self, cursor: Cursor) -> float:
        """See :class:`data.sources.base.Source`."""
        return cursor["problem"] / self.n_problems

    @property
    def alphabet(self) -> str | None:
        """See :class:`data.sources.base.Source`."""
        signs = {"+": "+", "-": "-", "*": "*+", "/": "/>,r"}
        return "".join(sorted({*"\n0123456789=", *"".join(signs[operation] for operation in self.operations)}))

    def read_alphabet(self) -> str:
        """See :class:`data.sources.base.Source`."""
        return self.alphabet

    def pieces(self, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
        """See :class:`data.sources.base.Documents`."""
        begin = cursor["problem"] if cursor else 0
        for first in range(begin, self.n_problems, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, self.n_problems))
            for number, drawn in zip(numbers.tolist(), permute(numbers, int(self.ends[-1]), self.key), strict=True):
                question, answer = self.problem(int(drawn))
                split = "val" if number < self.data.val_problems else "train"
                yield Piece(answer, True, split, question), {"problem": number + 1}

    def problem(self, number: int) -> tuple[str, str]:
        """Problem ``number`` of all that there are, as question and answer."""
        kind = int(np.searchsorted(self.ends, number, side="right"))
        operation, number = self.operations[kind], number - int(self.ends[kind - 1] if kind else 0)
        if operation == "/":
            a, b = number % self.base, 1 + number // self.base
        else:
            a, b = number % self.base, number // self.base
        digits = self.data.digits
        return f"{a:0{digits}}{operation}{b:0{digits}}=", f"{ANSWERS[operation](a, b)}\n"


def backwards(number: int) -> str:
    """The digits of a number from the last to the first, a minus sign at the end."""
    return str(number)[::-1]


def product(a: int, b: int) -> str:
    """Long multiplication: a times each digit of b from the last, shifted, and their sum; all backwards."""
    parts = ["0" * place + backwards(a * int(digit)) for place, digit in enumerate(backwards(b))]
    return f"{'+'.join(parts)}={backwards(a * b)}"


def quotient(a: int, b: int) -> str:
    """Long division: what is divided at each digit of a, its quotient and remainder; then both, backwards."""
    steps, rest = [], 0
    for digit in str(a):
        part = 10 * rest + int(digit)
        rest = part % b
        steps.append(f"{part}>{part // b}r{rest}")
    return f"{','.join(steps)}={backwards(a // b)}r{backwards(a % b)}"


ANSWERS = {"+": lambda a, b: backwards(a + b), "-": lambda a, b: backwards(a - b), "*": product, "/": quotient}
