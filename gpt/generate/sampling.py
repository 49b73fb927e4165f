"""The next token of each row, drawn from its logits."""

import torch
from torch import Tensor

from gpt.errors import NotFinite
from gpt.tokens.order import derive_seed

NEVER = float("-inf")  # the logit of what is not drawn


def row_seed(seed: int, index: int) -> int:
    """Return the seed of one of several rows; the first one has ``seed`` itself."""
    return seed if index == 0 else derive_seed("row", seed, index)


class Sampler:
    """Draws one id per row, each from a generator of its own: no draw depends on which other rows there are.

    Ids are drawn on the CPU, so that all ranks and devices get the same ones.
    """

    def __init__(self, temperature: float, top_k: int | None, top_p: float | None, seeds: list[int]):
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, logits: Tensor) -> Tensor:
        """Draw from logits (B, V) on any device -> (B, 1) on the CPU. Raises NotFinite."""
        logits = logits.cpu().float() / self.temperature
        if self.top_k is not None and self.top_k < logits.size(-1):
            logits = _top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = _top_p(logits, self.top_p)

        # Each row by itself, as if it were alone.
        probabilities = logits.softmax(dim=-1)
        if not probabilities.isfinite().all():
            raise NotFinite("the model's logits are not finite: its training diverged, or its weights are damaged")
        ids = []
        for row, generator in zip(probabilities.split(1), self.generators, strict=True):
            ids.append(torch.multinomial(row, 1, generator=generator))
        return torch.cat(ids)


def _top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the ``k`` likeliest tokens of each row (Fan et al. 2018), and what equals the last of them."""
    kth = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < kth, NEVER)


def _top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the nucleus of each row: the fewest likeliest tokens that have probability ``p`` (Holtzman et al. 2020)."""
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(dim=-1)
    # A token is outside if the likelier ones have that probability already. The likeliest one never is.
    of_likelier = probabilities.cumsum(dim=-1) - probabilities
    of_likelier[:, 0] = 0
    is_outside = torch.empty_like(order, dtype=torch.bool).scatter(-1, order, of_likelier >= p)
    return logits.masked_fill(is_outside, NEVER)
