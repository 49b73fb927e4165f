"""Which rank this process is, the process group, and what the ranks reduce and agree on."""

import ctypes
import hashlib
import inspect
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt.config.load import flatten
from gpt.config.schema import Config
from gpt.errors import InputError, LostRank
from gpt.files import ROOT

GRACE = 5  # seconds for which a rank that lost another waits, so that the one at fault is heard first
# What may differ between ranks: where the data lies, and which machine this is.
OWN_TO_A_RANK = ("cluster.node_rank", "cluster.rdzv_endpoint", "data.files", "data.dir", "data.cache_dir", "resume")


@dataclass(frozen=True, slots=True)
class World:
    """This process among the ranks of the run.

    ``stop`` is shared with who started it (:mod:`gpt.signals`). ``store`` is a file in which the ranks find each
    other; without it they do in the store that their starter's environment names.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    stop: ctypes.c_int | None = None
    store: Path | None = None

    @property
    def is_main(self) -> bool:
        """Rank 0 writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank. On the CPU, so that no GPU is waited for."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))).item())

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, as JSON has it: torch's own gathering of objects would unpickle what peers send."""
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(own)]))
        longest = int(max(lengths))
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, nn.functional.pad(own, (0, longest - len(own))))
        return [json.loads(bytes(text[:length].tolist())) for text, length in zip(texts, lengths, strict=True)]


ALONE = World()


@contextmanager
def joined(world: World, device: torch.device, timeout: int) -> Iterator[None]:
    """The process group of all ranks; a collective ends after ``timeout`` seconds.

    Raises LostRank where another rank does not join.
    """
    if world.size == 1:
        yield
        return
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world.size):
        stay_on_this_machine()
    limit = timedelta(seconds=timeout)
    store = dist.FileStore(str(world.store), world.size) if world.store else None
    if store:
        store.set_timeout(limit)
    try:
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=limit)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise after_grace(
            LostRank(
                f"not all ranks joined within cluster.timeout={timeout} s ({str(error).splitlines()[0]})\n"
                "  see what the other ranks said; raise cluster.timeout if they only start slowly"
            )
        ) from error
    yield
    dist.destroy_process_group()  # not after an exception, where it may wait for a rank that is gone


def stay_on_this_machine() -> None:
    """Let gloo and NCCL listen on the loopback interface alone, where all ranks are on one machine.

    Whatever was set: a profile sets these for the network between machines, and here would only open ports to it.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback


# torch 2.13's name for it, and the older one.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def replicated(module: nn.Module, device: torch.device, world: World) -> nn.Module:
    """With several ranks, a module whose backward pass averages gradients over them; it starts as rank 0's."""
    if world.size == 1:
        return module
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, **{SYNC_BUFFERS: False})


def is_lost_rank(error: Exception) -> bool:
    """Whether it says that another rank is gone or silent, and nothing of this one."""
    words = (
        "gloo",
        "Connection closed by peer",
        "Connection reset by peer",
        "Timed out waiting",
        "Wait timeout",
        "Broken pipe",
    )
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def fingerprints(config: Config, data: str) -> dict[str, str]:
    """What all ranks must have alike."""
    code = hashlib.sha256()
    for path in sorted([*ROOT.glob("gpt/**/*.py"), *ROOT.glob("data/**/*.py"), ROOT / "train.py"]):
        code.update(path.read_bytes())
    shared = {key: value for key, value in flatten(config).items() if key not in OWN_TO_A_RANK}
    return {"code": code.hexdigest(), "config": repr(shared), "data": data}


def agree(world: World, config: Config, data: str, run_dir: Path | None) -> Path:
    """Compare code, config and data over all ranks; returns the output directory, which rank 0 has.

    Raises InputError, on every rank, where one differs.
    """
    own = fingerprints(config, data)
    everyone = world.gather((own, run_dir and str(run_dir.resolve())))
    reference, directory = everyone[0]
    for rank, (theirs, _) in enumerate(everyone):
        for what in (key for key in reference if theirs[key] != reference[key]):
            raise InputError(f"rank {rank} has other {what} than rank 0", f"give every rank the same {what}")
    return run_dir or Path(directory)


@contextmanager
def heard(world: World, run_dir: Path) -> Iterator[None]:
    """Rank 0 speaks; the others write to logs/rank_N.log, how they ended too."""
    if world.is_main:
        yield
        return
    path = run_dir / "logs" / f"rank_{world.rank}.log"
    path.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    except BaseException:
        traceback.print_exc()
        raise


def after_grace(error: LostRank) -> LostRank:
    """The error, once there was time for the rank at fault to be heard."""
    time.sleep(GRACE)
    return error
