"""Validation loss over fixed tokens, each once, what gzip makes of the same text, and exact answers."""

import functools
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import tiktoken
import torch
from torch import Tensor

from gpt.distributed import ALONE, World
from gpt.loss import loss_sum
from gpt.model import GPT, evaluating
from gpt.signals import Stopped, never
from gpt.tokens.loader import unpack
from gpt.tokens.windows import ID, IGNORE, NO_TARGET, Windows


def sum_over(
    batches: Iterator[Tensor],
    function: Callable[[Tensor], Tensor],
    model: GPT,
    autocast: AbstractContextManager,
    world: World,
    stop: Callable[[], bool],
) -> float:
    """The sum of a function over all batches of all ranks. Raises Stopped, on all of them, once one is to stop."""
    total = torch.zeros(2, dtype=torch.float64)  # the sum, and whether to stop: one collective, left out by no rank
    with evaluating(model):
        for batch in batches:
            if stop():
                total[1] = 1
                break
            with autocast:
                total[0] += function(batch).cpu()
    summed, stopped = world.sum(total).tolist()
    if stopped:
        raise Stopped
    return summed


@dataclass
class Validation:
    """Fixed targets of a token file, in windows of ``seq_len``: all, or about ``max_tokens`` spread evenly over it.

    Spread, because the first tokens of a file can be of one kind. Short windows and the last batch are filled up
    with targets that do not count, so the loss is the same for every ``micro_batch_size``, and a compiled model
    sees one shape.
    """

    windows: Windows
    max_tokens: int | None
    micro_batch_size: int

    def starts(self) -> np.ndarray:
        """Token offsets of the evaluated windows."""
        windows, seq_len = self.windows.n_windows, self.windows.seq_len
        taken = windows if self.max_tokens is None else min(windows, math.ceil(self.max_tokens / seq_len))
        return self.windows.starts(np.arange(taken) * windows // taken)

    def rows(self, first: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The evaluated windows, (seq_len + 1,), see :func:`gpt.tokens.loader.unpack`."""
        for start in self.starts()[first:stop].tolist():
            row = np.empty(self.windows.seq_len + 1, np.int64)
            self.windows.fill(row, start)
            yield row

    def targets(self) -> Iterator[np.ndarray]:
        """The ids that are predicted, window by window."""
        for row in self.rows():
            yield row[1:][row[1:] & NO_TARGET == 0] & ID

    @functools.cached_property
    def n_targets(self) -> int:
        """Tokens that are predicted."""
        if self.windows.all_count:
            return int(np.minimum(self.windows.seq_len, self.windows.file.n_tokens - 1 - self.starts()).sum())
        return sum(len(ids) for ids in self.targets())

    def batches(self, rank: int, world_size: int) -> Iterator[Tensor]:
        """A rank's share of the windows, (micro_batch_size, seq_len + 1)."""
        size = self.micro_batch_size
        for first in range(rank * size, len(self.starts()), world_size * size):
            batch = np.full((size, self.windows.seq_len + 1), NO_TARGET, np.int64)
            for row, filled in zip(batch, self.rows(first, first + size), strict=False):
                row[:] = filled
            yield torch.from_numpy(batch)

    @torch.no_grad()
    def loss(
        self,
        model: GPT,
        device: torch.device,
        autocast: AbstractContextManager,
        world: World = ALONE,
        stop: Callable[[], bool] = never,
    ) -> float:
        """Mean loss per token in nats, shared out over the ranks. Raises Stopped."""

        def batch_loss(batch: Tensor) -> Tensor:
            return loss_sum(model, *unpack(batch.to(device), self.windows.is_masked))

        batches = self.batches(world.rank, world.size)
        return sum_over(batches, batch_loss, model, autocast, world, stop) / self.n_targets


@dataclass
class ExactMatch:
    """The share of documents whose targets are all what the model thinks likeliest.

    After a right beginning each time, which is what a model that always takes the likeliest writes by itself, too, if
    all of it is right. Documents that do not fit the context are left out.
    """

    windows: Windows
    micro_batch_size: int

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """First token and end of each document, (N, 2)."""
        return self.windows.documents_within(self.windows.seq_len + 1)

    def batches(self, rank: int, world_size: int) -> Iterator[Tensor]:
        """A rank's share of the documents, each in a row that is as long as the longest of all."""
        ids, mask = (self.windows.file.reader(self.windows.read, name) for name in ("tokens", "loss_mask"))
        width = int((self.documents[:, 1] - self.documents[:, 0]).max())
        size = max(1, self.micro_batch_size * self.windows.seq_len // width)
        for first in range(rank * size, len(self.documents), world_size * size):
            batch = np.full((size, width), NO_TARGET, np.int64)
            for row, (start, stop) in zip(batch, self.documents[first : first + size].tolist(), strict=False):
                row[: stop - start] = ids(start, stop)
                row[: stop - start][mask(start, stop) == 0] |= NO_TARGET
            yield torch.from_numpy(batch)

    @torch.no_grad()
    def share(
        self,
        model: GPT,
        device: torch.device,
        autocast: AbstractContextManager,
        world: World = ALONE,
        stop: Callable[[], bool] = never,
    ) -> float:
        """From 0 to 1, the ranks sharing the work. Raises Stopped."""

        def matched(batch: Tensor) -> Tensor:
            inputs, targets, _ = unpack(batch.to(device), masked=False)
            likeliest = model.logits(model(inputs)).argmax(-1)  # (B, T)
            is_target = targets != IGNORE
            return (((likeliest == targets) | ~is_target).all(1) & is_target.any(1)).sum()

        batches = self.batches(world.rank, world.size)
        return sum_over(batches, matched, model, autocast, world, stop) / len(self.documents)


def exact_match(windows: Windows, micro_batch_size: int) -> ExactMatch | None:
    """The measure of a file whose documents have targets of their own; None where it has none, or none that fits."""
    if not (windows.file.has_mask and windows.file.has_documents):
        return None
    measure = ExactMatch(windows, micro_batch_size)
    return measure if len(measure.documents) else None


def per_byte(loss: float, validation: Validation, tokenizer: tiktoken.Encoding) -> dict[str, float]:
    """A validation loss per byte of text, beside what gzip needs for the same bytes (nats per byte)."""
    n_bytes, gzip_loss = bytes_and_gzip(validation, tokenizer)
    return {"val_loss_per_byte": loss * validation.n_targets / n_bytes, "gzip_loss_per_byte": gzip_loss}


def bytes_and_gzip(validation: Validation, tokenizer: tiktoken.Encoding) -> tuple[int, float]:
    """How many bytes of text the evaluated tokens are, and what ``gzip -9`` needs for them in nats per byte."""
    text = b"".join(tokenizer.decode_bytes(ids.tolist()) for ids in validation.targets())
    packed = zlib.compress(text, level=9, wbits=31)  # 31: with gzip's header
    return len(text), len(packed) * 8 * math.log(2) / len(text)


def unigram_entropy(validation: Validation) -> float:
    """Entropy (nats) of the frequencies of the evaluated tokens: the loss of a model that knows nothing else."""
    counts = np.bincount(np.concatenate(list(validation.targets())))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
