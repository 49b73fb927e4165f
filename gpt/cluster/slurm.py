"""A run as a SLURM job: what sbatch is given, what the job does on each machine, and waiting for its end."""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitit import SlurmExecutor, SlurmJob
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmJobEnvironment

from gpt.cluster.machine import check_machine, resolve_ranks
from gpt.config.load import Config
from gpt.config.schema import ClusterConfig, MultinodeConfig, SlurmConfig
from gpt.errors import InputError, Interrupted, LostRank, TrainingError
from gpt.files import ROOT
from gpt.rundir import outcome

if TYPE_CHECKING:
    from gpt.tokens.tokenfile import TokenFile

# Where the machines of a job meet: a port by its number, below those that Linux gives out (32768 and above).
FIRST_PORT, PORTS = 16384, 16384
ALIVE = """
    PENDING CONFIGURING RUNNING COMPLETING SUSPENDED STOPPED REQUEUED SIGNALING STAGE_OUT RESIZING
""".split()
RESULT_AFTER_END = 10  # seconds that a shared file system may take to show what a job has written last
POLL = 2  # seconds


class Executor(SlurmExecutor):
    """Submitit's, which also shows the sbatch file where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def text(self) -> str:
        """The sbatch file."""
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def executor(config: Config, run_dir: Path) -> Executor:
    """For one run: a task on each machine, which starts the ranks there. Raises InputError for paths (check_paths)."""
    check_paths(run_dir.absolute())
    cluster = config.cluster
    executor = Executor(run_dir.absolute() / "slurm")
    asked = {"partition": cluster.partition, "account": cluster.account, "mem": cluster.memory}
    asked |= {"gpus-per-node": cluster.gpus or None} | cluster.sbatch
    executor.update_parameters(
        job_name=config.name,
        nodes=cluster.nnodes,
        ntasks_per_node=1,
        cpus_per_task=cluster.cpus or cluster.nproc,
        time=cluster.time,
        wckey=None,
        stderr_to_stdout=True,
        setup=[f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"', *cluster.setup],
        additional_parameters={key: value for key, value in asked.items() if value is not None},
    )
    return executor


def check_paths(run_dir: Path) -> None:
    """Quotes keep all but a few characters of a path in an sbatch file. Raises InputError for those."""
    for path, what, excluded in (
        (run_dir, "the output directory", "%\\"),  # which SLURM replaces in the names of logs
        (ROOT, "the directory of gptlab", ":"),  # which parts the directories of PYTHONPATH
    ):
        bad = [character for character in str(path) if character in excluded or not character.isprintable()]
        if bad:
            raise InputError(
                f"{what} {str(path)!r} has {bad[0]!r} in it, and no sbatch file can name it",
                "take another name, or run it without SLURM: cluster=ddp",
            )


def sbatch_file(config: Config) -> str:
    """What sbatch would be given, with OUTPUT_DIR for the directory that is not made yet."""
    return executor(config, Path("OUTPUT_DIR")).text().replace(str(Path("OUTPUT_DIR").absolute()), "OUTPUT_DIR")


def check_sbatch(config: Config, run_dir: Path | None) -> None:
    """There is a SLURM here, and it would take the job. Raises InputError.

    ``run_dir`` is None while it has no name yet; then it will be below where one is.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "cluster=slurm needs sbatch, and there is none here",
            "run the command where jobs are submitted; cluster.dry_run=true shows the sbatch file anywhere",
        )
    tried = subprocess.run(
        ["sbatch", "--test-only"], input=executor(config, run_dir or Path()).text(), capture_output=True, text=True
    )
    if tried.returncode:
        said = "; ".join(re.sub(r"^(sbatch: )?(error: )?", "", line) for line in tried.stderr.splitlines())
        raise InputError(
            f"sbatch would not take the job: {said}",
            "see cluster.partition, account, time, memory, gpus, cpus, nnodes and sbatch; cluster.dry_run=true shows "
            "the file",
        )


def on_machine(config: Config, train: "TokenFile", val: "TokenFile", run_dir: Path) -> dict[str, Any] | Exception:
    """The ranks of one machine of the job, on that machine; what went wrong is returned too, for who waits."""
    from gpt.cluster.launch import launch  # torch, which the machine that submits need not load
    from gpt.trainer import run

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit's handlers, which would requeue
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    resource_tracker.ensure_running()  # which ignores it too then: SLURM signals every process
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # the time limit is near
    try:
        if config.cluster.gpus and config.device == "auto":
            config.device = "cuda"  # and not the CPU, should the GPUs be missing
        config.cluster = meeting(config.cluster)
        resolve_ranks(config)
        check_machine(config)
        return launch(config.cluster, run, config, train, val, run_dir)
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error


def meeting(cluster: SlurmConfig) -> ClusterConfig:
    """How the ranks of this machine are started and find the others, from what SLURM has set."""
    here = SlurmJobEnvironment()
    shared = {"nproc": cluster.nproc, "threads": cluster.threads, "timeout": cluster.timeout}
    if cluster.nnodes == 1:
        return ClusterConfig(name="ddp" if cluster.nproc > 1 else "single", **shared)
    endpoint = f"{here.hostnames[0]}:{FIRST_PORT + int(here.job_id) % PORTS}"
    return MultinodeConfig(
        name="multinode", nnodes=cluster.nnodes, node_rank=here.node, rdzv_endpoint=endpoint, **shared
    )


