"""Changes to the blocks of a model, in place: compilation, and activation checkpointing around it.

Both replace a block's ``forward`` and leave ``block(...)`` as it is: hooks run, and parameters keep their names.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpt.model import GPT, LayerCache


def compile_blocks(model: GPT) -> None:
    """Compile each block for training and evaluation; decoding with a cache stays eager.

    One graph serves all blocks. The changing shapes of decoding would compile it again and again.
    """
    # Dynamo would split blocks at DDP's buckets; blocks are regions enough.
    torch._dynamo.config.optimize_ddp = False
    # Earlier jobs of a sweep would count against its limit of recompilations.
    torch._dynamo.reset()
    for block in model.h:
        block.forward = _compiled(block.forward)


def checkpoint_activations(model: GPT) -> None:
    """Let each block keep its input alone and run again for the backward pass (Chen et al. 2016).

    Call it after :func:`compile_blocks`. A compiled block then runs again as it is; a checkpoint inside the compiled
    region would change which random numbers dropout draws.
    """
    for block in model.h:
        block.forward = _checkpointed(block.forward)


def _compiled(eager: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(eager, backend=_saving_less)

    def forward(*inputs: Any, cache: LayerCache | None = None) -> Tensor:
        if cache is None:
            return compiled(*inputs)
        return eager(*inputs, cache=cache)

    return forward


def _checkpointed(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*inputs: Any, cache: LayerCache | None = None) -> Tensor:
        # With a cache, a second run would append its keys and values again.
        if cache is not None or not torch.is_grad_enabled():
            return inner(*inputs, cache=cache)
        return checkpoint(inner, *inputs, use_reentrant=False)

    return forward


def _saving_less(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
    """Compile with torch's own backend, told to save less for the backward pass than it would.

    At a budget below 1 it saves no activation that it can compute again without a matrix product: low-precision copies
    of weights, GELU and norms. (benchmarks/step.py: 0.4 GB less for GPT-2 124M in bf16.)
    """
    with torch._functorch.config.patch(activation_memory_budget=0.95):
        return torch._inductor.compile(graph, inputs)


def compiler_problem(device: torch.device) -> str | None:
    """The reason in a line why torch.compile does not work here; None where it works."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # a missing C++ compiler, Triton or Python header: each raises something else
        reason = str(error).strip()
        return f"{type(error).__name__}: {reason.splitlines()[0]}" if reason else repr(error)
    return None
