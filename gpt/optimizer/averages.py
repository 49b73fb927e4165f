"""Averages of the weights of a run: kept beside them, or by the optimizer itself, which then trains others."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt.config.optimizer_checks import averages_itself, falls, schedule_falls
from gpt.config.schema import Config


class Average:
    """An average of all weights since ``start`` tokens, updated after each step; empty before.

    It is the plain mean until a step counts 1 - ``decay``, and from then on exponential; a decay of 1 is the mean to
    the end (latest weights: Kaddour 2022). ``count`` is the number of steps in it.
    """

    def __init__(self, name: str, model: nn.Module, decay: float, start: float = 0.0):
        self.name = name
        self.decay = decay
        self.start = start
        self.count = 0
        self.weights = dict(model.named_parameters())
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, tokens: int) -> None:
        """Take in the weights of the step that has brought the run to ``tokens``."""
        if tokens <= self.start:
            self.count = 0  # of a run that was made longer
            return
        self.count += 1
        if self.count == 1:
            self.tensors = {name: p.detach().clone() for name, p in self.weights.items()}
            return
        weight = max(1 - self.decay, 1 / self.count)
        torch._foreach_lerp_(list(self.tensors.values()), list(self.weights.values()), weight)

    def load(self, tensors: dict[str, Tensor], count: int) -> None:
        """Take over an average that was saved."""
        self.count = count
        self.tensors = {}
        if count:
            self.tensors = {name: tensors[name].to(p.device) for name, p in self.weights.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside, and then its own again, bit by bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights of the model and the averaged ones."""
        for name, p in self.weights.items():
            own = p.clone()
            p.copy_(self.tensors[name])
            self.tensors[name].copy_(own)


@dataclass(slots=True)
class Averages:
    """All averages of a run: those ``kept`` beside the weights, and the optimizers that average their own ``weights``.

    Such an optimizer has ``train()`` and ``eval()``, between which the weights change.
    """

    kept: list[Average] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    weights: list[nn.Parameter] = field(default_factory=list)

    @property
    def begun(self) -> list[Average]:
        """The averages that have weights in them."""
        return [average for average in self.kept if average.count]

    def update(self, tokens: int) -> None:
        """Take in the weights of the step that has brought the run to ``tokens``."""
        for average in self.kept:
            average.update(tokens)

    def evaluated(self) -> AbstractContextManager[None]:
        """Give the model inside the weights that are evaluated and saved, and then those of training again."""
        return self._of_optimizers() if self.optimizers else nullcontext()

    @contextmanager
    @torch.no_grad()
    def _of_optimizers(self) -> Iterator[None]:
        """Switch the optimizers to evaluation inside. The weights of training are kept, not computed back."""
        # To compute them back from the average would round them.
        own = [p.detach().clone() for p in self.weights]
        for optimizer in self.optimizers:
            optimizer.eval()
        try:
            yield
        finally:
            for optimizer in self.optimizers:
                optimizer.train()
            for p, weights in zip(self.weights, own, strict=True):
                p.copy_(weights)


def build_averages(config: Config, model: nn.Module, optimizers: list[Optimizer]) -> Averages:
    """Return the averages that a config asks for, by itself or by its optimizer.

    Raises InputError for a schedule, or another average, that such an optimizer does not go with.
    """
    # Those that keys ask for.
    trainer = config.trainer
    kept = []
    if trainer.ema is not None:
        kept.append(Average("ema", model, trainer.ema))
    if trainer.average_from is not None:
        start = trainer.average_from * config.total_tokens
        kept.append(Average("average", model, decay=1.0, start=start))

    # Those of optimizers that switch between weights.
    switching = [optimizer for optimizer in optimizers if hasattr(optimizer, "train") and hasattr(optimizer, "eval")]
    if not switching:
        return Averages(kept)

    # Those of a class that a user names are known here alone.
    name = type(switching[0]).__name__
    if falls(config.schedule):
        raise schedule_falls(name, config.schedule)
    if kept:
        raise averages_itself(name, f"trainer.{'average_from' if trainer.ema is None else 'ema'}")
    return Averages([], switching, list(model.parameters()))
