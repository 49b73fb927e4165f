"""Norms."""

import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config.model import ModelConfig

EPS = 1e-5  # openai/gpt-2 src/model.py, and Llama


class RMSNorm(nn.RMSNorm):
    """Division by the root mean square (Zhang & Sennrich 2019), in whichever precision the input has."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


def build_norm(config: ModelConfig, width: int) -> nn.Module:
    """A norm over ``width`` numbers, of the kind that all norms of the model have."""
    if config.norm_type == "rmsnorm":
        return RMSNorm(width, eps=EPS, elementwise_affine=config.norm_weight)
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=config.norm_weight, bias=config.bias)
