"""Windows of a token file as a torch Dataset, in the order of the run, and the loader over them."""

import atexit
import multiprocessing
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from gpt.config.budget import Stages, step_tokens
from gpt.config.schema import Config
from gpt.signals import end_with, ignore_signals
from gpt.tokens.order import Order, rank_samples
from gpt.tokens.tokenfile import TokenFile
from gpt.tokens.windows import ID, IGNORE, NO_TARGET, STARTS, Windows


class TokenDataset(Dataset):
    """Sample i of the run: a window of seq_len tokens and its targets, as seq_len + 1 numbers (int64, see unpack).

    Its length is one epoch; samples beyond it belong to later epochs.
    """

    def __init__(self, windows: Windows, order: Order):
        self.windows, self.order = windows, order

    def __len__(self) -> int:
        return self.order.n_windows

    def __getitem__(self, sample: int) -> Tensor:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> Tensor:
        """A batch at once, (B, seq_len + 1); samples ascend, as the sampler gives them."""
        first = samples[0]
        starts = self.order.starts(first, samples[-1] - first + 1).tolist()
        batch = np.empty((len(samples), self.order.seq_len + 1), np.int64)
        for row, sample in zip(batch, samples, strict=True):
            self.windows.fill(row, starts[sample - first])
        return torch.from_numpy(batch)


def open_dataset(config: Config, file: TokenFile) -> TokenDataset:
    """Return the training data in the order of a run."""
    data = config.data
    seq_len = config.model.seq_len
    windows = Windows(file, seq_len, data.documents, data.read)
    order = Order(
        data.seed,
        file.sha256,
        file.n_tokens,
        seq_len,
        kind=data.order if data.shuffle else "sequential",
        first=config.batch.global_tokens // seq_len if config.trainer.one_batch else None,
        windows=windows if data.documents == "separate" else None,
    )
    return TokenDataset(windows, order)


def unpack(batch: Tensor, masked: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Windows (B, T + 1) -> inputs, targets and, if ``masked``, where the document of each input starts, all (B, T)."""
    ids, documents = batch & ID, None
    targets = torch.where(batch[:, 1:] & NO_TARGET == 0, ids[:, 1:], IGNORE)
    if masked:
        places = torch.arange(batch.size(1) - 1, device=batch.device)
        documents = torch.where(batch[:, :-1] & STARTS == 0, 0, places).cummax(1).values
    return ids[:, :-1], targets, documents


def count_targets(batch: Tensor) -> Tensor:
    """How many targets of windows (B, T + 1) count."""
    return (batch[:, 1:] & NO_TARGET == 0).sum()


class OrderedSampler(DistributedSampler):
    """The samples of one rank from a given position on: the next batch, its share of it, for every step left.

    The position is the number of samples that finished steps have consumed, so resuming is a seek. It says how large
    the next batch is, too (see :func:`gpt.schedule.step_tokens`).
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
        self.consumed, self.steps, self.stages, self.micro_batch_size = consumed, steps, stages, micro_batch_size

    def batches(self) -> Iterator[tuple[int, int]]:
        """First sample and number of samples of every step left, all ranks together."""
        first, seq_len = self.consumed, self.dataset.order.seq_len
        for _ in range(self.steps):
            size = step_tokens(self.stages, first * seq_len) // seq_len
            yield first, size
            first += size

    def __iter__(self) -> Iterator[int]:
        for first, size in self.batches():
            yield from rank_samples(first, size, self.micro_batch_size, self.rank, self.num_replicas).tolist()

    def __len__(self) -> int:
        return sum(size for _, size in self.batches()) // self.num_replicas


def _begin_worker(worker: int) -> None:
    end_with(os.getppid())  # at once: it holds the lock on the run's directory too
    ignore_signals()  # it must outlive the step that is to be finished


def _end_workers() -> None:
    # Where an error keeps the loader alive to the end, Python would wait for ever for workers that ignore SIGTERM.
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _as_array(batch: Tensor) -> np.ndarray:
    return batch.numpy()


def micro_batches(sampler: OrderedSampler, num_workers: int, pin_memory: bool) -> Iterator[Tensor]:
    """Full micro-batches (micro_batch_size, seq_len + 1), read ahead by ``num_workers`` processes.

    Workers send arrays: a tensor goes by a file descriptor, which takes several times as long as copying it.
    """
    loader = DataLoader(
        sampler.dataset,
        batch_sampler=BatchSampler(sampler, sampler.micro_batch_size, drop_last=True),
        num_workers=num_workers,
        collate_fn=_as_array,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # of its own, or it would draw from the one that dropout draws from
    )
    to_tensor = (lambda batch: torch.from_numpy(batch).pin_memory()) if pin_memory else torch.from_numpy
    batches = map(to_tensor, loader)  # the workers start
    if num_workers:
        atexit.register(_end_workers)
    return batches
