"""Where the jobs of a sweep run: slots of this machine, each with devices of its own, and the processes in them."""

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
    """Room for one job: GPUs as CUDA_VISIBLE_DEVICES names them, CPU cores; None: all that there are."""

    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None


def cpu_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if CAN_PIN else list(range(os.cpu_count() or 1))


def share_out(slots: int | None, gpus: int | None, threads: int | None, present: list[str], ranks: int) -> list[Slot]:
    """The slots for jobs of up to ``ranks`` ranks on the GPUs that are ``present``, or, without, on the CPU's cores.

    The other arguments are the keys of ``hydra.launcher``. Raises InputError where there is not so much.
    """
    for key, value in (("slots", slots), ("gpus", gpus), ("threads", threads)):
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"hydra.launcher.{key}={value} makes no sense", "allowed: at least 1, or null")
    each = gpus or ranks
    count = slots or max(1, len(present) // each)
    if count == 1 and gpus is None and threads is None:
        return [Slot()]
    if present and count * each > len(present):
        raise InputError(
            f"hydra.launcher.slots={count} with {each} GPUs per job needs {count * each} GPUs, and {len(present)} are "
            "there",
            f"allowed: hydra.launcher.slots up to {len(present) // each}, or fewer GPUs per job (cluster.nproc, "
            "hydra.launcher.gpus)",
        )
    cores = cpu_cores()
    width = threads or len(cores) // count
    if count * max(1, width) > len(cores) and not (present and threads is None):
        raise InputError(
            f"hydra.launcher.slots={count} with {max(1, width)} CPU cores per job needs {count * max(1, width)} cores, "
            f"and {len(cores)} are there",
            f"allowed: hydra.launcher.slots up to {len(cores) // max(1, threads or 1)}",
        )
    return [
        Slot(
            gpus=tuple(present[i * each : (i + 1) * each]) if present else None,
            cores=tuple(cores[i * width : (i + 1) * width]) or None,  # on GPUs, few cores are shared
        )
        for i in range(count)
    ]


def enter(slot: Slot, parent: int) -> None:
    """Let this process, which ``parent`` has started, be a job's: on the cores of its slot, no longer than parent."""
    end_with(parent)
    if slot.cores is not None and CAN_PIN:  # torch takes as many threads
        os.sched_setaffinity(0, slot.cores)


class Process:
    """A job in a process of its own, which ends with this one; what it says goes to a file in its directory."""

    def __init__(self, overrides: list[str], run_dir: Path, slot: Slot):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.log = run_dir / LOG
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        if slot.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        if slot.cores is not None and not CAN_PIN:
            environment["OMP_NUM_THREADS"] = str(len(slot.cores))
        with open(self.log, "ab") as log:
            self.began = log.tell()
            self.process = self._start([sys.executable, str(ROOT / "train.py"), *overrides], environment, slot, log)

    @staticmethod
    def _start(command: list[str], environment: dict[str, str], slot: Slot, log: IO[bytes]) -> subprocess.Popen:
        parent = os.getpid()
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it through stop() alone
            preexec_fn=lambda: enter(slot, parent),
        )

    def ended(self) -> tuple[str, str] | None:
        """How it ended (done, interrupted, failed) and why; None while it goes on."""
        code = self.process.poll()
        if code is None:
            return None
        if code in (0, Interrupted.exit_code):
            return ("interrupted" if code else "done"), ""
        if code < 0:
            return "failed", f"ended by {signal.Signals(-code).name}"
        return "failed", self.error() or f"ended with exit code {code}"

    def error(self) -> str:
        """What it said last that begins like an error."""
        with open(self.log, "rb") as log:
            log.seek(self.began)
            lines = log.read().decode(errors="replace").splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        if starts:
            return "\n".join(lines[starts[-1] :]).removeprefix("error: ")
        return lines[-1] if lines else ""

    def stop(self) -> None:
        """Ask for an end after the step; asked again, it ends at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """End it, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
