"""The validation loss over fixed tokens, each once, and what simpler models make of the same tokens."""

import functools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import tiktoken
import torch
from torch import Tensor

from gpt.checkpoint.files import AVERAGES
from gpt.device import Compute
from gpt.evaluation.metrics import PREFIX
from gpt.evaluation.task import Measurement, Subject, Task, sum_over
from gpt.loss import loss_sum
from gpt.model import GPT
from gpt.tokens.loader import unpack
from gpt.tokens.tokenizer import byte_lengths, end_of_text
from gpt.tokens.windows import ID, NO_TARGET, Windows, open_windows

LOSS = "val/loss"
BPB = "val/bpb"
ENOUGH_BYTES = 1_000_000  # of some windows of a text, for zlib to do about as well on them as on all of it
LARGEST = 700  # nats whose perplexity is a number of 64 bits


@dataclass
class Validation(Task):
    """The mean loss of fixed targets of a token file, in windows of ``seq_len``.

    All targets, or about ``max_tokens`` spread evenly over the file, since its first tokens may be unlike the rest.
    Short windows and the last batch are filled up with targets that do not count. So the loss is the same for every
    ``micro_batch_size``, and a compiled model sees one shape.
    """

    windows: Windows
    tokenizer: tiktoken.Encoding
    max_tokens: int | None
    micro_batch_size: int
    every: int
    measures_averages: ClassVar[bool] = True

    @classmethod
    def build(cls, subject: Subject) -> Self | None:
        """Return the task for the validation file."""
        config = subject.config
        windows = open_windows(subject.val, config.model.seq_len, config.data.documents, config.data.read)
        trainer = config.trainer
        return cls(windows, subject.tokenizer, trainer.eval_tokens, config.micro_batch_size, trainer.eval_every)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Token offsets of the evaluated windows."""
        n_windows = self.windows.n_windows
        n_chosen = n_windows
        if self.max_tokens is not None:
            n_chosen = min(n_windows, math.ceil(self.max_tokens / self.windows.seq_len))
        chosen = np.arange(n_chosen) * n_windows // n_chosen
        return self.windows.starts(chosen)

    def rows(self, first: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield the evaluated windows, (seq_len + 1,), see :func:`gpt.tokens.loader.unpack`."""
        for start in self.starts[first:stop].tolist():
            row = np.empty(self.windows.seq_len + 1, np.int64)
            self.windows.fill(row, start)
            yield row

    def targets(self) -> Iterator[np.ndarray]:
        """Yield the ids that are predicted, window by window."""
        for row in self.rows():
            targets = row[1:]
            yield targets[targets & NO_TARGET == 0] & ID

    @functools.cached_property
    def n_targets(self) -> int:
        """Tokens that are predicted."""
        if self.windows.all_count:
            to_the_end = self.windows.file.n_tokens - 1 - self.starts
            return int(np.minimum(self.windows.seq_len, to_the_end).sum())
        return sum(len(ids) for ids in self.targets())

    def batches(self, rank: int, world_size: int) -> Iterator[Tensor]:
        """Yield this rank's windows, (micro_batch_size, seq_len + 1)."""
        size = self.micro_batch_size
        for first in range(rank * size, len(self.starts), world_size * size):
            batch = np.full((size, self.windows.seq_len + 1), NO_TARGET, np.int64)
            for row, window in zip(batch, self.rows(first, first + size), strict=False):
                row[:] = window
            yield torch.from_numpy(batch)

    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        """Return the loss in nats per token, and in bits per byte of text, where there is text."""

        def batch_loss(batch: Tensor) -> Tensor:
            return loss_sum(model, *unpack(batch, self.windows.is_masked))

        world = compute.world
        batches = self.batches(world.rank, world.size)
        number = math.ceil(len(self.starts) / (self.micro_batch_size * world.size))
        total = sum_over(batches, batch_loss, model, compute, number)
        metrics = {LOSS: total / self.n_targets}
        if self.n_bytes:
            metrics[BPB] = total / math.log(2) / self.n_bytes
        return Measurement(metrics)

    def figures(self, measurement: Measurement) -> dict[str, Any]:
        loss = measurement.metrics[LOSS]
        figures = {"val_loss": loss}
        if loss < LARGEST:
            figures["perplexity"] = math.exp(loss)
        figures["tokens"] = self.n_targets
        if BPB in measurement.metrics:
            figures["bpb"] = measurement.metrics[BPB]
            figures |= self._zlib_mark()
        return figures

    def references(self) -> dict[str, float]:
        return {"unigram entropy": self.unigram_entropy()}

    def closing(self, last: dict[str, float]) -> tuple[dict[str, float], str | None]:
        line = f"validation loss {last[LOSS]:.4f} nats per token"
        mark = {}
        if BPB in last:
            line += f", {last[BPB]:.4f} bits per byte"
            mark = self._zlib_mark()
        if mark:
            line += f" (zlib level 9 on the same bytes: {mark['gzip_bpb']:.4f})"
        for name in AVERAGES:
            of_average = last.get(f"{PREFIX}{name}_loss")
            line += f"; {of_average:.4f} with weights={name}" if of_average is not None else ""
        return mark, line

    @functools.cached_property
    def n_bytes(self) -> int:
        """Bytes of the text that is predicted.

        The loss of all targets is divided by them: end-of-text has no bytes, and its loss is the price of saying where
        documents end.
        """
        lengths = byte_lengths(self.tokenizer)
        return sum(int(lengths[ids].sum()) for ids in self.targets())

    def _zlib_mark(self) -> dict[str, float]:
        """Return zlib's bits per byte as a figure; none of few and distant windows, which repeat little."""
        is_whole = len(self.starts) == self.windows.n_windows
        if is_whole or self.n_bytes >= ENOUGH_BYTES:
            return {"gzip_bpb": self.gzip_bpb()}
        return {}

    def gzip_bpb(self) -> float:
        """Return the bits that zlib's level 9 needs for each byte of the text that is predicted."""
        # End-of-text is no text: to decode it would give the thirteen letters of its name.
        separator = end_of_text(self.tokenizer)
        pieces = []
        for ids in self.targets():
            if separator is not None:
                ids = ids[ids != separator]
            pieces.append(self.tokenizer.decode_bytes(ids.tolist()))
        text = b"".join(pieces)

        packed = zlib.compress(text, level=9, wbits=31)  # 31: in gzip's format
        return len(packed) * 8 / len(text)

    def unigram_entropy(self) -> float:
        """Return the entropy (nats) of the token frequencies: the loss of a model that knows nothing else."""
        counts = np.bincount(np.concatenate(list(self.targets())))
        probabilities = counts[counts > 0] / counts.sum()
        return float(-(probabilities * np.log(probabilities)).sum())
