"""Muon (Jordan et al. 2024) on matrices, with NorMuon's normalization and cautious weight decay."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from gpt.config.optimizer import MuonConfig

TINY = 1e-10  # in NorMuon's denominators (Li et al. 2025, their code)


class Muon(torch.optim.Muon):
    """torch's Muon, which can take a parameter for several matrices, and has two changes to its update.

    Groups may hold ``heights``: the rows of each matrix in a parameter. ``beta2`` turns on NorMuon (Li et al. 2025,
    algorithm 1), and ``cautious`` cautious weight decay (Chen et al. 2025, algorithm 1).
    """

    def _init_group(self, group, params_with_grad, grads, muon_momentum_bufs) -> bool:
        """Append the tensors that the step updates in place: a view of each matrix, its gradient and its momentum."""
        whole = ([], [], [])
        has_complex = super()._init_group(group, *whole)
        for tensors, parts in zip(whole, (params_with_grad, grads, muon_momentum_bufs), strict=True):
            for tensor in tensors:
                parts += _matrices(tensor, group)
        return has_complex

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step, by torch's own function where the update is Muon's. There is no closure otherwise."""
        if not any(group["cautious"] or group["beta2"] is not None for group in self.param_groups):
            return super().step(closure)
        for group in self.param_groups:
            tensors = ([], [], [])
            self._init_group(group, *tensors)
            moments = self._second_moments(group)
            for p, gradient, momentum, moment in zip(*tensors, moments, strict=True):
                _update(p, gradient, momentum, moment, group)
        return None

    def _second_moments(self, group: dict[str, Any]) -> list[Tensor | None]:
        """Return NorMuon's mean square of every row of each matrix, (rows, 1); None for all without it."""
        moments: list[Tensor | None] = []
        for p in group["params"]:
            if p.grad is None:
                continue
            if group["beta2"] is None:
                moments += [None] * len(_matrices(p, group))
                continue
            state = self.state[p]
            if "second_moment" not in state:
                state["second_moment"] = torch.zeros_like(p[:, :1])
            moments += _matrices(state["second_moment"], group)
        return moments


def _matrices(tensor: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return views of the matrices that a parameter, or what belongs to it row by row, holds."""
    return tensor.split(group["heights"]) if "heights" in group else (tensor,)


def _update(p: Tensor, gradient: Tensor, momentum: Tensor, moment: Tensor | None, group: dict[str, Any]) -> None:
    """Update a matrix, its momentum, and its second moment in place."""
    # Muon's direction.
    momentum.lerp_(gradient, 1 - group["momentum"])
    update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
    update = _zeropower_via_newtonschulz(update, group["ns_coefficients"], group["ns_steps"], group["eps"]).to(p.dtype)

    # NorMuon: every row over its running root mean square, and all of them together as long as before.
    if moment is not None:
        length = update.norm()
        moment.lerp_(update.square().mean(dim=1, keepdim=True), 1 - group["beta2"])
        update = update / (moment.sqrt() + TINY)
        update = update * (length / (update.norm() + TINY))

    # Decay, of all weights or of those that the update shrinks too, and the step.
    decay = group["lr"] * group["weight_decay"]
    if group["cautious"]:
        p.sub_(p * (update * p >= 0), alpha=decay)
    else:
        p.mul_(1 - decay)
    p.sub_(update, alpha=_adjust_lr(group["lr"], group["adjust_lr_fn"], p.shape))


def build_muon(config: MuonConfig, matrices: list[tuple[str, nn.Parameter]]) -> Muon:
    """Return Muon on the matrices of the blocks, by name. Muon is for maps of hidden states to hidden states."""
    # Parameters that are one matrix, and those that are several.
    whole = []
    fused = {}  # query, key and value in one parameter, which Jordan et al. take for three: by their heights
    for name, p in matrices:
        if config.split_qkv and name.endswith("c_attn.weight"):
            fused.setdefault(heights_of_qkv(p), []).append(p)
        else:
            whole.append(p)
    groups: list[dict[str, Any]] = [{"params": whole}] if whole else []
    for heights, parameters in fused.items():
        groups.append({"params": parameters, "heights": heights})

    # The options of all groups, and beside torch's own those of our changes.
    decay = config.groups.matrices.weight_decay
    muon = Muon(
        groups,
        lr=config.group_lr("matrices"),
        weight_decay=config.weight_decay if decay is None else decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        adjust_lr_fn="match_rms_adamw",  # one rate suits both (Liu et al. 2025, "Muon is scalable", eq. 4)
    )
    for group in muon.param_groups:
        group["beta2"] = config.normuon_beta2 if config.normuon else None
        group["cautious"] = config.cautious_weight_decay
    return muon


def heights_of_qkv(p: nn.Parameter) -> tuple[int, int, int]:
    """Return the rows of query, key and value in their common matrix: key and value may have fewer than the query."""
    rows, width = p.shape
    of_key = (rows - width) // 2
    return (width, of_key, of_key)


def warm_up_momentum(config: MuonConfig, muon: torch.optim.Optimizer, tokens: int) -> None:
    """Set Muon's momentum for the step that brings the run to ``tokens``: a line up to its own."""
    if config.momentum_warmup is None:
        return
    part = min(1.0, tokens / config.momentum_warmup)
    for group in muon.param_groups:
        group["momentum"] = config.momentum_start + part * (config.momentum - config.momentum_start)
