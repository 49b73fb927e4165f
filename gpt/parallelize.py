"""All that is done to a model for speed and memory: compilation, activation checkpointing around it, then DDP.

The first two replace the ``forward`` of each block and leave ``block(...)`` as it is: hooks run, and parameters keep
their names.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from gpt.distributed import World
from gpt.loss import LossSum
from gpt.model import GPT

# The keyword that stops DDP from sending buffers: torch 2.13's name for it, and the older one.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def parallelize(model: GPT, device: torch.device, world: World, compiled: bool) -> nn.Module:
    """Return the model and its loss as one module for training, on all ranks together.

    The model keeps its parameters and their names: it is evaluated, sampled from and saved as before.
    """
    if compiled:
        compile_blocks(model)
    if model.config.activation_checkpointing == "blocks":
        checkpoint_activations(model)
    return _data_parallel(LossSum(model), device, world)


def compile_blocks(model: GPT) -> None:
    """Compile each block for training and evaluation; decoding with a cache stays eager.

    One graph serves all blocks. The changing shapes of decoding would compile it again and again.
    """
    # Dynamo would split blocks at DDP's buckets; blocks are regions enough.
    torch._dynamo.config.optimize_ddp = False
    # Earlier jobs of a sweep would count against its limit of recompilations, and blocks of several kinds do: with and
    # without a window, the first and the last, each in training and in evaluation.
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
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

    def forward(*inputs: Any, cache: Any | None = None) -> Tensor:
        if cache is None:
            return compiled(*inputs)
        return eager(*inputs, cache=cache)

    return forward


def _checkpointed(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*inputs: Any, cache: Any | None = None) -> Tensor:
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


def _data_parallel(module: nn.Module, device: torch.device, world: World) -> nn.Module:
    """Wrap a module so that its backward pass averages gradients over all ranks; it starts with rank 0's weights."""
    if world.size == 1:
        return module
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, **{SYNC_BUFFERS: False})
