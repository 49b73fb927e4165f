"""The head and its cross-entropy, without the logits of all tokens at once."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.tokens.windows import IGNORE

# Bytes of logits at a time, by the bytes of a number: enough for matrix products at full speed. Several chunks in
# low precision cost a float32 copy of the head's gradient, so there are fewer of them.
CHUNK_BYTES = {2: 2**28, 4: 5 * 2**25}
SOFTMAX_BYTES = 2**22  # of them in float32 on a CPU: small for the cache, but each part waits for all threads


class Head(NamedTuple):
    """How logits become losses."""

    vocab_size: int  # rows behind it are padding
    softcap: float | None
    z_loss: float


class HeadLoss(torch.autograd.Function):
    """The head and its loss, chunk by chunk; the gradients are computed with the loss, while the logits exist.

    (As Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989. torch 2.13's own
    F.linear_cross_entropy returns the loss in the precision of the hidden states.)
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, with_gradients: bool) -> Tensor:
        """Hidden states (N, C), head (V, C) with padding in its rows from vocab_size on, targets (N,) -> ()."""
        device = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        losses = torch.empty(len(hidden), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        grad_weight = None

        with torch.autocast(device, enabled=False):
            h = hidden.to(dtype)
            w = weight.to(dtype)
            # Chunks of equal size, whose logits share one buffer.
            number_bytes = h.element_size()
            logits_bytes = len(h) * len(w) * number_bytes
            n_chunks = math.ceil(logits_bytes / CHUNK_BYTES[number_bytes])
            rows = math.ceil(len(h) / n_chunks)
            buffer = h.new_empty(rows, len(w))
            for start in range(0, len(h), rows):
                chunk = slice(start, start + rows)
                chunk_targets = targets[chunk]
                is_target = chunk_targets != IGNORE
                logits = torch.mm(h[chunk], w.T, out=buffer[: len(chunk_targets)])  # (rows, V)
                # From here on the buffer holds the gradients of the logits, if they are asked for.
                _softmax_(logits, chunk_targets.clamp(min=0), head, losses[chunk], with_gradients)
                losses[chunk] *= is_target
                if with_gradients:
                    counts = is_target[:, None]  # (rows, 1)
                    grad_hidden[chunk] = (logits @ w).mul_(counts)
                    grad_weight = _accumulate(grad_weight, logits, h[chunk] * counts)
        if with_gradients:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_weight.float().mul_(grad), None, None, None


def _softmax_(logits: Tensor, targets: Tensor, head: Head, losses: Tensor, with_gradients: bool) -> None:
    """Fill in losses (rows,) and turn logits (rows, V) into their gradients."""
    logits[:, head.vocab_size :] = -math.inf
    # A GPU takes all rows at once, a CPU as many as its cache holds.
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, SOFTMAX_BYTES // (4 * logits.size(1)))
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows]
        index = targets[start : start + rows, None]
        slope = None
        scores = part
        if head.softcap is not None:
            scores, slope = _capped(part, head)
        log_p = torch.log_softmax(scores, -1, dtype=torch.float32)
        log_p_target = log_p.gather(1, index)
        torch.neg(log_p_target[:, 0], out=losses[start : start + rows])
        if not with_gradients:
            continue

        # p, and p - 1 for the target, where it is rounded once. From here on the scores are no more.
        at_target = log_p_target.expm1()
        log_z = scores.gather(1, index).float() - log_p_target  # (rows, 1)
        torch.exp(log_p, out=part)
        if head.z_loss:
            # The gradient of z_loss log(Z)^2 is 2 z_loss log(Z) p.
            factor = 2 * head.z_loss * log_z
            part.mul_(1 + factor)
            at_target += factor * log_p_target.exp()
        part.scatter_(1, index, at_target.to(part.dtype))
        if slope is not None:
            part.mul_(slope)


def _capped(logits: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Capped logits (rows, V) in float32, and their slope in those that were given; padding stays at -inf."""
    tanh = torch.tanh(logits.float() / head.softcap)
    slope = 1 - tanh.square()
    scores = tanh.mul_(head.softcap)
    scores[:, head.vocab_size :] = -math.inf
    return scores, slope


def _accumulate(total: Tensor | None, grad_logits: Tensor, h: Tensor) -> Tensor:
    """Add (rows, V).T @ (rows, C) to the sum over earlier chunks, in float32 once there are several."""
    if grad_logits.is_cuda and grad_logits.dtype != torch.float32:
        product = torch.mm(grad_logits.T, h, out_dtype=torch.float32)
    elif total is not None and h.dtype == torch.float32:
        return total.addmm_(grad_logits.T, h)
    else:
        product = grad_logits.T @ h
    return product if total is None else total.float().add_(product)
