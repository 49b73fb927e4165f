"""The feed-forward of a block, and its nonlinearities."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config.model import ModelConfig


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks & Gimpel 2016, section 2; openai/gpt-2 src/model.py)."""
    if torch.compiler.is_compiling():
        # (1 + tanh u) / 2 is sigmoid(2u), which takes half the time of tanh where torch.compile writes C++.
        scale = 2 * math.sqrt(2 / math.pi)
        return x * torch.sigmoid(scale * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


class _ReLUSquared(torch.autograd.Function):
    """The square of ReLU, whose gradient takes one pass over the numbers instead of four."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return (y * grad).mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """The square of ReLU (So et al. 2021, "Primer")."""
    if torch.compiler.is_compiling():  # which fuses the passes
        return F.relu(x).square()
    return _ReLUSquared.apply(x)


# Those called *glu act on the gate (Shazeer 2020): Swish, as Llama, and GELU by tanh, as Gemma.
ACTIVATION = {
    "geglu": gelu_tanh,
    "gelu_exact": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "relu2": relu_squared,
    "swiglu": F.silu,
}


class MLP(nn.Module):
    """Feed-forward layer; where it is gated, a second matrix says how much of the first one passes."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.n_embd
        inner = config.inner_width
        self.activation = ACTIVATION[config.activation]
        self.c_fc = nn.Linear(width, inner, bias=config.bias)
        self.c_gate = nn.Linear(width, inner, bias=config.bias) if config.is_gated else None
        self.c_proj = nn.Linear(inner, width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.c_gate is None:
            return self.dropout(self.c_proj(self.activation(self.c_fc(x))))
        return self.dropout(self.c_proj(self.activation(self.c_gate(x)) * self.c_fc(x)))
