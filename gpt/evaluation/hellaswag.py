"""HellaSwag (Zellers et al. 2019): which of four endings follows a beginning."""

from dataclasses import dataclass
from typing import Self

from gpt.device import Compute
from gpt.evaluation.hellaswag_file import read_examples
from gpt.evaluation.likelihood import Question, log_likelihoods
from gpt.evaluation.task import Measurement, Subject, Task
from gpt.model import GPT
from gpt.tokens.tokenizer import encode

ACC = "val/hellaswag_acc"
ACC_NORM = "val/hellaswag_acc_norm"


@dataclass
class HellaSwag(Task):
    """The fraction of beginnings after which the model finds the right ending the likeliest.

    In completion style, as the lecture scores it (build-nanogpt, hellaswag.py): the model reads each ending after the
    beginning. acc takes the ending of the highest log-probability, acc_norm that of the highest per token.
    """

    questions: list[Question]
    labels: list[int]
    batch_tokens: int
    every: int

    @classmethod
    def build(cls, subject: Subject) -> Self:
        """Return the task for the examples of the file. Raises InputError where they cannot be read or encoded."""
        config = subject.config
        # The space belongs to the ending: GPT-2's tokens of words begin with it.
        questions = []
        labels = []
        for context, endings, label in read_examples(config):
            continuations = [encode(subject.tokenizer, " " + ending).tolist() for ending in endings]
            questions.append(Question(encode(subject.tokenizer, context).tolist(), continuations))
            labels.append(label)
        return cls(questions, labels, config.micro_batch_size * config.model.seq_len, config.tasks_every)

    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        n_right = 0
        n_right_norm = 0
        found = log_likelihoods(self.questions, model, compute, self.batch_tokens)
        # The sum prefers short endings, the mean does not.
        for question, label, likelihoods in zip(self.questions, self.labels, found, strict=True):
            sums = [likelihood.log_probability for likelihood in likelihoods]
            means = [total / len(ids) for total, ids in zip(sums, question.continuations, strict=True)]
            n_right += sums.index(max(sums)) == label
            n_right_norm += means.index(max(means)) == label
        n = len(self.labels)
        return Measurement({ACC_NORM: n_right_norm / n, ACC: n_right / n}, details={"examples": n})

    def closing(self, last: dict[str, float]) -> tuple[dict[str, float], str | None]:
        return {}, f"HellaSwag {last[ACC_NORM]:.2%} of {len(self.labels):,} examples (acc_norm; acc {last[ACC]:.2%})"
