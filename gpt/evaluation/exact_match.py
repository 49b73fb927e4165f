"""Exact answers: the accuracy of greedy decoding on documents that have targets of their own."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gpt.device import Compute
from gpt.evaluation.task import Measurement, Subject, Task, sum_over
from gpt.model import GPT
from gpt.tokens.loader import unpack
from gpt.tokens.windows import IGNORE, NO_TARGET, Windows, open_windows

KEY = "val/exact_match"


@dataclass
class ExactMatch(Task):
    """The fraction of documents of which the model finds every target the likeliest token.

    Each target is predicted after the right beginning. A model that always takes the likeliest token writes all of
    them by itself exactly if all are right. Documents longer than the context are left out.
    """

    windows: Windows
    micro_batch_size: int
    every: int

    @classmethod
    def build(cls, subject: Subject) -> Self | None:
        """Return the task for data with masked losses and known documents, one of which fits the context."""
        config = subject.config
        val = subject.val
        if val is None or not (val.has_mask and val.has_documents):
            return None
        windows = open_windows(val, config.model.seq_len, config.data.documents, config.data.read)
        task = cls(windows, config.micro_batch_size, config.trainer.eval_every)
        return task if len(task.documents) else None

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """First token and end of each document, (N, 2)."""
        return self.windows.documents_within(self.windows.seq_len + 1)

    def batches(self, rank: int, world_size: int) -> Iterator[Tensor]:
        """Yield this rank's documents, each in a row as long as the longest of all, (B, T + 1)."""
        file = self.windows.file
        ids = file.reader(self.windows.read, "tokens")
        mask = file.reader(self.windows.read, "loss_mask")
        width = int((self.documents[:, 1] - self.documents[:, 0]).max())
        # As many rows as have the tokens of a micro-batch.
        size = max(1, self.micro_batch_size * self.windows.seq_len // width)
        for first in range(rank * size, len(self.documents), world_size * size):
            batch = np.full((size, width), NO_TARGET, np.int64)
            for row, (start, stop) in zip(batch, self.documents[first : first + size].tolist(), strict=False):
                row[: stop - start] = ids(start, stop)
                row[: stop - start][mask(start, stop) == 0] |= NO_TARGET
            yield torch.from_numpy(batch)

    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        def count_matches(batch: Tensor) -> Tensor:
            inputs, targets, _ = unpack(batch, masked=False)
            likeliest = model.logits(model(inputs)).argmax(-1)  # (B, T)
            is_target = targets != IGNORE
            is_right = (likeliest == targets) | ~is_target
            return (is_right.all(1) & is_target.any(1)).sum()

        batches = self.batches(compute.world.rank, compute.world.size)
        matches = sum_over(batches, count_matches, model, compute)
        return Measurement({KEY: matches / len(self.documents)})

    def closing(self, last: dict[str, float]) -> tuple[dict[str, float], str | None]:
        return {}, f"exact match {last[KEY]:.2%} of {len(self.documents):,} documents"
