"""Muon (Jordan et al. 2024) on matrices, with NorMuon's normalization and cautious weight decay."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr

from gpt.config.optimizer import MuonConfig

TINY = 1e-10  # in NorMuon's denominators (Li et al. 2025, their code)
NUMBERS_AT_ONCE = 2**24  # in matrices of one shape that are orthogonalized together: more would only take memory


class Muon(torch.optim.Muon):
    """torch's Muon, which takes matrices of one shape together, and has two changes to its update.

    A small matrix product is mostly waiting, on a GPU and on a CPU. Groups may hold ``heights``: the rows of each
    matrix in a parameter. ``beta2`` turns on NorMuon (Li et al. 2025, algorithm 1), and ``cautious`` cautious weight
    decay (Chen et al. 2025, algorithm 1).
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
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take a step. There is no closure."""
        for group in self.param_groups:
            tensors = ([], [], [])
            self._init_group(group, *tensors)

            # Matrices of one shape, as many at a time as do not take much memory.
            by_shape: dict[torch.Size, list[tuple]] = {}
            for matrix in zip(*tensors, self._second_moments(group), strict=True):
                by_shape.setdefault(matrix[0].shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                n_at_once = max(1, NUMBERS_AT_ONCE // shape.numel())
                for start in range(0, len(matrices), n_at_once):
                    parts = zip(*matrices[start : start + n_at_once], strict=True)
                    _update(*map(list, parts), group)

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


def _update(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    moments: list[Tensor | None],
    group: dict[str, Any],
) -> None:
    """Update matrices of one shape, their momenta, and their second moments in place."""
    # Muon's directions, as one tensor (N, rows, columns).
    torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
    directions = momenta
    if group["nesterov"]:
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
    updates = _orthogonalize(torch.stack(directions), group).to(weights[0].dtype)

    # NorMuon: every row over its running root mean square, and all of a matrix together as long as before.
    if moments[0] is not None:
        lengths = _lengths(updates)
        squares = updates.square().mean(dim=2, keepdim=True)
        torch._foreach_lerp_(moments, list(squares), 1 - group["beta2"])
        updates = updates / (torch.stack(moments).sqrt() + TINY)
        updates = updates * (lengths / (_lengths(updates) + TINY))

    # Decay, of all weights or of those that the update shrinks too, and the step.
    decay = group["lr"] * group["weight_decay"]
    if group["cautious"]:
        for weight, update in zip(weights, updates, strict=True):
            weight.sub_(weight * (update * weight >= 0), alpha=decay)
    else:
        torch._foreach_mul_(weights, 1 - decay)
    lr = _adjust_lr(group["lr"], group["adjust_lr_fn"], weights[0].shape)
    torch._foreach_add_(weights, list(updates), alpha=-lr)


def _orthogonalize(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """Return about the nearest semi-orthogonal matrix of each, by Newton-Schulz in bfloat16 (Jordan et al. 2024).

    Shapes (N, rows, columns), as torch.optim.Muon does it for one matrix.
    """
    a, b, c = group["ns_coefficients"]
    x = matrices.bfloat16()
    is_tall = x.size(1) > x.size(2)
    if is_tall:
        x = x.mT
    x = x / _lengths(x).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


def _lengths(matrices: Tensor) -> Tensor:
    """Return the Frobenius norm of each matrix, (N, 1, 1)."""
    return torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)


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
