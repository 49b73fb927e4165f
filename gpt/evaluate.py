"""Validation loss over fixed tokens, each once, and what gzip makes of the same text."""

import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import tiktoken
import torch

from gpt.loss import IGNORE, loss_sum
from gpt.model import GPT
from gpt.tokenfile import TokenFile


@dataclass(slots=True)
class Validation:
    """The first ``max_tokens`` targets of a token file (all if None), in windows of the model's seq_len.

    The last window and the last batch are filled up with targets that do not count, so the loss is the same
    for every ``micro_batch_size`` and a compiled model sees one shape.
    """

    file: TokenFile
    read: str
    max_tokens: int | None
    micro_batch_size: int

    @property
    def n_targets(self) -> int:
        """Tokens that are predicted."""
        available = self.file.n_tokens - 1
        return available if self.max_tokens is None else min(available, self.max_tokens)

    def ids(self) -> np.ndarray:
        """The evaluated tokens, the first of which is only input."""
        return self.file.reader(self.read)(0, self.n_targets + 1)

    @torch.no_grad()
    def loss(self, model: GPT, device: torch.device, autocast: AbstractContextManager) -> float:
        """Mean loss per token in nats. Leaves the model in the mode in which it was."""
        was_training, width = model.training, model.config.seq_len
        model.eval()
        ids, batch_tokens = self.ids(), self.micro_batch_size * width
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, self.n_targets, batch_tokens):
            taken = ids[start : start + batch_tokens + 1].astype(np.int64)
            inputs = np.zeros(batch_tokens, np.int64)
            targets = np.full(batch_tokens, IGNORE, np.int64)
            inputs[: len(taken) - 1], targets[: len(taken) - 1] = taken[:-1], taken[1:]
            x, y = (torch.from_numpy(a).view(self.micro_batch_size, width).to(device) for a in (inputs, targets))
            with autocast:
                total += loss_sum(model, x, y).double().cpu()
        model.train(was_training)
        return total.item() / self.n_targets


def bytes_and_gzip(validation: Validation, tokenizer: tiktoken.Encoding) -> tuple[int, float]:
    """How many bytes of text the evaluated tokens are, and what ``gzip -9`` needs for them in nats per byte."""
    text = tokenizer.decode_bytes(validation.ids()[1:].tolist())
    packed = zlib.compress(text, level=9, wbits=31)  # 31: with gzip's header
    return len(text), len(packed) * 8 * np.log(2) / len(text)
