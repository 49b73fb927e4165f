"""Validation loss over fixed tokens, each once, and what gzip makes of the same text."""

import math
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import tiktoken
import torch
from torch import Tensor

from gpt.distributed import ALONE, World
from gpt.loss import IGNORE, loss_sum
from gpt.model import GPT
from gpt.tokenfile import TokenFile


@dataclass(slots=True)
class Validation:
    """Fixed targets of a token file, in windows of ``seq_len``: all, or about ``max_tokens`` spread evenly over it.

    Spread, because the first tokens of a file can be of one kind. Short windows and the last batch are filled up
    with targets that do not count, so the loss is the same for every ``micro_batch_size``, and a compiled model
    sees one shape.
    """

    file: TokenFile
    read: str
    seq_len: int
    max_tokens: int | None
    micro_batch_size: int

    def starts(self) -> np.ndarray:
        """Token offsets of the evaluated windows."""
        windows = math.ceil((self.file.n_tokens - 1) / self.seq_len)
        taken = windows if self.max_tokens is None else min(windows, math.ceil(self.max_tokens / self.seq_len))
        return np.arange(taken) * windows // taken * self.seq_len

    def windows(self, part: slice = slice(None)) -> Iterator[np.ndarray]:
        """The evaluated windows: up to seq_len + 1 ids, the first of which is only input."""
        ids = self.file.reader(self.read)
        for start in self.starts()[part].tolist():
            yield ids(start, min(start + self.seq_len + 1, self.file.n_tokens))

    @property
    def n_targets(self) -> int:
        """Tokens that are predicted."""
        return int(np.minimum(self.seq_len, self.file.n_tokens - 1 - self.starts()).sum())

    def batches(self, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A rank's share of the inputs and targets, both (micro_batch_size, seq_len)."""
        size = self.micro_batch_size
        for first in range(rank * size, len(self.starts()), world_size * size):
            taken = list(self.windows(slice(first, first + size)))
            inputs = np.zeros((self.micro_batch_size, self.seq_len), np.int64)
            targets = np.full_like(inputs, IGNORE)
            for row, window in enumerate(taken):
                inputs[row, : len(window) - 1], targets[row, : len(window) - 1] = window[:-1], window[1:]
            yield torch.from_numpy(inputs), torch.from_numpy(targets)

    @torch.no_grad()
    def loss(self, model: GPT, device: torch.device, autocast: AbstractContextManager, world: World = ALONE) -> float:
        """Mean loss per token in nats, shared out over the ranks. Leaves the model in the mode in which it was."""
        was_training = model.training
        model.eval()
        total = torch.zeros((), dtype=torch.float64)
        for inputs, targets in self.batches(world.rank, world.size):
            with autocast:
                total += loss_sum(model, inputs.to(device), targets.to(device)).cpu()
        model.train(was_training)
        return world.sum(total).item() / self.n_targets


def per_byte(loss: float, validation: Validation, tokenizer: tiktoken.Encoding) -> dict[str, float]:
    """A validation loss per byte of text, beside what gzip needs for the same bytes (nats per byte)."""
    n_bytes, gzip_loss = bytes_and_gzip(validation, tokenizer)
    return {"val_loss_per_byte": loss * validation.n_targets / n_bytes, "gzip_loss_per_byte": gzip_loss}


def bytes_and_gzip(validation: Validation, tokenizer: tiktoken.Encoding) -> tuple[int, float]:
    """How many bytes of text the evaluated tokens are, and what ``gzip -9`` needs for them in nats per byte."""
    text = b"".join(tokenizer.decode_bytes(window[1:].tolist()) for window in validation.windows())
    packed = zlib.compress(text, level=9, wbits=31)  # 31: with gzip's header
    return len(text), len(packed) * 8 * math.log(2) / len(text)


def unigram_entropy(validation: Validation) -> float:
    """Entropy (nats) of the frequencies of the evaluated tokens: the loss of a model that knows nothing else."""
    counts = np.bincount(np.concatenate([window[1:] for window in validation.windows()]))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
