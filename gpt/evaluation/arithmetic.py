"""GPT-3's arithmetic: sums, differences and products, asked in words (Brown et al. 2020, section 3.9.1)."""

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from gpt.device import Compute
from gpt.evaluation.likelihood import Question, log_likelihoods
from gpt.evaluation.task import Measurement, Subject, Task
from gpt.model import GPT
from gpt.tokens.order import derive_seed
from gpt.tokens.tokenizer import encode

KEY = "val/arithmetic"
SEED = 0  # of the problems, which are the same for every run


class Form(NamedTuple):
    """The words of a problem, and its answer."""

    words: str
    answer: Callable[..., int]


class Kind(NamedTuple):
    """A kind of problem: digits of its numbers, how many there are, and its forms, which are equally likely."""

    digits: int
    n_numbers: int
    forms: list[Form]


PLUS = [Form("{} plus {}", operator.add)]
MINUS = [Form("{} minus {}", operator.sub)]
TIMES = [Form("{} times {}", operator.mul)]
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def _composed() -> list[Form]:
    """Return the forms of two operations, the second in parentheses."""
    forms = []
    for (sign, outer), (inner_sign, inner) in itertools.product(SIGNS.items(), repeat=2):
        words = f"{{}}{sign}({{}}{inner_sign}{{}})"
        forms.append(Form(words, lambda a, b, c, outer=outer, inner=inner: outer(a, inner(b, c))))
    return forms


# Named as in the paper's table 3.9; 1DC is composed of three numbers of one digit.
KINDS = {
    "2D+": Kind(2, 2, PLUS),
    "2D-": Kind(2, 2, MINUS),
    "3D+": Kind(3, 2, PLUS),
    "3D-": Kind(3, 2, MINUS),
    "4D+": Kind(4, 2, PLUS),
    "4D-": Kind(4, 2, MINUS),
    "5D+": Kind(5, 2, PLUS),
    "5D-": Kind(5, 2, MINUS),
    "2Dx": Kind(2, 2, TIMES),
    "1DC": Kind(1, 3, _composed()),
}


def problems(name: str, number: int) -> list[tuple[str, str]]:
    """Return the first problems of a kind, as pairs of a question and its answer; each number is equally likely."""
    kind = KINDS[name]
    random = np.random.default_rng(derive_seed("arithmetic", SEED, name))
    drawn = random.integers(0, 10**kind.digits, size=(number, kind.n_numbers)).tolist()
    random = np.random.default_rng(derive_seed("arithmetic form", SEED, name))
    forms = random.integers(0, len(kind.forms), size=number).tolist()
    pairs = []
    for numbers, form in zip(drawn, forms, strict=True):
        words, answer = kind.forms[form]
        pairs.append((f"Q: What is {words.format(*numbers)}?\nA:", f" {answer(*numbers)}"))
    return pairs


@dataclass
class Arithmetic(Task):
    """The fraction of problems of which greedy decoding writes the exact answer, after ``shots`` solved ones."""

    questions: dict[str, list[Question]]  # by kind
    batch_tokens: int
    every: int

    @classmethod
    def build(cls, subject: Subject) -> Self:
        """Return the task for the problems of all kinds. Raises InputError where they cannot be encoded."""
        config = subject.config
        shots = config.arithmetic.shots
        questions: dict[str, list[Question]] = {}
        for name in KINDS:
            # The solved problems come first, and are none of those that are asked.
            pairs = problems(name, shots + config.arithmetic.problems)
            beginning = "".join(f"{question}{answer}\n\n" for question, answer in pairs[:shots])
            questions[name] = []
            for question, answer in pairs[shots:]:
                context = encode(subject.tokenizer, beginning + question).tolist()
                questions[name].append(Question(context, [encode(subject.tokenizer, answer).tolist()]))
        return cls(questions, config.micro_batch_size * config.model.seq_len, config.tasks_every)

    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        # All kinds together, in batches of similar lengths.
        asked = [question for questions in self.questions.values() for question in questions]
        found = iter(log_likelihoods(asked, model, compute, self.batch_tokens))

        # An answer is exact where greedy decoding would write each of its tokens.
        by_kind = {}
        for name, questions in self.questions.items():
            right = [next(found)[0].is_greedy for _ in questions]
            by_kind[name] = sum(right) / len(right)
        return Measurement({KEY: sum(by_kind.values()) / len(by_kind)}, details=by_kind)

    def closing(self, last: dict[str, float]) -> tuple[dict[str, float], str | None]:
        return {}, f"arithmetic {last[KEY]:.2%} of the answers exact"
