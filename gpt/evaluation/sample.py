"""A sample: text that the model writes."""

from dataclasses import dataclass
from typing import Self

import tiktoken

from gpt.config.schema import SampleConfig
from gpt.device import Compute
from gpt.evaluation.task import Measurement, Subject, Task
from gpt.generate.text import generate_text
from gpt.model import GPT


@dataclass
class Sample(Task):
    """A continuation of ``sample.prompt``, drawn from the seed of the run and the step."""

    config: SampleConfig
    tokenizer: tiktoken.Encoding
    seed: int
    every: int

    @classmethod
    def build(cls, subject: Subject) -> Self | None:
        """Return the task unless ``sample.tokens`` is 0."""
        config = subject.config
        if config.sample.tokens == 0:
            return None
        return cls(config.sample, subject.tokenizer, config.seed, config.trainer.eval_every)

    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        """Sample on every rank, so that a model whose parameters are spread over the ranks can take part."""

        def stop() -> bool:
            return compute.world.any(compute.stop())  # agreed on, so that all ranks take the same forward passes

        return Measurement(text=generate_text(model, self.tokenizer, self.config, self.seed, step, stop))
