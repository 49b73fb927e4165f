"""The optimizers of a run, their check on a device, and their learning rates and momentum over the run."""

import torch
from torch import nn
from torch.optim import Optimizer

from gpt.config.optimizer import AdamWConfig, CustomConfig, MuonConfig, OptimizerConfig
from gpt.errors import Unavailable
from gpt.optimizer.averages import build_averages
from gpt.optimizer.custom import build_custom
from gpt.optimizer.groups import check_groups, group_names, parameter_groups
from gpt.optimizer.muon import build_muon, warm_up_momentum
from gpt.optimizer.packing import pack

__all__ = ["build_averages", "build_optimizers", "check_optimizer", "set_rates"]


def build_optimizers(config: OptimizerConfig, model: nn.Module) -> list[Optimizer]:
    """Return the optimizers of all parameters, each of which is in one. Groups keep their peak rate as ``initial_lr``.

    Raises InputError for keys that the optimizer or the model cannot use.
    """
    check_groups(config, model)
    if isinstance(config, CustomConfig):
        optimizers = [build_custom(config, model)]
    elif isinstance(config, MuonConfig):
        optimizers = _muon_and_adamw(config, model)
    else:
        optimizers = [_adamw(config, model, list(model.parameters()), config.lr)]
    for optimizer in optimizers:
        if hasattr(optimizer, "train"):
            optimizer.train()
        # The schedule multiplies the peak rate.
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def set_rates(config: OptimizerConfig, optimizers: list[Optimizer], multiplier: float, tokens: int) -> None:
    """Set the learning rates, and the momentum, of the step that brings the run to ``tokens``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
    if isinstance(config, MuonConfig):
        warm_up_momentum(config, optimizers[0], tokens)


def check_optimizer(config: OptimizerConfig, device: torch.device) -> None:
    """Build the optimizer for a small model and take a step. Raises InputError where it does not work on this device.

    Skipped where it is known to work: to build one takes seconds, because torch.optim imports the compiler.
    """
    if device.type in ("cpu", "cuda") and not isinstance(config, CustomConfig):
        return
    # A parameter of every group, by the names of the model.
    model = nn.ModuleDict({"wte": nn.Embedding(2, 2), "h": nn.Linear(2, 2), "lm_head": nn.Linear(2, 2)}).to(device)
    try:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for optimizer in build_optimizers(config, model):
            optimizer.step()
            for values in optimizer.state.values():
                pack(values)
    except (RuntimeError, TypeError, ValueError) as error:
        raise Unavailable(
            f"optimizer={config.name} does not work on {device.type}: {str(error).splitlines()[0]}",
            "change its options: python train.py --cfg job --package optimizer",
        ) from error


def _adamw(config: AdamWConfig, model: nn.Module, parameters: list[nn.Parameter], lr: float) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    groups = parameter_groups(config, model, parameters)
    betas = tuple(config.betas)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=config.eps, fused=config.fused)


def _muon_and_adamw(config: MuonConfig, model: nn.Module) -> list[Optimizer]:
    """Muon on the matrices, AdamW on embeddings, head, biases and norms."""
    names = group_names(model)
    matrices = []
    others = []
    for name, p in model.named_parameters():
        if names[p] == "matrices":
            matrices.append((name, p))
        else:
            others.append(p)
    return [build_muon(config, matrices), _adamw(config, model, others, config.adamw_lr)]
