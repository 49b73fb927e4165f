"""Made-up sums, differences, products and quotients: the answer backwards, the question no target of the loss.

(As Andrej Karpathy's "Let's build GPT" suggests in its exercises; digits backwards, because carrying goes that way.)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.pieces import Cursor, Piece
from data.sources.base import Documents
from gpt.config.schema import ArithmeticConfig
from gpt.errors import InputError
from gpt.tokens.order import derive_seed, permute

BLOCK = 4096  # problems made at once
MAX_DIGITS = 9  # so that all problems can be counted in 63 bits
DIGITS = "\n0123456789="  # the characters of every problem
# Those that an operation adds.
SIGNS = {
    "+": "+",
    "-": "-",
    "*": "*+",
    "/": "/>,r",
}


class Arithmetic(Documents):
    """Different problems in a random order: ``val_problems`` for validation, then ``problems`` for training.

    Their operands have ``digits`` digits, with zeros in front. Which problems there are, and in which order, follows
    from ``operations`` and ``digits`` alone, so those for validation stay the same whatever ``problems`` is.
    """

    has_mask = True

    def __init__(self, data: ArithmeticConfig, cache_dir: Path):
        super().__init__(data, cache_dir)

        # What can be made: known operations, on numbers that are not too large.
        is_known = bool(data.operations) and set(data.operations) <= set(ANSWERS)
        if not is_known or data.digits > MAX_DIGITS:
            raise InputError(
                f"data.operations={data.operations!r} with data.digits={data.digits} is not known",
                f"allowed: some of +-*/ such as '+-', and up to {MAX_DIGITS} digits",
            )
        self.operations = "".join(dict.fromkeys(data.operations))

        # All problems are numbered, operation after operation; nothing is divided by 0.
        self.base = 10**data.digits
        counts = []
        for operation in self.operations:
            n_second = self.base - 1 if operation == "/" else self.base
            counts.append(self.base * n_second)
        self.ends = np.cumsum(counts)
        self.n_all = int(self.ends[-1])

        # The first of them, in a random order, are taken.
        self.n_problems = data.val_problems + data.problems
        if self.n_problems > self.n_all:
            raise InputError(
                f"data.problems={data.problems:,} and data.val_problems={data.val_problems:,} are more than there are",
                f"different problems of {data.digits} digits with {self.operations}: {self.n_all:,}",
            )
        self.key = derive_seed("arithmetic", self.operations, data.digits)

    def inputs(self) -> Any:
        data = self.data
        return [
            self.operations,
            data.digits,
            data.problems,
            data.val_problems,
        ]

    def describe(self) -> str:
        return f"{self.n_problems:,} problems"

    def share(self, cursor: Cursor) -> float:
        return cursor["problem"] / self.n_problems

    @property
    def alphabet(self) -> str | None:
        characters = set(DIGITS)
        for operation in self.operations:
            characters.update(SIGNS[operation])
        return "".join(sorted(characters))

    def read_alphabet(self) -> str:
        return self.alphabet

    def pieces(self, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
        # The permutation of all problems says which comes at each position.
        begin = 0
        if cursor is not None:
            begin = cursor["problem"]
        n_val = self.data.val_problems
        for first in range(begin, self.n_problems, BLOCK):
            end = min(first + BLOCK, self.n_problems)
            positions = np.arange(first, end)
            problems = permute(positions, self.n_all, self.key)

            # A problem is a document.
            for position, problem in enumerate(problems.tolist(), start=first):
                question, answer = self._problem(problem)
                split = "val" if position < n_val else "train"
                piece = Piece(answer, True, split, question)
                yield piece, {"problem": position + 1}

    def _problem(self, number: int) -> tuple[str, str]:
        """Return problem ``number`` of all that there are, as question and answer."""
        # The operation whose range it is in, then its number within that range.
        kind = int(np.searchsorted(self.ends, number, side="right"))
        operation = self.operations[kind]
        if kind:
            number -= int(self.ends[kind - 1])

        # The operands are its digits in a system of this base.
        b, a = divmod(number, self.base)
        if operation == "/":
            b += 1
        digits = self.data.digits
        question = f"{a:0{digits}}{operation}{b:0{digits}}="
        answer = ANSWERS[operation](a, b)
        return question, f"{answer}\n"


def _backwards(number: int) -> str:
    """Return the digits of a number from the last to the first, a minus sign at the end."""
    return str(number)[::-1]


def _sum(a: int, b: int) -> str:
    return _backwards(a + b)


def _difference(a: int, b: int) -> str:
    return _backwards(a - b)


def _product(a: int, b: int) -> str:
    """Return the long multiplication: a times each digit of b from the last, shifted, and their sum; all backwards."""
    parts = []
    for position, digit in enumerate(_backwards(b)):
        product = _backwards(a * int(digit))
        parts.append("0" * position + product)
    work = "+".join(parts)
    return f"{work}={_backwards(a * b)}"


def _quotient(a: int, b: int) -> str:
    """Return the long division: dividend, quotient and remainder at each digit of a; then both results, backwards."""
    steps = []
    rest = 0
    for digit in str(a):
        part = 10 * rest + int(digit)
        quotient, rest = divmod(part, b)
        steps.append(f"{part}>{quotient}r{rest}")
    work = ",".join(steps)
    quotient, rest = divmod(a, b)
    return f"{work}={_backwards(quotient)}r{_backwards(rest)}"


ANSWERS = {
    "+": _sum,
    "-": _difference,
    "*": _product,
    "/": _quotient,
}
