"""Which tokens attend to which: causal masks, documents, windows."""

from typing import NamedTuple

import torch
from torch import Tensor


def causal_mask(t: int, s: int, device: torch.device) -> Tensor:
    """True where one of the last ``t`` of ``s`` positions attends: to itself and to what is before it, (t, s)."""
    everywhere = torch.ones(t, s, dtype=torch.bool, device=device)
    return everywhere.tril(diagonal=s - t)


class Layout(NamedTuple):
    """The positions of the tokens in a batch, (B, T), and the mask of the tokens that each attends to, (B, 1, T, T)."""

    positions: Tensor
    mask: Tensor


def document_layout(documents: Tensor) -> Layout:
    """Let each document be read as if it stood alone; (B, T) gives the index in the row at which a token's begins."""
    t = documents.size(1)
    is_same = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
    mask = is_same & causal_mask(t, t, documents.device)
    return Layout(torch.arange(t, device=documents.device) - documents, mask)


def window_mask(window: int, t: int, kept: int, device: torch.device) -> Tensor | None:
    """The causal mask of a window, (t, kept + t), for ``t`` tokens after ``kept`` ones; None where it hides nothing.

    A token attends to ``window`` tokens, of which it is the last.
    """
    s = kept + t
    if s <= window:
        return None
    everywhere = torch.ones(t, s, dtype=torch.bool, device=device)
    return everywhere.tril(diagonal=kept).triu(diagonal=kept - window + 1)


def layout_window(layout: Layout, window: int) -> Tensor:
    """The mask of a layout within a window, which counts positions: a branch of a text follows its context."""
    positions = layout.positions
    distance = positions[:, None, :, None] - positions[:, None, None, :]  # (B, 1, T, T)
    return layout.mask & (distance < window)
