"""Histograms of weights and gradients."""

from typing import Any

import torch
from torch import Tensor, nn

BINS = 64  # as many as W&B's own have
CHUNK = 1 << 22  # elements counted at a time: float32 counts exactly up to 2^24, and small chunks need less memory


def histogram(values: Tensor) -> dict[str, Any] | None:
    """Count values in bins of equal width between their ``min`` and ``max``; None where one is not finite."""
    values = values.detach().float().flatten()
    low, high = (edge.item() for edge in values.aminmax())
    is_finite = abs(low) < float("inf") and abs(high) < float("inf")  # False for nan too
    if not is_finite:
        return None
    if low == high:
        # Equal values get bins around them.
        low -= 0.5
        high += 0.5
    counts = torch.zeros(BINS, dtype=torch.int64)
    for chunk in values.split(CHUNK):
        counts += torch.histc(chunk, BINS, low, high).cpu().long()
    return {"min": low, "max": high, "counts": counts.tolist()}


def histograms(kind: str, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return a histogram of every parameter (kind ``parameters``), or of its gradient (``gradients``)."""
    by_name = {}
    for name, parameter in model.named_parameters():
        tensor = parameter if kind == "parameters" else parameter.grad
        if tensor is None:
            continue
        counted = histogram(tensor)
        if counted is not None:
            by_name[f"{kind}/{name}"] = counted
    return by_name
