"""Checks of a config against the machine that it runs on: device, memory, GPUs, a free port."""

import os
import socket
from typing import NamedTuple

from gpt.config.checks import check
from gpt.config.optimizer import CustomConfig
from gpt.config.schema import ClusterConfig, Config, MultinodeConfig
from gpt.errors import InputError, Unavailable

# Memory of a process that has imported torch, at least (measured: 150 to 300 MB).
PROCESS_BYTES = 100_000_000


def check_machine(config: Config) -> None:
    """Check that the device exists and supports the precision and the optimizer. Raises InputError."""
    from gpt.device import pick_device  # torch, once the rest is right
    from gpt.optimizer.build import check_optimizer
    from gpt.precision import check_precision

    device = pick_device(config.device)
    check_precision(config.precision.name, device)
    check_optimizer(config.optimizer, device)


def check_memory(config: Config) -> None:
    """Check that the machine has the least memory that training needs. Raises Unavailable."""
    from gpt.device import pick_device

    device = pick_device(config.device)
    needed = _least_memory(config)
    if device.type == "cuda":
        from torch.cuda import get_device_properties

        owner = "the GPU"
        available = get_device_properties(device).total_memory
    else:
        owner = "this machine"
        needed = _local_ranks(config.cluster) * (PROCESS_BYTES + needed)
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise Unavailable(
            f"training needs {needed / 1e9:,.0f} GB of memory at least, and {owner} has {available / 1e9:,.0f} GB",
            "take less of model.n_layer, n_embd, seq_len or vocab_multiple, batch.micro_batch_size or cluster.nproc",
        )


def _least_memory(config: Config) -> int:
    """Return a lower bound of the bytes that a rank needs; a plan estimates them better."""
    model = config.model
    positions = model.seq_len if model.position == "learned" else 0
    parameters = model.n_embd * (model.vocab_multiple + positions) + model.n_layer * model.block_matrices
    # In 32 bits: weight and gradient, and what the optimizer keeps at least.
    optimizer = config.optimizer
    is_known = type(optimizer) is not CustomConfig
    averages = min(optimizer.matrix_averages, optimizer.averages) if is_known else 0
    states = 4 * (2 + averages + config.trainer.n_averages) * parameters

    # Backward needs at least the input of every block, in 16 bits.
    inputs = 2 * config.micro_batch_size * model.seq_len * model.n_embd * model.n_layer
    return states + inputs


def _local_ranks(cluster: ClusterConfig) -> int:
    """Return the number of ranks on this machine; ``nproc`` of cluster=torchrun counts those of all machines."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if cluster.name == "torchrun" else cluster.nproc


def resolve_ranks(config: Config) -> None:
    """Fill in ``cluster.nproc`` where it is one rank per GPU, and check that every rank has a GPU. Raises InputError.

    Without GPUs, or with device=cpu, any number of ranks is allowed.
    """
    cluster = config.cluster
    is_torchrun = cluster.name == "torchrun"
    if is_torchrun and "TORCHELASTIC_RUN_ID" not in os.environ:
        raise InputError(
            "cluster=torchrun takes the ranks that torchrun has started, and it has started none",
            "torchrun --nproc_per_node=N train.py …, or cluster=single, or cluster=ddp",
        )
    if cluster.nproc == 1 or cluster.name == "slurm":  # the SLURM job checks its own machines, as ddp
        return
    from torch.cuda import device_count

    gpus = device_count() if config.device in ("auto", "cuda") else 0
    if cluster.nproc is None:
        if not gpus:
            raise InputError(
                f"cluster={cluster.name} takes a rank per GPU, and there is no GPU here for device={config.device}",
                "say how many ranks: cluster.nproc=2",
            )
        cluster.nproc = gpus
        check(config)  # the batch must divide by the ranks, which are known now
        return

    key = "torchrun --nproc-per-node" if is_torchrun else "cluster.nproc"
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_torchrun else cluster.nproc
    if 0 < gpus < ranks:
        raise InputError(
            f"{key}={ranks} is more ranks than there are GPUs here: {gpus}",
            f"allowed: up to {gpus}; with device=cpu as many as there is memory for",
        )


class _MachineReport(NamedTuple):
    """The GPUs of a machine, by the names that CUDA_VISIBLE_DEVICES takes, and the ranks of each run of a sweep.

    A run that the machine cannot run has the reason in place of its ranks.
    """

    gpus: list[str]
    ranks: list[int | InputError]


def check_machines(configs: list[Config]) -> _MachineReport:
    """Check the runs of a sweep. Called in a process of its own, so that the one that waits for them holds no GPU."""
    from torch.cuda import device_count

    ranks = []
    for config in configs:
        try:
            resolve_ranks(config)
            check_machine(config)
            check_memory(config)
            ranks.append(config.cluster.nproc)
        except InputError as error:
            ranks.append(error)

    # CUDA ignores the names from the first wrong one on, so that there may be fewer GPUs than names.
    count = device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return _MachineReport(names[:count], ranks)


def check_meeting_place(cluster: ClusterConfig) -> None:
    """Check that machine 0 has the address at which several machines meet, with a free port. Raises InputError."""
    if not isinstance(cluster, MultinodeConfig):
        return
    host, port = cluster.address
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"cluster.rdzv_endpoint={cluster.rdzv_endpoint}: there is no machine {host}: {error}",
            "give HOST:PORT, with machine 0's name as every machine knows it, or its IP address",
        ) from error

    # Only machine 0 listens.
    if cluster.node_rank != 0:
        return
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise InputError(
            f"cluster.rdzv_endpoint={cluster.rdzv_endpoint}: port {port} cannot be opened here: {error}",
            f"take another port, the same on every machine: cluster.rdzv_endpoint={host}:PORT",
        ) from error
