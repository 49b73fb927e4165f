"""The arithmetic of a run: autocast, 32-bit matrix products, loss scaling, and which device supports what."""

from contextlib import AbstractContextManager, nullcontext

import torch

from gpt.errors import Unavailable

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _supported_precisions(device: torch.device) -> list[str]:
    """The precisions that a device supports."""
    if device.type == "cpu":
        return ["fp32", "bf16"]
    if device.type == "mps":
        # PyTorch has no query for it, so this tries one.
        try:
            torch.zeros(1, device=device, dtype=torch.bfloat16)  # needs macOS 14
        except (RuntimeError, TypeError):
            return ["fp32"]
        return ["fp32", "bf16"]
    # TensorFloat-32 and bfloat16 came with compute capability 8.0.
    is_ampere = torch.cuda.get_device_capability(device)[0] >= 8
    return ["fp32", "tf32", "bf16", "fp16"] if is_ampere else ["fp32", "fp16"]


def check_precision(precision: str, device: torch.device) -> None:
    """Check that the device supports the precision. Raises Unavailable."""
    supported = _supported_precisions(device)
    if precision not in supported:
        raise Unavailable(
            f"precision={precision} is not supported on {device.type} here", f"allowed here: {', '.join(supported)}"
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which forward passes run."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def set_matmul_precision(precision: str) -> None:
    """Let 32-bit matrix products use TensorFloat-32 for ``tf32``; otherwise they are exact."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """A scaler that keeps gradients in float16 from vanishing (Micikevicius et al. 2018); idle at other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
