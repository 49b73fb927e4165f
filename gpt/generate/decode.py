"""Decoding with a key-value cache."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gpt.generate.sampling import Sampler, row_seed
from gpt.layers.cache import KVCache
from gpt.model import GPT, evaluating
from gpt.signals import Stopped, never


@torch.no_grad()
def stream(
    model: GPT,
    prompt: Tensor,
    tokens: int,
    sampler: Sampler,
    stop: Callable[[], bool] = never,
) -> Iterator[Tensor]:
    """Yield the ids (B, 1) that continue ``prompt`` (B, T), one token after the other.

    When the context is full, the model reads its newer half again, and decoding continues from there: every token has
    at least that half as its context, and costs the same on average however long the text becomes. (A window that
    moves by one token would be read again for each of them, because positions are part of what the cache holds.)
    Raises Stopped once ``stop`` returns True.
    """
    seq_len = model.config.seq_len
    device = prompt.device
    n_rows, length = prompt.shape
    ids = torch.cat([prompt, prompt.new_empty(n_rows, tokens)], dim=1)  # (B, T + tokens)
    begin = max(0, length - seq_len)  # of what is not in the cache yet
    cache = model.new_cache(n_rows, model.wte.weight.dtype)
    with evaluating(model):
        for end in range(length, length + tokens):
            if stop():
                raise Stopped
            # The cache holds one context; a full one is replaced.
            if cache.length + end - begin > seq_len:
                begin = end - max(1, seq_len // 2)
                cache = model.new_cache(n_rows, model.wte.weight.dtype)

            # The model reads the new ids alone, and the last of them predicts the next.
            logits = _next_logits(model, ids[:, begin:end], cache)
            next_ids = sampler.draw(logits).to(device)  # (B, 1)
            ids[:, end : end + 1] = next_ids
            begin = end
            yield next_ids


def _next_logits(model: GPT, ids: Tensor, cache: KVCache) -> Tensor:
    """Read ids (B, T) and return the logits of the token after them, (B, V)."""
    hidden = model(ids, cache)[:, -1]  # (B, C)
    if hidden.size(0) == 1:
        return model.logits(hidden)
    # The same with rows as columns. The head is GPT-2's largest matrix, and on the CPU this product takes a third of
    # the time of the other for 2 or 4 rows, and half of it for 8 or 16.
    return model.finish_logits((model.lm_head.weight @ hidden.T).T.contiguous())


def generate(
    model: GPT,
    prompt: Tensor,
    tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
    top_p: float | None = None,
    stop: Callable[[], bool] = never,
) -> Tensor:
    """Continue ``prompt`` (B, T) by ``tokens`` ids -> (B, T + tokens). Raises Stopped once ``stop`` returns True.

    Row i draws from ``row_seed(seed, i)``.
    """
    seeds = [row_seed(seed, index) for index in range(prompt.size(0))]
    sampler = Sampler(temperature, top_k, top_p, seeds)
    new_ids = list(stream(model, prompt, tokens, sampler, stop))
    return torch.cat([prompt, *new_ids], dim=1)
