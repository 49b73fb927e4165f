"""Parameter groups and the optimizers."""

import importlib
import inspect
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gpt.config.schema import AdamWConfig, CustomConfig, MuonConfig, OptimizerConfig
from gpt.errors import InputError, Unavailable


def parameter_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and embeddings decay; biases and norms do not (as nanoGPT's configure_optimizers)."""
    decayed = [p for p in parameters if p.dim() >= 2]
    others = [p for p in parameters if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizers(config: OptimizerConfig, model: nn.Module) -> list[Optimizer]:
    """The optimizers of all parameters, each of which is in one. Groups keep their peak rate as ``initial_lr``."""
    if isinstance(config, CustomConfig):
        optimizers = [custom(config, model)]
    elif isinstance(config, MuonConfig):
        optimizers = muon(config, model)
    else:
        optimizers = [adamw(config, list(model.parameters()), config.lr)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def check_optimizer(config: OptimizerConfig, device: torch.device) -> None:
    """Build it for a small layer and take a step. Raises InputError for what it has not, or not on this device.

    Not where it is known to work: building one takes seconds, because torch.optim imports the compiler.
    """
    if device.type in ("cpu", "cuda") and not isinstance(config, CustomConfig):
        return
    model = nn.ModuleDict({"h": nn.Linear(2, 2, device=device)})
    try:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for optimizer in build_optimizers(config, model):
            optimizer.step()
    except (RuntimeError, TypeError, ValueError) as error:
        raise Unavailable(
            f"optimizer={config.name} does not work on {device.type}: {str(error).splitlines()[0]}",
            "change its options: python train.py --cfg job --package optimizer",
        ) from error


def adamw(config: AdamWConfig, parameters: list[nn.Parameter], lr: float) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    groups = parameter_groups(parameters, config.weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(config.betas), eps=config.eps, fused=config.fused)


def muon(config: MuonConfig, model: nn.Module) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) on the matrices of the blocks, AdamW on embeddings, head, biases and norms."""
    matrices = [p for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2]
    held = {id(p) for p in matrices}
    for_matrices = torch.optim.Muon(
        matrices,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        adjust_lr_fn="match_rms_adamw",  # one rate suits both (Liu et al. 2025, "Muon is scalable", eq. 4)
    )
    return [for_matrices, adamw(config, [p for p in model.parameters() if id(p) not in held], config.adamw_lr)]


def custom(config: CustomConfig, model: nn.Module) -> Optimizer:
    """A user's own class, given what its signature has. Raises InputError where it is no optimizer."""
    module, _, name = config._target_.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"optimizer._target_={config._target_} cannot be imported: {error}",
            "give package.Class, importable from where the command runs",
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise InputError(
            f"optimizer._target_={config._target_} is no torch.optim.Optimizer", "give a class that is one"
        )
    given = {"lr": config.lr, "weight_decay": config.weight_decay, **config.options}
    if config.betas is not None:
        given["betas"] = tuple(config.betas)
    allowed = [parameter.name for parameter in list(inspect.signature(kind).parameters.values())[1:]]
    if config.weight_decay == 0 and "weight_decay" not in allowed:
        del given["weight_decay"]
    if unknown := [key for key in given if key not in allowed]:
        raise InputError(f"{config._target_} takes no {', '.join(unknown)}", f"it takes: {', '.join(allowed)}")
    return kind(parameter_groups(list(model.parameters()), given.get("weight_decay", 0.0)), **given)
