"""The interface of an evaluation task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import tiktoken
import torch
from torch import Tensor

from gpt.config.schema import Config
from gpt.device import Compute
from gpt.evaluation.metrics import PREFIX
from gpt.model import GPT, evaluating
from gpt.optimizer.averages import Averages
from gpt.signals import Stopped
from gpt.tokens.tokenfile import TokenFile
from gpt.tokens.tokenizer import get_tokenizer


@dataclass(frozen=True)
class Subject:
    """The input of a task: config, tokenizer and, for tasks that read data, the validation file."""

    config: Config
    tokenizer: tiktoken.Encoding
    val: TokenFile | None

    @classmethod
    def of_data(cls, config: Config, val: TokenFile) -> Self:
        """Return the subject of a run whose tokenizer is that of its data."""
        return cls(config, get_tokenizer(val.tokenizer, val.chars), val)


@dataclass(frozen=True)
class Measurement:
    """Metrics by their key in metrics.jsonl, such as ``val/loss``, or a text for samples.txt.

    ``details`` are figures, and ``pictures`` PNG files by name, of which eval.py alone makes use.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    text: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def of_average(self, name: str) -> "Measurement":
        """Return the metrics under the name of an average of the weights: ``val/ema_loss`` for ``val/loss``."""
        return Measurement({f"{PREFIX}{name}_{key.removeprefix(PREFIX)}": v for key, v in self.metrics.items()})


class Task(ABC):
    """One kind of measurement. Training repeats it every ``every`` tokens and after the last step."""

    every: int
    measures_averages: ClassVar[bool] = False  # whether averages of the weights are measured too, beside the weights

    @classmethod
    @abstractmethod
    def build(cls, subject: Subject) -> Self | None:
        """Return the task, or None if config and data leave it nothing to measure."""

    @abstractmethod
    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        """Measure the model as it is after ``step``, on all ranks together.

        Raises Stopped, on all ranks, once one of them is to stop.
        """

    def figures(self, measurement: Measurement) -> dict[str, Any]:
        """Return what ``eval.py`` shows, by name."""
        metrics = {key.rpartition("/")[2]: value for key, value in measurement.metrics.items()}
        return metrics | measurement.details

    def references(self) -> dict[str, float]:
        """Return losses to compare the model's with, by name."""
        return {}

    def closing(self, last: dict[str, float]) -> tuple[dict[str, float], str | None]:
        """Return further figures for result.json, and a line for the terminal, at the end of a run.

        ``last`` holds the last value of every metric.
        """
        return {}, None


def due_tasks(tasks: dict[str, Task], before: int, after: int, is_last: bool) -> list[str]:
    """Return the names of the tasks for which a step from ``before`` to ``after`` tokens completes an interval."""
    return [name for name, task in tasks.items() if is_last or after // task.every > before // task.every]


def measure_each(
    tasks: list[Task], model: GPT, step: int, compute: Compute, averages: Averages
) -> Iterator[Measurement | None]:
    """Yield the measurements of tasks, and of the averages of the weights by those that measure these too.

    None, on all ranks, and then no more, once one of them is to stop.
    """
    try:
        with averages.evaluated():
            for task in tasks:
                yield task.measure(model, step, compute)
        for task in tasks:
            for average in averages.begun if task.measures_averages else []:
                with average.applied():
                    measurement = task.measure(model, step, compute)
                yield measurement.of_average(average.name)
    except Stopped:
        yield None


def sum_over(
    batches: Iterator[Tensor],
    function: Callable[[Tensor], Tensor],
    model: GPT,
    compute: Compute,
    number: int | None = None,
) -> float:
    """Sum a function over all batches of all ranks; ``number`` is that of this rank's batches, if it is known.

    Raises Stopped, on all ranks, once one of them is to stop.
    """
    # The sum, and whether to stop: one collective for both, which no rank leaves out.
    total = torch.zeros(2, dtype=torch.float64)
    # Autocast keeps the weights that it has cast until it ends.
    with torch.no_grad(), evaluating(model), compute.autocast:
        for batch in compute.track(batches, number):
            if compute.stop():
                total[1] = 1
                break
            total[0] += function(batch.to(compute.device)).cpu()
    summed, stopped = compute.world.sum(total).tolist()
    if stopped:
        raise Stopped
    return summed
