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


def next_token(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
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
    """Continue ``prompt`` (B, T) by ``tokens`` ids -> (B, T + tokens). Ids are drawn on the CPU from ``seed``.

    When the context is full, its newer half is read anew and decoding goes on from there. Raises Stopped.
    """
    ids, seq_len, generator = prompt, model.config.seq_len, torch.Generator().manual_seed(seed)
    unread, caches = ids[:, -seq_len:], None
    with evaluating(model):
        for _ in range(tokens):
            if stop():
                raise Stopped
            if caches is None or caches.length + unread.size(1) > seq_len:
                if caches is not None:
                    unread = ids[:, -max(1, seq_len // 2) :]
                caches = model.new_caches(ids.size(0), model.wte.weight.dtype)
            hidden = model(unread, caches)[:, -1]  # (B, C)
            unread = next_token(model.logits(hidden).cpu(), temperature, top_k, generator).to(ids.device)
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
