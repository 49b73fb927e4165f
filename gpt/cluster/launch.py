"""Run a function on 1 … N ranks: in this process, in processes of its own, or in those that torchrun has started."""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError, rendezvous_handler_registry
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gpt.cluster.rendezvous import Rendezvous
from gpt.config.schema import ClusterConfig, MultinodeConfig
from gpt.distributed import World
from gpt.errors import InputError, TrainingError
from gpt.signals import (
    FINISH_STEP,
    GO_ON,
    INSISTENT,
    Interrupt,
    block_signals_in_children,
    end_with,
    ignore_signals,
    unblock_signals,
)


def launch(cluster: ClusterConfig, function: Callable, *arguments: Any) -> Any:
    """``function(world, *arguments)`` on every rank; returns what rank 0 returns.

    Where ranks are started here, function, arguments and result are pickled. Raises InputError or TrainingError with
    the rank that failed first; the others are ended.
    """
    if cluster.name == "torchrun":
        ranks = {key: int(os.environ[key.upper()]) for key in ("rank", "local_rank")}
        return function(World(**ranks, size=int(os.environ["WORLD_SIZE"])), *arguments)
    if cluster.name == "single":
        return function(World(), *arguments)
    node_rank = cluster.node_rank if isinstance(cluster, MultinodeConfig) else 0
    if node_rank > 0:
        wait_for_machine_0(cluster)
    stop = multiprocessing.get_context("spawn").RawValue("i", GO_ON)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed is said once, here
    try:
        with tempfile.TemporaryDirectory() as private, Interrupt(stop), block_signals_in_children():
            agent = elastic_launch(launch_config(cluster, private), run_rank)
            results = agent(stop, Path(private), cluster, function, arguments)
    except ChildFailedError as error:
        (failure,) = error.failures.values()
        if failure.exitcode < 0 and stop.value != GO_ON:  # a signal to all, before this rank could tell
            raise KeyboardInterrupt from error
        raise explain(failure, node_rank * cluster.nproc + failure.local_rank) from error
    except (RendezvousError, DistError) as error:
        raise not_met(cluster) from error
    finally:
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
    return results[min(results)]


def wait_for_machine_0(cluster: MultinodeConfig) -> None:
    """Return once something listens at the address where all meet. Raises TrainingError after the time-out."""
    deadline = time.monotonic() + cluster.timeout
    while True:
        try:
            return socket.create_connection(cluster.address, timeout=cluster.timeout).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise not_met(cluster) from error
            time.sleep(0.5)


def not_met(cluster: ClusterConfig) -> TrainingError:
    """Not all machines came to the rendezvous."""
    where = cluster.rdzv_endpoint if isinstance(cluster, MultinodeConfig) else "localhost"
    return TrainingError(
        f"the machines did not all meet at {where} within cluster.timeout={cluster.timeout} s\n"
        "  start the command on every machine, each with its cluster.node_rank; all must reach this address"
    )


def launch_config(cluster: ClusterConfig, logs: str) -> LaunchConfig:
    """Of torch's elastic agent: no restarts, and signals left to :class:`Interrupt`."""
    nnodes, meeting = 1, {}
    if isinstance(cluster, MultinodeConfig):
        nnodes = cluster.nnodes
        meeting = {"node_rank": cluster.node_rank, "address": cluster.address, "timeout": cluster.timeout}
    rendezvous_handler_registry.register("gptlab", Rendezvous)
    return LaunchConfig(
        min_nodes=nnodes,
        max_nodes=nnodes,
        nproc_per_node=cluster.nproc,
        logs_specs=DefaultLogsSpecs(log_dir=logs or None),
        run_id="gptlab",
        rdzv_backend="gptlab",
        rdzv_configs=meeting,
        max_restarts=0,
        signals_to_handle="none",  # Interrupt has them
    )


def run_rank(stop: ctypes.c_int, private: Path, cluster: ClusterConfig, function: Callable, arguments: tuple) -> Any:
    """One rank, in a process of its own; ``private`` is a directory that no other user can enter."""
    end_with(multiprocessing.parent_process().pid)
    obey(stop)
    if cluster.threads is None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // cluster.nproc))
    local_rank, node_rank, nnodes = int(os.environ["LOCAL_RANK"]), 0, 1
    if isinstance(cluster, MultinodeConfig):
        node_rank, nnodes = cluster.node_rank, cluster.nnodes
    store = private / "store" if nnodes == 1 else None
    rank, size = node_rank * cluster.nproc + local_rank, nnodes * cluster.nproc
    return function(World(rank, local_rank, size, stop, store), *arguments)


def obey(stop: ctypes.c_int) -> None:
    """End on SIGTERM, unless the whole run was asked to end after its step.

    Terminals and schedulers signal every process, and it is for the one that started the ranks to ask them, by
    ``stop``. The agent signals a rank when another has failed; the rank may be waiting for that one, in C++, so that
    a thread of its own must listen.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno())  # gets the number of every signal at once, whichever thread the signal met
    ignore_signals()
    for number in INSISTENT:
        signal.signal(number, lambda *_: None)

    def listen() -> None:
        while True:
            if heard.recv(1)[0] not in INSISTENT:
                continue
            for _ in range(10):
                time.sleep(0.1)
                if stop.value != GO_ON:
                    break
            if stop.value != FINISH_STEP:
                os._exit(128 + signal.SIGTERM)

    told.detach()  # open as long as the process
    threading.Thread(target=listen, daemon=True).start()
    unblock_signals()


def explain(failure: ProcessFailure, rank: int) -> InputError | TrainingError:
    """What a failed rank has left behind, as an error of ours."""
    if not isinstance(failure.message, dict):  # it left no word
        how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
        return TrainingError(
            f"rank {rank} {how} and left no message\n"
            f"  logs/rank_{rank}.log may say more; where memory ran out, Linux ends a process by SIGKILL"
        )
    kind, _, text = failure.message["message"].partition(": ")
    if kind == InputError.__name__:
        problem, _, cure = text.partition("\n  ")
        return InputError(f"rank {rank}: {problem}", cure)
    if kind in (cls.__name__ for cls in (TrainingError, *TrainingError.__subclasses__())):
        return TrainingError(f"rank {rank}: {text}")
    return TrainingError(f"rank {rank}: {kind}: {text}\n{failure.message['extraInfo']['py_callstack']}")
