"""Histograms of weights and gradients."""

import math
from typing import Any

import torch
from torch import Tensor, nn

BINS = 64  # as many as W&B's own have
CHUNK = 1 << 22  # elements counted at a time: float32 counts exactly up to 2^24, and small chunks need less memory


def _histogram(values: Tensor) -> dict[str, Any] | None:
    """Count values in bins of equal width between their ``min`` and ``max``; None where one is not finite."""
    values = values.detach().float().flatten()
    smallest, largest = values.aminmax()
    low = smallest.item()
    high = largest.item()
    is_finite = math.isfinite(low) and math.isfinite(high)
    if not is_finite:
        return None
    if low == high:
        # Equal values get bins around them.
        low -= 0.5
        high += 0.5
    counts = torch.zeros(BINS, dtype=torch.int64)
    for chunk in values.split(CHUNK):
        # On the device of the values, whose counts are added up on the CPU.
        in_chunk = torch.histc(chunk, BINS, low, high)
        counts += in_chunk.cpu().long()
    return {
        "min": low,
        "max": high,
        "counts": counts.tolist(),
    }


def histograms(kind: str, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return a histogram of every parameter (kind ``parameters``), or of its gradient (``gradients``)."""
    by_name = {}
    for name, parameter in model.named_parameters():
        tensor = parameter if kind == "parameters" else parameter.grad
        if tensor is None:
            continue
        counted = _histogram(tensor)
        if counted is not None:
            by_name[f"{kind}/{name}"] = counted
    return by_name
