"""Cross-entropy as a sum over tokens, without the logits of all of them at once."""

import math

import torch
from torch import Tensor, nn

from gpt.model import GPT, document_layout
from gpt.tokens.windows import IGNORE

# Bytes of logits at a time, by the bytes of a number: enough for matrix products at full speed. Several chunks in
# low precision cost a float32 copy of the head's gradient, so there are fewer of them.
CHUNK_BYTES = {2: 2**28, 4: 5 * 2**25}
SOFTMAX_BYTES = 2**22  # of them in float32 on a CPU: small for the cache, but each part waits for all threads


def loss_sum(model: GPT, inputs: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
    """Sum of the losses (nats) of all targets that are not IGNORE; inputs and targets (B, T), result ().

    With ``documents`` (B, T), attention stays within them, see :func:`gpt.model.document_layout`.

    Computed in float32 whatever the precision of the model.
    """
    layout = None if documents is None else document_layout(documents)
    hidden = model(inputs, layout=layout).flatten(0, 1)  # (B * T, C)
    with_gradients = torch.is_grad_enabled()
    return _HeadLoss.apply(hidden, model.lm_head.weight, targets.flatten(), model.vocab_size, with_gradients)


class LossSum(nn.Module):
    """The model and its loss as one forward pass, which DistributedDataParallel wraps."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        return loss_sum(self.model, inputs, targets, documents)


class _HeadLoss(torch.autograd.Function):
    """The head and its loss, chunk by chunk; the gradients are computed with the loss, while the logits exist.

    (As Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989. torch 2.13's own
    F.linear_cross_entropy returns the loss in the precision of the hidden states.)
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, with_gradients: bool) -> Tensor:
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
                _softmax_(logits, chunk_targets.clamp(min=0), vocab_size, losses[chunk], with_gradients)
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


def _softmax_(logits: Tensor, targets: Tensor, vocab_size: int, losses: Tensor, with_gradients: bool) -> None:
    """Fill in losses (rows,) and turn logits (rows, V) into their gradients."""
    logits[:, vocab_size:] = -math.inf
    # A GPU takes all rows at once, a CPU as many as its cache holds.
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, SOFTMAX_BYTES // (4 * logits.size(1)))
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows]
        index = targets[start : start + rows, None]
        log_p = torch.log_softmax(part, -1, dtype=torch.float32)
        log_p_target = log_p.gather(1, index)
        torch.neg(log_p_target[:, 0], out=losses[start : start + rows])
        if with_gradients:
            torch.exp(log_p, out=part)
            part.scatter_(1, index, log_p_target.expm1().to(part.dtype))  # p - 1, where it is rounded once


def _accumulate(total: Tensor | None, grad_logits: Tensor, h: Tensor) -> Tensor:
    """Add (rows, V).T @ (rows, C) to the sum over earlier chunks, in float32 once there are several."""
    if grad_logits.is_cuda and grad_logits.dtype != torch.float32:
        product = torch.mm(grad_logits.T, h, out_dtype=torch.float32)
    elif total is not None and h.dtype == torch.float32:
        return total.addmm_(grad_logits.T, h)
    else:
        product = grad_logits.T @ h
    return product if total is None else total.float().add_(product)
