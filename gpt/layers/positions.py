"""Positions that are not learned: sines added to the tokens, and rotations of queries and keys."""

import torch
from torch import Tensor


def sinusoids(seq_len: int, n_embd: int) -> Tensor:
    """Positions as sines and cosines (Vaswani et al. 2017, section 3.5) -> (seq_len, n_embd)."""
    frequencies = 10_000 ** (-torch.arange(0, n_embd, 2) / n_embd)  # (n_embd / 2,)
    angles = torch.arange(seq_len)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def rotations(seq_len: int, head_dim: int, theta: float, fraction: float) -> Tensor:
    """Cosines and sines of the angles by which positions turn pairs (Su et al. 2021) -> (2, seq_len, head_dim / 2).

    Of the pairs, the first ``fraction`` turn, at theta^(-i / n) radians per token for pair i of n; the others stand
    still. (GPT-NeoX's rotary_pct has these frequencies; modded-nanogpt's half of the pairs have those of theta=1024,
    with the slowest at exactly 1 / 1024: rope_theta=1024^(n / (n - 1)) makes them the same.)
    """
    pairs = head_dim // 2
    turning = round(fraction * pairs)
    # In float64: a float32 angle of a late position has few digits behind the point.
    frequencies = torch.zeros(pairs, dtype=torch.float64)
    frequencies[:turning] = theta ** (-torch.arange(turning, dtype=torch.float64) / turning)
    angles = torch.arange(seq_len, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (i, i + D / 2) of queries or keys (B, H, T, D), paired as in Llama.

    ``rotation`` holds cosines and sines of their positions, (2, T, D / 2), or (2, B, 1, T, D / 2).
    """
    cos, sin = rotation
    if torch.compiler.is_compiling():  # which fuses the passes
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    """A rotation, whose gradient is the rotation back."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs turned by angles of these cosines and sines, computed in float32."""
    a, b = x.float().chunk(2, dim=-1)
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    first, second = y.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return y.to(x.dtype)
