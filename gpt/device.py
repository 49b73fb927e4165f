"""Devices: which one to take, its name, its threads, and the most memory that a run has used."""

import contextlib
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt.distributed import ALONE, World
from gpt.errors import Unavailable
from gpt.signals import never


@dataclass(frozen=True)
class Compute:
    """The device, the precision and the ranks of forward passes.

    Evaluation asks ``stop`` between batches, and passes them through ``track``, with their number where it is known.
    """

    device: torch.device
    autocast: contextlib.AbstractContextManager
    world: World = ALONE
    stop: Callable[[], bool] = never
    track: Callable[..., Iterable] = lambda batches, number: batches


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called ``name``; of several GPUs, that of the rank. ``auto`` takes cuda, else mps, else the CPU.

    Raises Unavailable when this machine does not have it.
    """
    # The devices of this machine, best first.
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name not in ("auto", *present):
        raise Unavailable(f"device={name} is not on this machine", f"allowed here: auto, {', '.join(present)}")
    kind = present[0] if name == "auto" else name
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


def device_name(device: torch.device) -> str:
    """The GPU's name, or ``cpu`` or ``mps``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Let torch use this many CPU threads; None changes nothing. Jobs of a sweep share one process."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reset_peak(device: torch.device) -> None:
    """Start to count the peak of memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again (proc_pid_clear_refs(5))


def peak_bytes(device: torch.device) -> int:
    """The peak of memory since the last reset: of the tensors on a GPU, else of the process (resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Without /proc, as on macOS, where ru_maxrss is in bytes; elsewhere it is in kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
