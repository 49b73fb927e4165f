"""Run a function on 1 … N ranks: in this process, in processes of its own, or in those that torchrun has started."""

import atexit
import ctypes
import gc
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
    PROMISE,
    Interrupt,
    block_signals_in_children,
    end_with,
    ignore_signals,
    unblock_signals,
)

POLL = 0.5  # seconds between two attempts to reach machine 0
# A rank that gets a signal looks for an order so often, at intervals of so many seconds.
SIGNAL_POLLS = 10
SIGNAL_POLL = 0.1


def launch(cluster: ClusterConfig, function: Callable, *arguments: Any, promise: str = PROMISE) -> Any:
    """Call ``function(world, *arguments)`` on every rank; return what rank 0 returns.

    Where ranks are started here, function, arguments and result are pickled, and a signal to this process prints the
    ``promise``. Raises InputError or TrainingError with the rank that failed first; the others are ended.
    """
    # The ranks are there: those of torchrun, or this process.
    if cluster.name == "torchrun":
        rank = int(os.environ["RANK"])
        local_rank = int(os.environ["LOCAL_RANK"])
        return function(World(rank, local_rank, size=int(os.environ["WORLD_SIZE"])), *arguments)
    if cluster.name == "single":
        return function(World(), *arguments)

    # Or else torch's elastic agent starts them, and all machines meet.
    node_rank = cluster.node_rank if isinstance(cluster, MultinodeConfig) else 0
    if node_rank > 0:
        _wait_for_machine_0(cluster)
    stop = multiprocessing.get_context("spawn").RawValue("i", GO_ON)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # a failure is told once, here
    try:
        with tempfile.TemporaryDirectory() as private, Interrupt(stop, promise=promise), block_signals_in_children():
            agent = elastic_launch(_launch_config(cluster, private), _run_rank)
            results = agent(stop, Path(private), cluster, function, arguments)
    except ChildFailedError as error:
        (failure,) = error.failures.values()
        if failure.exitcode < 0 and stop.value != GO_ON:  # a signal to all, before this rank could handle it
            raise KeyboardInterrupt from error
        raise _explain_failure(failure, node_rank * cluster.nproc + failure.local_rank) from error
    except (RendezvousError, DistError) as error:
        raise _no_meeting(cluster) from error
    finally:
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
    return results[min(results)]


def _wait_for_machine_0(cluster: MultinodeConfig) -> None:
    """Return once machine 0 listens at the meeting place. Raises TrainingError after the time-out."""
    deadline = time.monotonic() + cluster.timeout
    while True:
        try:
            socket.create_connection(cluster.address, timeout=cluster.timeout).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise _no_meeting(cluster) from error
            time.sleep(POLL)


def _no_meeting(cluster: ClusterConfig) -> TrainingError:
    """Return the error of machines that did not all come to the rendezvous."""
    address = cluster.rdzv_endpoint if isinstance(cluster, MultinodeConfig) else "localhost"
    return TrainingError(
        f"the machines did not all meet at {address} within cluster.timeout={cluster.timeout} s\n"
        "  start the command on every machine, each with its cluster.node_rank; all must reach this address"
    )


def _launch_config(cluster: ClusterConfig, logs: str) -> LaunchConfig:
    """Return the settings of torch's elastic agent: no restarts, and signals left to :class:`Interrupt`."""
    # An agent alone needs no address.
    nnodes = 1
    meeting_place = {}
    if isinstance(cluster, MultinodeConfig):
        nnodes = cluster.nnodes
        meeting_place = {"node_rank": cluster.node_rank, "address": cluster.address, "timeout": cluster.timeout}
    rendezvous_handler_registry.register("gptlab", Rendezvous)
    return LaunchConfig(
        min_nodes=nnodes,
        max_nodes=nnodes,
        nproc_per_node=cluster.nproc,
        logs_specs=DefaultLogsSpecs(log_dir=logs or None),
        run_id="gptlab",
        rdzv_backend="gptlab",
        rdzv_configs=meeting_place,
        max_restarts=0,
        signals_to_handle="none",
    )


def _run_rank(stop: ctypes.c_int, private: Path, cluster: ClusterConfig, function: Callable, arguments: tuple) -> Any:
    """Run one rank in its own process; ``private`` is a directory that no other user can enter."""
    # The process that started the ranks decides how they end.
    end_with(multiprocessing.parent_process().pid)
    atexit.register(gc.freeze)  # as in every command: it ends a second sooner
    _obey(stop)
    if cluster.threads is None and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // cluster.nproc))

    # Ranks of one machine meet in a file, those of several at machine 0.
    node_rank = 0
    nnodes = 1
    if isinstance(cluster, MultinodeConfig):
        node_rank = cluster.node_rank
        nnodes = cluster.nnodes
    store = private / "store" if nnodes == 1 else None
    local_rank = int(os.environ["LOCAL_RANK"])
    rank = node_rank * cluster.nproc + local_rank
    return function(World(rank, local_rank, nnodes * cluster.nproc, stop, store), *arguments)


def _obey(stop: ctypes.c_int) -> None:
    """End on SIGTERM, unless the whole run was asked to end after its step.

    Terminals and schedulers signal every process, but only the one that started the ranks tells them what to do, by
    ``stop``. The agent signals a rank when another has failed. The rank may be waiting for that one in C++, so that a
    thread listens.
    """
    # Python writes the number of every signal into the socket at once, whichever thread got the signal.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    writer.detach()  # open as long as the process
    ignore_signals()
    for number in INSISTENT:
        signal.signal(number, lambda *_: None)

    def listen() -> None:
        while True:
            if reader.recv(1)[0] not in INSISTENT:
                continue
            # The starter got the signal too, and may need a moment to set stop.
            for _ in range(SIGNAL_POLLS):
                time.sleep(SIGNAL_POLL)
                if stop.value != GO_ON:
                    break
            if stop.value != FINISH_STEP:
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    unblock_signals()


def _explain_failure(failure: ProcessFailure, rank: int) -> InputError | TrainingError:
    """Return what a failed rank raised, with its rank, as InputError or TrainingError."""
    if not isinstance(failure.message, dict):  # the process ended without an exception
        how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
        return TrainingError(
            f"rank {rank} {how} and left no message\n"
            f"  logs/rank_{rank}.log may say more; where memory ran out, Linux ends a process by SIGKILL"
        )

    # Elastic keeps an exception as the text KIND: MESSAGE.
    kind, _, text = failure.message["message"].partition(": ")
    if kind == InputError.__name__:
        problem, _, cure = text.partition("\n  ")
        return InputError(f"rank {rank}: {problem}", cure)
    own_kinds = [cls.__name__ for cls in (TrainingError, *TrainingError.__subclasses__())]
    if kind in own_kinds:
        return TrainingError(f"rank {rank}: {text}")
    return TrainingError(f"rank {rank}: {kind}: {text}\n{failure.message['extraInfo']['py_callstack']}")
