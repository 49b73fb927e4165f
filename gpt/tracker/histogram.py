"""Histograms of weights and gradients."""

from typing import Any

import torch
from torch import Tensor, nn

BINS = 64  # as many as W&B's own have
CHUNK = 1 << 22  # elements counted at a time: float32 counts exactly up to 2^24, and needs less memory so


def histogram(values: Tensor) -> dict[str, Any] | None:
    """Counts of values in bins of equal width between their ``min`` and ``max``; None where one is not finite."""
    values = values.detach().float().flatten()
    low, high = (edge.item() for edge in values.aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):  # False for nan too
        return None
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.zeros(BINS, dtype=torch.int64)
    for chunk in values.split(CHUNK):
        counts += torch.histc(chunk, BINS, low, high).cpu().long()
    return {"min": low, "max": high, "counts": counts.tolist()}


def histograms(kind: str, model: nn.Module) -> dict[str, dict[str, Any]]:
    """A histogram of every parameter (kind ``parameters``), or of its gradient (``gradients``)."""
    tensors = {f"{kind}/{name}": p if kind == "parameters" else p.grad for name, p in model.named_parameters()}
    found = {name: histogram(tensor) for name, tensor in tensors.items() if tensor is not None}
    return {name: held for name, held in found.items() if held}
