"""Cross-entropy as a sum over tokens, without the logits of all of them at once."""

import math

import torch
from torch import Tensor, nn

from gpt.model import GPT
from gpt.tokens.windows import IGNORE

# Bytes of logits held at once, by the bytes of a number: enough for matrix products at full speed. Several chunks in
# low precision cost a float32 copy of the head's gradient, so there are fewer of them.
CHUNK_BYTES = {2: 2**28, 4: 5 * 2**25}
SOFTMAX_BYTES = 2**22  # of them in float32 on a CPU: small for the cache, but each part waits for all threads


def loss_sum(model: GPT, inputs: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
    """Sum of the losses (nats) of all targets that are not IGNORE; inputs and targets (B, T), result ().

    With ``documents`` (B, T), attention stays within them, see :meth:`gpt.model.GPT.forward`.

    Computed in float32 whatever the precision of the model.
    """
    hidden = model(inputs, documents=documents).flatten(0, 1)  # (B * T, C)
    return HeadLoss.apply(hidden, model.lm_head.weight, targets.flatten(), model.vocab_size, torch.is_grad_enabled())


class LossSum(nn.Module):
    """The model and its loss as one forward pass, which DistributedDataParallel wraps."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        return loss_sum(self.model, inputs, targets, documents)


class HeadLoss(torch.autograd.Function):
    """The head and its loss, chunk by chunk; the gradients are taken with the loss, where the logits still are.

    (As Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989. torch 2.13's own
    F.linear_cross_entropy returns the loss in the precision of the hidden states.)
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, with_gradients: bool) -> Tensor:
        """Hidden states (N, C), head (V, C) whose rows from vocab_size on are padding, targets (N,) -> ()."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        losses = torch.empty(len(hidden), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        grad_weight = None
        with torch.autocast(device, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            chunks = math.ceil(len(h) * len(w) * h.element_size() / CHUNK_BYTES[h.element_size()])
            rows = math.ceil(len(h) / chunks)
            buffer = h.new_empty(rows, len(w))
            for start in range(0, len(h), rows):
                chunk = slice(start, start + rows)
                logits = torch.mm(h[chunk], w.T, out=buffer[: len(h[chunk])])  # (rows, V)
                counts = (targets[chunk] != IGNORE)[:, None]
                softmax_(logits, targets[chunk].clamp(min=0), vocab_size, losses[chunk], with_gradients)
                losses[chunk] *= counts[:, 0]
                if with_gradients:
                    grad_hidden[chunk] = (logits @ w).mul_(counts)
                    grad_weight = accumulate(grad_weight, logits, h[chunk] * counts)
        if with_gradients:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_weight.float().mul_(grad), None, None, None


def softmax_(logits: Tensor, targets: Tensor, vocab_size: int, losses: Tensor, with_gradients: bool) -> None:
    """Fill in losses (rows,) and turn logits (rows, V) into their gradients."""
    logits[:, vocab_size:] = -math.inf
    rows = max(1, SOFTMAX_BYTES // (4 * logits.size(1))) if logits.device.type == "cpu" else len(logits)
    for part, index, loss in zip(logits.split(rows), targets[:, None].split(rows), losses.split(rows), strict=True):
        log_p = torch.log_softmax(part, -1, dtype=torch.float32)
        log_p_target = log_p.gather(1, index)
        torch.neg(log_p_target[:, 0], out=loss)
        if with_gradients:
            torch.exp(log_p, out=part)
            part.scatter_(1, index, log_p_target.expm1().to(part.dtype))  # p - 1, where it is rounded once


def accumulate(total: Tensor | None, grad_logits: Tensor, h: Tensor) -> Tensor:
    """Add (rows, V).T @ (rows, C) to what other chunks gave, in float32 once there are several."""
    if grad_logits.is_cuda and grad_logits.dtype != torch.float32:
        share = torch.mm(grad_logits.T, h, out_dtype=torch.float32)
    elif total is not None and h.dtype == torch.float32:
        return total.addmm_(grad_logits.T, h)
    else:
        share = grad_logits.T @ h
    return share if total is None else total.float().add_(share)
