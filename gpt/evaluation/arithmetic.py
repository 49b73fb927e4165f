"""GPT-3's arithmetic: sums, differences and products, asked in words (Brown et al. 2020, section 3.9.1)."""

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


class Kind(NamedTuple):
    """A kind of problem: digits of its numbers, how many there are, its words and its answer."""

    digits: int
    n_numbers: int
    words: str
    answer: Callable[..., int]


# Named as in the paper's table 3.9; 1DC is composed of three numbers of one digit.
KINDS = {
    "2D+": Kind(2, 2, "{} plus {}", lambda a, b: a + b),
    "2D-": Kind(2, 2, "{} minus {}", lambda a, b: a - b),
    "3D+": Kind(3, 2, "{} plus {}", lambda a, b: a + b),
    "3D-": Kind(3, 2, "{} minus {}", lambda a, b: a - b),
    "4D+": Kind(4, 2, "{} plus {}", lambda a, b: a + b),
    "4D-": Kind(4, 2, "{} minus {}", lambda a, b: a - b),
    "5D+": Kind(5, 2, "{} plus {}", lambda a, b: a + b),
    "5D-": Kind(5, 2, "{} minus {}", lambda a, b: a - b),
    "2Dx": Kind(2, 2, "{} times {}", lambda a, b: a * b),
    "1DC": Kind(1, 3, "{}+({}*{})", lambda a, b, c: a + b * c),
}


def problems(name: str, number: int) -> list[tuple[str, str]]:
    """Return the first problems of a kind, as pairs of a question and its answer; each number is equally likely."""
    kind = KINDS[name]
    random = np.random.default_rng(derive_seed("arithmetic", SEED, name))
    drawn = random.integers(0, 10**kind.digits, size=(number, kind.n_numbers)).tolist()
    pairs = []
    for numbers in drawn:
        words = kind.words.format(*numbers)
        pairs.append((f"Q: What is {words}?\nA:", f" {kind.answer(*numbers)}"))
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
