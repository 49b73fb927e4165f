"""Parameter groups and the optimizer."""

import torch
from torch import nn

from gpt.config import OptimizerConfig
from gpt.errors import InputError

FUSED_DEVICES = ("cpu", "cuda", "mps")  # where torch.optim.AdamW has a fused kernel


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and embeddings decay; biases and norms do not (as nanoGPT's configure_optimizers)."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(config: OptimizerConfig, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over the model's parameters. Raises InputError when a fused one is asked for where there is none."""
    has_fused = device.type in FUSED_DEVICES
    if config.fused and not has_fused:
        raise InputError(f"optimizer.fused=true: no fused AdamW on {device.type}", "allowed here: null or false")
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=tuple(config.betas),
        eps=config.eps,
        fused=has_fused if config.fused is None else config.fused,
    )
