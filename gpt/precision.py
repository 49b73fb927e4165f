"""Devices, the arithmetic on them, and what they could do at best."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from gpt.errors import Unavailable

# Dense peak in FLOP/s as (bf16 and fp16, tf32, fp32), from NVIDIA's data sheets; without sparsity, SXM parts where
# there are several.
PEAK_FLOPS = {
    "B200": (2.25e15, 1.1e15, 75e12),
    "H200": (989e12, 494e12, 67e12),
    "H100": (989e12, 494e12, 67e12),
    "A100": (312e12, 156e12, 19.5e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "RTX 4090": (165e12, 82.6e12, 82.6e12),
}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes cuda, else mps, else the CPU; of several GPUs, that of the rank.

    Raises Unavailable when the named device is not there.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name not in ("auto", *present):
        raise Unavailable(f"device={name} is not on this machine", f"allowed here: auto, {', '.join(present)}")
    kind = present[0] if name == "auto" else name
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


def precisions(device: torch.device) -> list[str]:
    """What a device can compute in."""
    if device.type == "cpu":
        return ["fp32", "bf16"]
    if device.type == "mps":
        try:
            torch.zeros(1, device=device, dtype=torch.bfloat16)  # needs macOS 14
        except (RuntimeError, TypeError):
            return ["fp32"]
        return ["fp32", "bf16"]
    is_ampere = torch.cuda.get_device_capability(device)[0] >= 8
    return ["fp32", "tf32", "bf16", "fp16"] if is_ampere else ["fp32", "fp16"]


def check_precision(precision: str, device: torch.device) -> None:
    """Raises Unavailable where the device does not have it."""
    allowed = precisions(device)
    if precision not in allowed:
        raise Unavailable(
            f"precision={precision} is not to be had on {device.type} here", f"allowed here: {', '.join(allowed)}"
        )


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
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def set_matmul_precision(precision: str) -> None:
    """Matrix products of 32-bit numbers: in TensorFloat-32 where that is asked for, exact elsewhere."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where gradients would vanish in float16 (Micikevicius et al. 2018), else does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def peak_flops(precision: str, device_name: str) -> float | None:
    """Dense peak FLOP/s of a device at this precision, or None where it is not known."""
    for name, (half, tf32, fp32) in PEAK_FLOPS.items():
        if name in device_name:
            return {"tf32": tf32, "fp32": fp32}.get(precision, half)
    return None


def device_name(device: torch.device) -> str:
    """The GPU's name, or ``cpu`` or ``mps``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
