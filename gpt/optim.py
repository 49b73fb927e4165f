"""Parameter groups and the optimizers."""

import importlib
import inspect
import sys
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gpt.config.schema import AdamWConfig, CustomConfig, MuonConfig, OptimizerConfig
from gpt.errors import InputError, Unavailable


def _parameter_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and embeddings decay, biases and norms do not (nanoGPT's choice; GPT-3's is not known)."""
    decayed = [p for p in parameters if p.dim() >= 2]
    others = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizers(config: OptimizerConfig, model: nn.Module) -> list[Optimizer]:
    """The optimizers of all parameters, each of which is in one. Groups keep their peak rate as ``initial_lr``."""
    if isinstance(config, CustomConfig):
        optimizers = [_custom(config, model)]
    elif isinstance(config, MuonConfig):
        optimizers = _muon(config, model)
    else:
        optimizers = [_adamw(config, list(model.parameters()), config.lr)]
    # The schedule multiplies the peak rate.
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def check_optimizer(config: OptimizerConfig, device: torch.device) -> None:
    """Build the optimizer for a small layer and take a step. Raises InputError where it does not work on this device.

    Skipped where it is known to work: to build one takes seconds, because torch.optim imports the compiler.
    """
    if device.type in ("cpu", "cuda") and not isinstance(config, CustomConfig):
        return
    # Called h, so that Muon takes its matrix, and AdamW its bias.
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


def _adamw(config: AdamWConfig, parameters: list[nn.Parameter], lr: float) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    groups = _parameter_groups(parameters, config.weight_decay)
    betas = tuple(config.betas)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=config.eps, fused=config.fused)


class _Muon(torch.optim.Muon):
    """Muon that orthogonalizes each matrix by itself where a group's parameters hold ``n_matrices``."""

    def _init_group(self, group, params_with_grad, grads, muon_momentum_bufs) -> bool:
        """Append the tensors that the step updates in place: a view of each matrix, its gradient and its momentum."""
        whole = ([], [], [])
        has_complex = super()._init_group(group, *whole)
        for tensors, parts in zip(whole, (params_with_grad, grads, muon_momentum_bufs), strict=True):
            for tensor in tensors:
                parts += tensor.chunk(group.get("n_matrices", 1))
        return has_complex


def _muon(config: MuonConfig, model: nn.Module) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) on the matrices of the blocks, AdamW on embeddings, head, biases and norms."""
    # Muon is for matrices that map hidden states to hidden states, which are those of the blocks.
    matrices = []
    fused = []  # query, key and value in one parameter, which Jordan et al. take for three
    others = []
    for name, p in model.named_parameters():
        if not (name.startswith("h.") and p.dim() == 2):
            others.append(p)
        elif config.split_qkv and name.endswith("c_attn.weight"):
            fused.append(p)
        else:
            matrices.append(p)
    groups = [{"params": matrices}, {"params": fused, "n_matrices": 3}]
    muon = _Muon(
        [group for group in groups if group["params"]],
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        adjust_lr_fn="match_rms_adamw",  # one rate suits both (Liu et al. 2025, "Muon is scalable", eq. 4)
    )
    return [muon, _adamw(config, others, config.adamw_lr)]


def _custom(config: CustomConfig, model: nn.Module) -> Optimizer:
    """A user's own class, built with the options that its signature takes. Raises InputError if it takes others."""
    optimizer_class = _import_optimizer(config._target_)
    options = {"lr": config.lr, "weight_decay": config.weight_decay, **config.options}
    if config.betas is not None:
        options["betas"] = tuple(config.betas)

    # A class without weight decay may be used with a weight decay of 0.
    allowed = list(inspect.signature(optimizer_class).parameters)[1:]  # the first are the groups
    if config.weight_decay == 0 and "weight_decay" not in allowed:
        del options["weight_decay"]
    unknown = [key for key in options if key not in allowed]
    if unknown:
        raise InputError(f"{config._target_} takes no {', '.join(unknown)}", f"it takes: {', '.join(allowed)}")

    groups = _parameter_groups(list(model.parameters()), options.get("weight_decay", 0.0))
    return optimizer_class(groups, **options)


def _import_optimizer(target: str) -> type[Optimizer]:
    """The class called ``package.Class``. Raises InputError where there is none, or it is no optimizer."""
    module, _, name = target.rpartition(".")
    if "" not in sys.path:  # where the command runs; last, so that it hides no package
        sys.path.append("")
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise InputError(
            f"optimizer._target_={target} cannot be imported: {error}",
            "give package.Class, importable from where the command runs",
        ) from error
    if not (isinstance(imported, type) and issubclass(imported, Optimizer)):
        raise InputError(f"optimizer._target_={target} is no torch.optim.Optimizer", "give a class that is one")
    return imported
