"""Slots, which are shares of this machine with devices of their own, and the processes that run jobs in them."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpt.errors import InputError, Interrupted
from gpt.files import ROOT
from gpt.signals import end_with

LOG = "log.txt"  # of a job, in its directory
CAN_PIN = hasattr(os, "sched_setaffinity")


@dataclass(frozen=True)
class Slot:
    """A share of the machine for one job: GPUs as CUDA_VISIBLE_DEVICES names them, and CPU cores. None: all of them."""

    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None


def _cpu_cores() -> list[int]:
    """Return the cores that this process may use."""
    if CAN_PIN:
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def share_out(
    slots: int | None,
    gpus: int | None,
    threads: int | None,
    present: list[str],
    ranks: int,
) -> list[Slot]:
    """Return the slots for jobs of up to ``ranks`` ranks, on the GPUs that are ``present``, or else on the CPU's cores.

    The other arguments are the keys of ``hydra.launcher``. Raises InputError where the machine has too few.
    """
    _check_count("slots", slots)
    _check_count("gpus", gpus)
    _check_count("threads", threads)

    # One job at a time has the whole machine, unless it is told to take less.
    gpus_per_job = gpus or ranks
    n_slots = slots or max(1, len(present) // gpus_per_job)
    if n_slots == 1 and gpus is None and threads is None:
        return [Slot()]

    # Jobs on GPUs may share the cores where there are few.
    if present:
        _check_gpus(n_slots, gpus_per_job, len(present))
    cores = _cpu_cores()
    cores_per_job = threads or len(cores) // n_slots
    if threads is not None or not present:
        _check_cores(n_slots, cores_per_job, len(cores), threads)

    shares = []
    for number in range(n_slots):
        gpu_share = _share(present, number, gpus_per_job)
        core_share = _share(cores, number, cores_per_job)
        shares.append(Slot(gpu_share if present else None, core_share or None))
    return shares


def _share(devices: list, number: int, size: int) -> tuple:
    """Return the devices of a slot."""
    first = number * size
    return tuple(devices[first : first + size])


def _check_count(key: str, value: int | None) -> None:
    """Check that a key of ``hydra.launcher`` is a positive number or null. Raises InputError."""
    if value is None:
        return
    if type(value) is not int or value < 1:
        raise InputError(
            f"hydra.launcher.{key}={value} makes no sense",
            "allowed: at least 1, or null",
        )


def _check_gpus(n_slots: int, gpus_per_job: int, n_gpus: int) -> None:
    """Check that there are GPUs for all slots. Raises InputError."""
    needed = n_slots * gpus_per_job
    if needed > n_gpus:
        most_slots = n_gpus // gpus_per_job
        raise InputError(
            f"hydra.launcher.slots={n_slots} with {gpus_per_job} GPUs per job needs {needed} GPUs, "
            f"and {n_gpus} are there",
            f"allowed: hydra.launcher.slots up to {most_slots}, "
            "or fewer GPUs per job (cluster.nproc, hydra.launcher.gpus)",
        )


def _check_cores(n_slots: int, cores_per_job: int, n_cores: int, threads: int | None) -> None:
    """Check that there are CPU cores for all slots. Raises InputError."""
    cores_per_job = max(1, cores_per_job)
    needed = n_slots * cores_per_job
    if needed > n_cores:
        most_slots = n_cores // (threads or 1)
        raise InputError(
            f"hydra.launcher.slots={n_slots} with {cores_per_job} CPU cores per job needs {needed} cores, "
            f"and {n_cores} are there",
            f"allowed: hydra.launcher.slots up to {most_slots}",
        )


def _enter(slot: Slot, parent: int) -> None:
    """Prepare this process, which ``parent`` has started, for a job: on its slot's cores, ending with the parent."""
    end_with(parent)
    if slot.cores is not None and CAN_PIN:  # torch takes as many threads
        os.sched_setaffinity(0, slot.cores)


class Process:
    """A job in a process of its own, which ends with this one. Its output goes to a file in its directory."""

    def __init__(self, overrides: list[str], run_dir: Path, slot: Slot):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.log = run_dir / LOG

        # It sees the devices of its slot alone. Tracebacks of Hydra have no place in its log.
        environment = dict(os.environ)
        environment.pop("HYDRA_FULL_ERROR", None)
        if slot.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        if slot.cores is not None and not CAN_PIN:
            environment["OMP_NUM_THREADS"] = str(len(slot.cores))

        # An earlier start of the job may have written to its log.
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        with open(self.log, "ab") as log:
            self.log_start = log.tell()
            self.process = self._start(command, environment, slot, log)

    @staticmethod
    def _start(
        command: list[str],
        environment: dict[str, str],
        slot: Slot,
        log: IO[bytes],
    ) -> subprocess.Popen:
        parent = os.getpid()
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it through stop() alone
            preexec_fn=lambda: _enter(slot, parent),
        )

    def ended(self) -> tuple[str, str] | None:
        """Return how it ended (done, interrupted, failed) and why; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None

        # The exit codes of train.py, then those of signals.
        if code == 0:
            return "done", ""
        if code == Interrupted.exit_code:
            return "interrupted", ""
        if code < 0:
            return "failed", f"ended by {signal.Signals(-code).name}"
        return "failed", self._error() or f"ended with exit code {code}"

    def _error(self) -> str:
        """Return the last error message in the log, or else its last line."""
        with open(self.log, "rb") as log:
            log.seek(self.log_start)
            text = log.read().decode(errors="replace")
        lines = text.splitlines()

        # The message goes on to the end of the log.
        for number in reversed(range(len(lines))):
            if lines[number].startswith("error: "):
                message = "\n".join(lines[number:])
                return message.removeprefix("error: ")
        return lines[-1] if lines else ""

    def stop(self) -> None:
        """Ask it to end after its step; asked again, it ends at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
