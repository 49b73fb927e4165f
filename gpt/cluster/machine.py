"""What a config needs of the machine it runs on: device, GPUs, a free port. Imports torch when it is asked."""

import os
import socket
from typing import NamedTuple

from gpt.config.checks import check
from gpt.config.load import Config, flatten
from gpt.config.schema import ClusterConfig, MultinodeConfig
from gpt.errors import InputError, Unavailable


def check_machine(config: Config) -> None:
    """The device, and whether it has the precision and the optimizer. Raises InputError."""
    from gpt.device import pick_device  # torch, once the rest is right
    from gpt.optim import check_optimizer
    from gpt.precision import check_precision

    device = pick_device(config.device)
    check_precision(config.precision.name, device)
    check_optimizer(config.optimizer, device)


# What a process holds that has imported torch, at least (measured: 150 to 300 MB).
PROCESS_BYTES = 100_000_000
# Bytes per parameter: weight and gradient, and the averages that the optimizer keeps, where they are known.
STATE_BYTES = {"adamw": 16, "muon": 12}


def least_memory(config: Config) -> int:
    """Bytes that a rank needs in training at the very least; :func:`gpt.cli.plan.memory` says what it will need."""
    model = config.model
    positions = model.seq_len if model.position == "learned" else 0
    parameters = model.n_embd * (model.vocab_multiple + positions + 12 * model.n_layer * model.n_embd)
    inputs = 2 * config.micro_batch_size * model.seq_len * model.n_embd * model.n_layer  # of the blocks, in 16 bits
    return STATE_BYTES.get(config.optimizer.name, 8) * parameters + inputs


def check_memory(config: Config) -> None:
    """What training needs at the very least is there. Raises Unavailable."""
    from gpt.device import pick_device

    needed, what = least_memory(config), "this machine"
    device = pick_device(config.device)
    if device.type == "cuda":
        from torch.cuda import get_device_properties

        what, available = "the GPU", get_device_properties(device).total_memory
    else:
        is_torchrun = config.cluster.name == "torchrun"  # whose nproc counts the ranks of all machines
        ranks = int(os.environ["LOCAL_WORLD_SIZE"]) if is_torchrun else config.cluster.nproc
        needed = ranks * (PROCESS_BYTES + needed)
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise Unavailable(
            f"training needs {needed / 1e9:,.0f} GB of memory at least, and {what} has {available / 1e9:,.0f} GB",
            "take less of model.n_layer, n_embd, seq_len or vocab_multiple, batch.micro_batch_size or cluster.nproc",
        )


def settle(config: Config) -> None:
    """Fill in ``cluster.nproc`` where it is one rank per GPU, and see that all find one. Raises InputError."""
    cluster = config.cluster
    if cluster.name == "torchrun" and "TORCHELASTIC_RUN_ID" not in os.environ:
        raise InputError(
            "cluster=torchrun takes the ranks that torchrun has started, and it has started none",
            "torchrun --nproc_per_node=N train.py …, or cluster=single, or cluster=ddp",
        )
    if cluster.nproc == 1 or cluster.name == "slurm":  # where SLURM runs it, it is checked as ddp
        return
    from torch.cuda import device_count

    gpus = device_count() if config.device in ("auto", "cuda") else 0
    ranks, key = cluster.nproc, "cluster.nproc"
    if cluster.name == "torchrun":
        ranks, key = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "torchrun --nproc-per-node"
    if cluster.nproc is None:
        if not gpus:
            raise InputError(
                f"cluster={cluster.name} takes a rank per GPU, and there is no GPU here for device={config.device}",
                "say how many ranks: cluster.nproc=2",
            )
        cluster.nproc = gpus
        check(config, flatten(config))  # now that the ranks are known
    elif 0 < gpus < ranks:
        raise InputError(
            f"{key}={ranks} is more ranks than there are GPUs here: {gpus}",
            f"allowed: up to {gpus}; with device=cpu as many as there is memory for",
        )


class Found(NamedTuple):
    """What a machine says of the runs of a sweep: its GPUs by the names that CUDA_VISIBLE_DEVICES takes, and of each
    run the ranks that it would have, or what is wrong with it."""

    gpus: list[str]
    ranks: list[int | InputError]


def check_machines(configs: list[Config]) -> Found:
    """See :class:`Found`. Asked in a process of its own, so that who waits for the runs holds no GPU."""
    from torch.cuda import device_count

    ranks = []
    for config in configs:
        try:
            settle(config)
            check_machine(config)
            check_memory(config)
            ranks.append(config.cluster.nproc)
        except InputError as error:
            ranks.append(error)
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = device_count()  # of which there are fewer where a name is wrong
    return Found(named[:count] if named != [""] else [str(i) for i in range(count)], ranks)


def check_meeting_place(cluster: ClusterConfig) -> None:
    """The address at which several machines meet is one, and its port is free on machine 0. Raises InputError."""
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
    if cluster.node_rank != 0:
        return
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise InputError(
            f"cluster.rdzv_endpoint={cluster.rdzv_endpoint}: port {port} cannot be opened here: {error}",
            f"take another port, the same on every machine: cluster.rdzv_endpoint={host}:PORT",
        ) from error