def submit(config: Config, train: "TokenFile", val: "TokenFile", run_dir: Path) -> "Submitted":
    """Have SLURM run it. Raises InputError where sbatch refuses."""
    try:
        job: SlurmJob = executor(config, run_dir).submit(on_machine, config, train, val, run_dir)
    except FailedJobError as error:
        raise InputError(f"sbatch did not take the job: {error}", "cluster.dry_run=true shows its file") from error
    return Submitted(job, run_dir)


def attach(config: Config, run_dir: Path) -> "Submitted | None":
    """The job of a run that was submitted before, if it is not over."""
    names = [path.name.partition("_")[0] for path in (run_dir / "slurm").glob("*_submitted.pkl")]
    numbers = [int(name) for name in names if name.isdecimal()]
    if not numbers:
        return None
    job = SlurmJob((run_dir / "slurm").absolute(), str(max(numbers)), tasks=list(range(config.cluster.nnodes)))
    return Submitted(job, run_dir) if job_state(job.job_id).partition(" ")[0] in ALIVE else None


class Submitted:
    """A run that SLURM has taken."""

    def __init__(self, job: SlurmJob, run_dir: Path):
        self.job_id, self.run_dir = job.job_id, run_dir
        self.machines = [job.task(i) for i in range(job.num_tasks)]
        self.log = run_dir / "slurm" / job.paths.stdout.name
        self.state, self._asked, self._gone = "", -math.inf, None

    def is_over(self) -> bool:
        """Whether all its machines have left a result; asks SLURM now and then.

        Raises TrainingError where the job has ended without.
        """
        if all(machine.paths.result_pickle.exists() for machine in self.machines):
            return True
        now = time.monotonic()
        if now - self._asked < POLL:
            return False
        self.state, self._asked = job_state(self.job_id), now
        if self.state.partition(" ")[0] in ALIVE:
            self._gone = None
        elif self._gone is None:
            self._gone = now
        elif now - self._gone > RESULT_AFTER_END:
            raise TrainingError(
                f"SLURM job {self.job_id} has ended without a result: {self.state.lower()}\n"
                f"  see {self.log}; a checkpoint, if there is one, is intact: python train.py resume={self.run_dir}"
            )
        return False

    def news(self) -> Iterator[str]:
        """The states of the job until it runs, then the lines of its log; ends with the job. Raises TrainingError."""
        last, read, is_over = "", 0, False
        while not is_over:
            is_over = self.is_over()
            log = self.log.read_text(errors="replace") if self.log.exists() else ""
            lines = log if is_over else log[: log.rfind("\n") + 1]
            yield from (line for line in lines[read:].splitlines() if not line.startswith("submitit "))
            read = len(lines)
            if not is_over:
                if self.state != last and not log:
                    yield self.state.lower()
                last = self.state
                time.sleep(POLL)

    def result(self) -> float | None:
        """The validation loss of a run that has ended. Raises what ended it: InputError, TrainingError, Interrupted."""
        try:
            results = [machine.result() for machine in self.machines]
        except FailedJobError as error:
            raise TrainingError(f"SLURM job {self.job_id} failed: {error}") from error
        failed = [result for result in results if isinstance(result, Exception)]
        if failed:
            raise min(failed, key=lambda error: isinstance(error, LostRank))  # the machine at fault, where it is known
        return outcome(results[0], self.run_dir)

    def ended(self) -> tuple[str, str] | None:
        """How it ended (done, interrupted, failed) and why; None while it goes on."""
        try:
            if not self.is_over():
                return None
            self.result()
        except (InputError, TrainingError) as error:
            return "failed", str(error)
        except Interrupted:
            return "interrupted", ""
        return "done", ""

    def stop(self) -> None:
        """Ask for an end after the step, or before the first one."""
        signal_it = [] if job_state(self.job_id).startswith("PENDING") else ["--signal=USR2"]
        subprocess.run(["scancel", *signal_it, self.job_id], capture_output=True)


def job_state(job_id: str) -> str:
    """Of a job, such as PENDING (Resources); UNKNOWN once SLURM has forgotten it."""
    asked = subprocess.run(["scontrol", "show", "job", job_id, "--oneliner"], capture_output=True, text=True)
    if "Invalid job id" in asked.stderr:
        return "UNKNOWN"
    facts = dict(re.findall(r"(\w+)=(\S*)", asked.stdout))
    if "JobState" not in facts:
        return "PENDING (SLURM does not answer)"  # nothing says that it has ended
    reason = facts.get("Reason", "None")
    return facts["JobState"] + (f" ({reason})" if reason != "None" else "")


def wait(submitted: Submitted) -> float | None:
    """Wait for a run as if it ran here; returns its validation loss.

    Raises what ended it: InputError, TrainingError, Interrupted.
    """
    print(f"SLURM job   {submitted.job_id}\nlog         {submitted.log}", flush=True)
    try:
        for line in submitted.news():
            print(line, flush=True)
        return submitted.result()
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(
            "no longer waiting, and what was submitted goes on; to end it after its step:\n"
            f"  scancel --signal=USR2 {submitted.job_id}"
        ) from None
