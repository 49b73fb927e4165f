"""All that is done to a model so that it trains fast: compilation, then DDP, in this order and in this place."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt.distributed import World
from gpt.loss import LossSum
from gpt.model import GPT

# The keyword that stops DDP from sending buffers: torch 2.13's name for it, and the older one.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def _recomputing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
    """torch.compile's own backend, told to save less for the backward pass than it would.

    At a budget below 1 it saves no activation that is had again without a matrix product: low-precision copies
    of weights, GELU and norms. (benchmarks/step.py: 0.4 GB less for GPT-2 124M in bf16.)
    """
    with torch._functorch.config.patch(activation_memory_budget=0.95):
        return torch._inductor.compile(graph, inputs)


def compile_blocks(model: GPT) -> None:
    """Compile each block in place, so that parameters keep their names."""
    torch._dynamo.config.optimize_ddp = False  # it would split blocks at DDP's buckets; blocks are regions enough
    torch._dynamo.reset()  # earlier jobs of a sweep would count against its limit of recompilations
    for block in model.h:
        block.compile(backend=_recomputing)


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work here, in a line; None where it does."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # a missing C++ compiler, Triton or Python header: each raises something else
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else repr(error)
    return None


def data_parallel(module: nn.Module, device: torch.device, world: World) -> nn.Module:
    """Wrap a module so that its backward pass averages gradients over all ranks; it starts with rank 0's weights."""
    if world.size == 1:
        return module
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, **{SYNC_BUFFERS: False})


def parallelize(model: GPT, device: torch.device, world: World, compiled: bool) -> nn.Module:
    """Return the model with its loss as one module for training, shared by all ranks; parameters keep their names."""
    if compiled:
        compile_blocks(model)
    return data_parallel(LossSum(model), device, world)
