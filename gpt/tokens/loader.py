"""Windows of a token file as a torch Dataset, in the order of the run, and the loader over them."""

import atexit
import itertools
import multiprocessing
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from gpt.config.budget import Stages, step_tokens
from gpt.config.schema import Config
from gpt.signals import end_with, ignore_signals
from gpt.tokens.order import SampleOrder, rank_samples
from gpt.tokens.tokenfile import TokenFile
from gpt.tokens.windows import ID, IGNORE, NO_TARGET, STARTS, Windows, open_windows


class TokenDataset(Dataset):
    """Sample i of the run: a window of seq_len tokens and its targets, as seq_len + 1 numbers (int64, see unpack).

    Its length is one epoch; samples beyond it belong to later epochs.
    """

    def __init__(self, order: SampleOrder):
        self.order = order

    @property
    def windows(self) -> Windows:
        """The windows that samples are read from."""
        return self.order.windows

    def __len__(self) -> int:
        return self.order.n_windows

    def __getitem__(self, sample: int) -> Tensor:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> Tensor:
        """Read a batch at once, (B, seq_len + 1); samples ascend, as the sampler yields them."""
        # The starts of all samples from the first to the last: with several ranks, some are of other ranks.
        windows = self.order.windows
        first = samples[0]
        starts = self.order.starts(first, samples[-1] - first + 1).tolist()

        # Each window is read into its row, without a copy.
        batch = np.empty((len(samples), windows.seq_len + 1), np.int64)
        for row, sample in zip(batch, samples, strict=True):
            windows.fill(row, starts[sample - first])
        return torch.from_numpy(batch)


def open_dataset(config: Config, file: TokenFile) -> TokenDataset:
    """Return the training data in the order of a run."""
    data = config.data
    seq_len = config.model.seq_len
    # With trainer.one_batch, every step takes the samples of the first batch.
    first = config.batch.global_tokens // seq_len if config.trainer.one_batch else None
    kind = data.order if data.shuffle else "sequential"
    windows = open_windows(file, seq_len, data.documents, data.read)
    return TokenDataset(SampleOrder(data.seed, windows, kind, first))


def unpack(batch: Tensor, masked: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Split windows (B, T + 1) into inputs, targets and, if ``masked``, each input's document start, all (B, T).

    ``masked`` is :attr:`gpt.tokens.windows.Windows.is_masked`.
    """
    ids = batch & ID
    counts = batch[:, 1:] & NO_TARGET == 0
    targets = torch.where(counts, ids[:, 1:], IGNORE)  # (B, T)

    # The latest start of a document before each input; the first document began at position 0 or earlier.
    documents = None
    if masked:
        positions = torch.arange(batch.size(1) - 1, device=batch.device)  # (T,)
        begins = torch.where(batch[:, :-1] & STARTS == 0, 0, positions)
        documents = begins.cummax(1).values  # (B, T)
    return ids[:, :-1], targets, documents


def count_targets(batch: Tensor) -> Tensor:
    """Return the number of targets that count in windows (B, T + 1)."""
    return (batch[:, 1:] & NO_TARGET == 0).sum()


class OrderedSampler(DistributedSampler):
    """The samples of one rank from a given position on: for every step left, this rank's part of the global batch.

    The position is the number of samples that finished steps have consumed, so resuming is a seek.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        consumed: int,
        steps: int,
        stages: Stages,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ):
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self.consumed = consumed
        self.n_steps = steps
        self.stages = stages
        self.micro_batch_size = micro_batch_size

    def steps(self) -> Iterator[tuple[int, int]]:
        """Yield the first sample and the number of samples of every step left, all ranks together."""
        seq_len = self.dataset.order.seq_len
        first = self.consumed
        for _ in range(self.n_steps):
            n_samples = step_tokens(self.stages, first * seq_len) // seq_len
            yield first, n_samples
            first += n_samples

    def __iter__(self) -> Iterator[int]:
        for first, n_samples in self.steps():
            yield from rank_samples(first, n_samples, self.micro_batch_size, self.rank, self.num_replicas).tolist()

    def __len__(self) -> int:
        n_samples = sum(size for _, size in self.steps())
        return n_samples // self.num_replicas


class StepBatch(NamedTuple):
    """One rank's data for an optimizer step: the samples of all ranks, and its own micro-batches, read when needed."""

    n_samples: int
    n_micro_batches: int
    micro_batches: Iterator[Tensor]


def step_batches(sampler: OrderedSampler, num_workers: int, pin_memory: bool) -> Iterator[StepBatch]:
    """Return the data of every step left, read ahead by ``num_workers`` processes, which start now.

    The micro-batches of a step are to be taken before the next step.
    """
    batches = micro_batches(sampler, num_workers, pin_memory)
    samples_at_once = sampler.micro_batch_size * sampler.num_replicas

    def steps() -> Iterator[StepBatch]:
        for _, n_samples in sampler.steps():
            n_micro_batches = n_samples // samples_at_once
            yield StepBatch(n_samples, n_micro_batches, itertools.islice(batches, n_micro_batches))

    return steps()


def micro_batches(sampler: OrderedSampler, num_workers: int, pin_memory: bool) -> Iterator[Tensor]:
    """Return full micro-batches (micro_batch_size, seq_len + 1), read ahead by ``num_workers`` processes.

    Workers send arrays: a tensor goes by a file descriptor, which takes several times as long as copying it.
    """
    # Batches of the sampler's consecutive samples are micro-batches.
    loader = DataLoader(
        sampler.dataset,
        batch_sampler=BatchSampler(sampler, sampler.micro_batch_size, drop_last=True),
        num_workers=num_workers,
        collate_fn=_as_array,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # its own, or it would advance the one that dropout uses
    )
    to_tensor = _pinned if pin_memory else torch.from_numpy
    batches = map(to_tensor, loader)  # starts the workers
    if num_workers:
        atexit.register(_end_workers)
    return batches


def _as_array(batch: Tensor) -> np.ndarray:
    return batch.numpy()


def _pinned(batch: np.ndarray) -> Tensor:
    return torch.from_numpy(batch).pin_memory()


def _begin_worker(worker: int) -> None:
    end_with(os.getppid())  # at once: it holds the lock on the run's directory too
    ignore_signals()  # it must outlive the step that is to be finished


def _end_workers() -> None:
    # Where an error keeps the loader alive to the end, Python would wait forever for workers that ignore SIGTERM.
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
