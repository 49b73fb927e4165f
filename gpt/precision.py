"""Devices, the arithmetic on them, and what they could do at best."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from gpt.errors import InputError

# Dense peak in FLOP/s as (bf16, fp32), from NVIDIA's data sheets; without sparsity, SXM parts where there are several.
PEAK_FLOPS = {
    "B200": (2.25e15, 75e12),
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "RTX 4090": (165e12, 82.6e12),
}


def pick_device(name: str) -> torch.device:
    """``auto`` takes cuda, else mps, else the CPU. Raises InputError when the named device is not there."""
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise InputError(f"device={name} is not on this machine", f"allowed here: auto, {', '.join(present)}")
    return torch.device(name)


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """So many CPU threads for torch; None: as many as there were. Jobs of a sweep share one process."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which forward passes run."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def peak_flops(precision: str, device: torch.device) -> float | None:
    """Peak FLOP/s of the device at this precision, or None where it is not known."""
    if device.type != "cuda":
        return None
    device_name = torch.cuda.get_device_name(device)
    for name, (bf16, fp32) in PEAK_FLOPS.items():
        if name in device_name:
            return bf16 if precision == "bf16" else fp32
    return None
