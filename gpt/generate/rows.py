"""Rows that are decoded together: several prompts, several samples of each."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from gpt.config.schema import SampleConfig
from gpt.generate.decode import stream
from gpt.generate.sampling import Sampler
from gpt.model import GPT

MOST_ROWS = 16  # at a time: each of them has a cache, 75 MB for GPT-2 124M


@dataclass(slots=True)
class Row:
    """The ids of a prompt, and the seed of its continuation."""

    ids: list[int]
    seed: int


def decode_rows(model: GPT, rows: list[Row], sample: SampleConfig) -> Iterator[tuple[int, int]]:
    """Yield pairs of a row's index and its next id, until every row has ``sample.tokens`` of them.

    Rows with prompts of one length are decoded together. Others are not padded to that length: then each row gets the
    ids that it gets alone, no position needs a mask, and all rows of a batch fill the context at the same token.
    """
    of_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        of_length.setdefault(len(row.ids), []).append(index)

    for same in of_length.values():
        for first in range(0, len(same), MOST_ROWS):
            batch = same[first : first + MOST_ROWS]
            prompt = torch.tensor([rows[index].ids for index in batch], device=model.wte.weight.device)  # (B, T)
            seeds = [rows[index].seed for index in batch]
            sampler = Sampler(sample.temperature, sample.top_k, sample.top_p, seeds)
            for next_ids in stream(model, prompt, sample.tokens, sampler):
                yield from zip(batch, next_ids[:, 0].tolist(), strict=True)


def in_order(pairs: Iterable[tuple[int, int]], tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of :func:`decode_rows` row by row: one row as it comes, the others when its turn is over."""
    waiting: dict[int, deque[int]] = {}
    current = 0
    n_yielded = 0
    for index, token in pairs:
        waiting.setdefault(index, deque()).append(token)
        while waiting.get(current):
            yield current, waiting[current].popleft()
            n_yielded += 1
            if n_yielded == tokens:
                current += 1
                n_yielded = 0
