"""This process among the ranks: the process group, what the ranks reduce, and what they must have in common."""

import ctypes
import hashlib
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

from gpt.config.load import flatten
from gpt.config.schema import Config
from gpt.errors import InputError, LostRank
from gpt.files import ROOT

GRACE_SECONDS = 5  # for which a rank that lost another waits, so that the one at fault reports first
# Keys that may differ between ranks: paths on their machine, and which machine it is.
PER_RANK_KEYS = ("cluster.node_rank", "cluster.rdzv_endpoint", "data.files", "data.dir", "data.cache_dir", "resume")
CODE = ("gpt", "data", "hydra_plugins")  # with train.py, the code of a run
PREPARED = Path("data", "cache")  # holds data, no code


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


# --- one run on all ranks


def compare_ranks(world: World, config: Config, data: str, run_dir: Path | None) -> Path:
    """Compare code, config and data of all ranks; returns the output directory, which only rank 0 knows before.

    ``data`` is the fingerprint of the data. Raises InputError, on every rank, where one differs.
    """
    # Every rank compares, so that every rank refuses.
    own = _fingerprints(config, data)
    everyone = world.gather((own, run_dir and str(run_dir.resolve())))
    reference, directory = everyone[0]
    for rank, (theirs, _) in enumerate(everyone):
        for subject in reference:
            if theirs[subject] != reference[subject]:
                raise InputError(f"rank {rank} has other {subject} than rank 0", f"give every rank the same {subject}")
    return run_dir or Path(directory)


def _fingerprints(config: Config, data: str) -> dict[str, str]:
    """Return what all ranks must have in common: hash of the code, the config, fingerprint of the data."""
    code = hashlib.sha256()
    for path in _code_files():
        content = path.read_bytes()
        code.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode())
        code.update(content)

    # The config, but for the keys that each rank has its own value of.
    shared = {key: value for key, value in flatten(config).items() if key not in PER_RANK_KEYS}
    return {"code": code.hexdigest(), "config": repr(shared), "data": data}


def _code_files() -> list[Path]:
    """List the Python files that a run can use, in an order that is the same on every machine."""
    paths = [ROOT / "train.py"]
    for name in CODE:
        for path in (ROOT / name).rglob("*.py"):
            if not path.is_relative_to(ROOT / PREPARED):
                paths.append(path)
    return sorted(paths, key=lambda path: path.relative_to(ROOT).as_posix())


@contextmanager
def redirect_output(world: World, run_dir: Path) -> Iterator[None]:
    """Redirect the output of all ranks but 0 to logs/rank_N.log, with the traceback of an exception."""
    if world.is_main:
        yield
        return
    path = run_dir / "logs" / f"rank_{world.rank}.log"
    path.parent.mkdir(exist_ok=True)

    # Descriptors, not sys.stdout: libraries in C++ write to them too.
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
