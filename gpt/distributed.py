"""This process among the ranks: the process group, and what the ranks reduce and gather."""

import ctypes
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt.errors import LostRank

GRACE_SECONDS = 5  # for which a rank that lost another waits, so that the one at fault reports first


@dataclass(frozen=True, slots=True)
class World:
    """This process among the ranks of the run; only rank 0 writes and prints.

    ``stop`` is shared with the process that started the ranks (:mod:`gpt.signals`). ``store`` is a file through which
    the ranks find each other; without it they use the store that the environment names.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    stop: ctypes.c_int | None = None
    store: Path | None = None

    @property
    def is_main(self) -> bool:
        """True on rank 0: only rank 0 writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether a flag is true on any rank. It is reduced on the CPU, so that no GPU is waited for."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag))).item())

    def gather(self, value: Any) -> list[Any]:
        """Gather the value of every rank as JSON: torch's own gathering of objects would unpickle what peers send."""
        if self.size == 1:
            return [value]

        # Text as a tensor of bytes.
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)

        # All ranks send as many bytes as the longest text has.
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(own)]))
        longest = int(max(lengths))
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, nn.functional.pad(own, (0, longest - len(own))))

        values = []
        for text, length in zip(texts, lengths, strict=True):
            values.append(json.loads(bytes(text[:length].tolist())))
        return values


ALONE = World()


@contextmanager
def process_group(world: World, device: torch.device, timeout: int) -> Iterator[None]:
    """Join the process group of all ranks, and leave it at the end; a collective fails after ``timeout`` seconds.

    Raises LostRank where another rank does not join.
    """
    if world.size == 1:
        yield
        return

    # A GPU reduces by NCCL, and flags and texts on the CPU still go through gloo.
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world.size):
        _use_loopback()

    # Ranks of one machine meet in a file, others at the address that the environment names.
    limit = timedelta(seconds=timeout)
    store = None
    if world.store:
        store = dist.FileStore(str(world.store), world.size)
        store.set_timeout(limit)
    try:
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=limit)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        reason = str(error).splitlines()[0]
        lost = LostRank(
            f"not all ranks joined within cluster.timeout={timeout} s ({reason})\n"
            "  see what the other ranks said; raise cluster.timeout if they only start slowly"
        )
        raise delayed(lost) from error
    yield
    dist.destroy_process_group()  # not after an exception, where it may wait for a rank that is gone


def _use_loopback() -> None:
    """Let gloo and NCCL listen on the loopback interface alone, for ranks that are all on one machine.

    This overrides the environment: a profile sets these for the network between machines, and would only open ports
    to it here.
    """
    for _, name in socket.if_nameindex():
        if name.startswith("lo"):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            os.environ["NCCL_SOCKET_IFNAME"] = name
            return


def is_lost_rank(error: Exception) -> bool:
    """Return whether an error means that another rank is gone or silent; this one is then not at fault."""
    phrases = (
        "gloo",
        "Connection closed by peer",
        "Connection reset by peer",
        "Timed out waiting",
        "Wait timeout",
        "Broken pipe",
    )
    return isinstance(error, dist.DistError) or any(phrase in str(error) for phrase in phrases)


def delayed(error: LostRank) -> LostRank:
    """Return the error after a few seconds, so that the rank at fault reports first."""
    time.sleep(GRACE_SECONDS)
    return error
