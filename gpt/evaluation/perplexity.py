"""The perplexity of text files, each token predicted after a long context."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import tiktoken
import torch
from torch import Tensor

from gpt.device import Compute
from gpt.evaluation.perplexity_files import read_texts
from gpt.evaluation.task import Measurement, Subject, Task, sum_over
from gpt.evaluation.validation import LARGEST
from gpt.loss import loss_sum
from gpt.model import GPT
from gpt.tokens.loader import unpack
from gpt.tokens.tokenizer import byte_lengths, encode, end_of_text
from gpt.tokens.windows import NO_TARGET

LOSS = "val/strided_loss"
BPB = "val/strided_bpb"


@dataclass
class Perplexity(Task):
    """The loss of text files in windows that overlap.

    A window begins ``stride`` tokens after the one before, and predicts only what that did not, so each token but
    those at the beginning has at least ``seq_len - stride`` before it ("Perplexity of fixed-length models" in the
    documentation of transformers). Each file is a document, which end-of-text precedes where the vocabulary has it.
    """

    documents: list[np.ndarray]  # ids
    seq_len: int
    stride: int
    tokenizer: tiktoken.Encoding
    micro_batch_size: int
    every: int

    @classmethod
    def build(cls, subject: Subject) -> Self:
        """Return the task for ``perplexity.files``. Raises InputError where they cannot be read or encoded."""
        config = subject.config
        separator = end_of_text(subject.tokenizer)
        documents = []
        for text in read_texts(config):
            ids = encode(subject.tokenizer, text).astype(np.int64)
            documents.append(ids if separator is None else np.insert(ids, 0, separator))
        seq_len = config.model.seq_len
        stride = config.perplexity.stride or max(1, seq_len // 2)
        return cls(documents, seq_len, stride, subject.tokenizer, config.micro_batch_size, config.tasks_every)

    @property
    def n_targets(self) -> int:
        """Tokens that are predicted: all but the first of each document."""
        return sum(len(ids) - 1 for ids in self.documents)

    @property
    def n_bytes(self) -> int:
        """Bytes of the text that is predicted."""
        lengths = byte_lengths(self.tokenizer)
        return sum(int(lengths[ids[1:]].sum()) for ids in self.documents)

    def rows(self) -> Iterator[np.ndarray]:
        """Yield the windows of all documents, (seq_len + 1,), see :func:`gpt.tokens.loader.unpack`."""
        for ids in self.documents:
            n_seen = 1  # the first token is no target
            begin = 0
            while n_seen < len(ids):
                # What earlier windows have predicted is read, and does not count.
                row = np.full(self.seq_len + 1, NO_TARGET, np.int64)
                window = ids[begin : begin + len(row)]
                row[: len(window)] = window
                row[: n_seen - begin] |= NO_TARGET
                yield row
                n_seen = begin + len(window)
                begin += self.stride

    def batches(self, rank: int, world_size: int) -> Iterator[Tensor]:
        """Yield this rank's windows, (micro_batch_size, seq_len + 1)."""
        # The ranks take turns, batch by batch; the last one is filled up with targets that do not count.
        rows = self.rows()
        for turn in itertools.cycle(range(world_size)):
            chosen = list(itertools.islice(rows, self.micro_batch_size))
            if not chosen:
                return
            if turn == rank:
                batch = np.full((self.micro_batch_size, self.seq_len + 1), NO_TARGET, np.int64)
                batch[: len(chosen)] = chosen
                yield torch.from_numpy(batch)

    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        """Return the loss in nats per token, and in bits per byte."""

        def batch_loss(batch: Tensor) -> Tensor:
            return loss_sum(model, *unpack(batch, masked=False))

        total = sum_over(self.batches(compute.world.rank, compute.world.size), batch_loss, model, compute)
        return Measurement({LOSS: total / self.n_targets, BPB: total / math.log(2) / self.n_bytes})

    def figures(self, measurement: Measurement) -> dict[str, Any]:
        loss = measurement.metrics[LOSS]
        figures: dict[str, Any] = {"loss": loss}
        if loss < LARGEST:
            figures["perplexity"] = math.exp(loss)
        return figures | {"bpb": measurement.metrics[BPB], "tokens": self.n_targets, "bytes": self.n_bytes}

    def closing(self, last: dict[str, float]) -> tuple[dict[str, float], str | None]:
        return {}, f"strided loss {last[LOSS]:.4f} nats per token, {last[BPB]:.4f} bits per byte of {self.n_bytes:,}"
