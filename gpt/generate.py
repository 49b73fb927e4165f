"""Sampling with a key-value cache."""

from collections.abc import Callable

import tiktoken
import torch
from torch import Tensor

from gpt.config.schema import SampleConfig
from gpt.model import GPT, evaluating
from gpt.signals import Stopped, never
from gpt.tokens.order import derive_seed
from gpt.tokens.tokenizer import END_OF_TEXT, prompt_ids


def _next_token(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Draw one id per row from logits (B, V) -> (B, 1)."""
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.size(-1):
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Tensor,
    tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
    stop: Callable[[], bool] = never,
) -> Tensor:
    """Continue ``prompt`` (B, T) by ``tokens`` ids -> (B, T + tokens). Raises Stopped once ``stop`` returns True.

    Ids are drawn on the CPU from ``seed``, so all ranks that sample get the same ones. When the context is full, the
    model reads its newer half again, and decoding continues from there.
    """
    seq_len = model.config.seq_len
    generator = torch.Generator().manual_seed(seed)
    ids = prompt
    unread = prompt[:, -seq_len:]  # not in the cache yet
    cache = None
    with evaluating(model):
        for _ in range(tokens):
            if stop():
                raise Stopped
            # The cache holds one context; a full one is replaced.
            is_full = cache is not None and cache.length + unread.size(1) > seq_len
            if is_full:
                unread = ids[:, -max(1, seq_len // 2) :]
            if cache is None or is_full:
                cache = model.new_cache(ids.size(0), model.wte.weight.dtype)

            # The model reads the new ids alone, and the last of them predicts the next.
            hidden = model(unread, cache)[:, -1]  # (B, C)
            logits = model.logits(hidden).cpu()
            unread = _next_token(logits, temperature, top_k, generator).to(ids.device)  # (B, 1)
            ids = torch.cat([ids, unread], dim=1)
    return ids


def generate_text(
    model: GPT,
    tokenizer: tiktoken.Encoding,
    sample: SampleConfig,
    seed: int,
    step: int,
    stop: Callable[[], bool] = never,
) -> str:
    """The sample that a run with this seed writes at this step: prompt and continuation. Raises Stopped."""
    prompt = torch.tensor([prompt_ids(tokenizer, sample.prompt)], device=model.wte.weight.device)  # (1, T)
    # A seed for each step: the samples of a run do not begin with the same draws.
    ids = generate(
        model,
        prompt,
        sample.tokens,
        temperature=sample.temperature,
        top_k=sample.top_k,
        seed=derive_seed("sample", seed, step),
        stop=stop,
    )
    return tokenizer.decode(ids[0].tolist()).removeprefix(END_OF_TEXT)
