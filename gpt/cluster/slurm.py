"""A run as a SLURM job: its sbatch file, its work on each machine, and waiting for its end."""

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

from gpt.cluster.environment import as_shell
from gpt.cluster.machine import check_machine, resolve_ranks
from gpt.config.schema import ClusterConfig, Config, MultinodeConfig, SlurmConfig
from gpt.errors import InputError, Interrupted, LostRank, TrainingError
from gpt.files import ROOT
from gpt.rundir import outcome

if TYPE_CHECKING:
    from gpt.tokens.tokenfile import TokenFile

# The machines of a job meet at a port by its number, below those that Linux gives out (32768 and above).
FIRST_PORT = 16384
PORTS = 16384
ALIVE = """
    PENDING CONFIGURING RUNNING COMPLETING SUSPENDED STOPPED REQUEUED SIGNALING STAGE_OUT RESIZING
""".split()
RESULT_AFTER_END = 10  # seconds until a shared file system shows what a job has written last
POLL = 2  # seconds


class _Executor(SlurmExecutor):
    """Submitit's executor, which also shows the sbatch file on a machine without SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def text(self) -> str:
        """Return the sbatch file."""
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def _build_executor(config: Config, run_dir: Path) -> _Executor:
    """Return the executor of one run: a task on each machine, which starts the ranks there.

    Raises InputError for paths that no sbatch file can name.
    """
    run_dir = run_dir.absolute()
    _check_paths(run_dir)
    cluster = config.cluster

    # Options of sbatch that submitit has no name for; those of the user come last.
    options = {"partition": cluster.partition, "account": cluster.account, "mem": cluster.memory}
    options["gpus-per-node"] = cluster.gpus or None
    options |= cluster.sbatch
    root = shlex.quote(str(ROOT))
    executor = _Executor(run_dir / "slurm")
    executor.update_parameters(
        job_name=config.name,
        nodes=cluster.nnodes,
        ntasks_per_node=1,
        cpus_per_task=cluster.cpus or cluster.nproc,
        time=cluster.time,
        wckey=None,
        stderr_to_stdout=True,
        setup=[f'export PYTHONPATH={root}"${{PYTHONPATH:+:$PYTHONPATH}}"', *as_shell(), *cluster.setup],
        additional_parameters={key: value for key, value in options.items() if value is not None},
    )
    return executor


def _check_paths(run_dir: Path) -> None:
    """Check that quotes protect every character of the paths in an sbatch file. Raises InputError."""
    for path, what, excluded in (
        (run_dir, "the output directory", "%\\"),  # replaced by SLURM in the names of logs
        (ROOT, "the directory of gptlab", ":"),  # separates the directories of PYTHONPATH
    ):
        for character in str(path):
            if character in excluded or not character.isprintable():
                raise InputError(
                    f"{what} {str(path)!r} has {character!r} in it, and no sbatch file can name it",
                    "take another name, or run it without SLURM: cluster=ddp",
                )


def sbatch_file(config: Config) -> str:
    """Return the sbatch file, with OUTPUT_DIR for the directory that is not made yet."""
    placeholder = Path("OUTPUT_DIR")
    text = _build_executor(config, placeholder).text()
    return text.replace(str(placeholder.absolute()), str(placeholder))


def check_sbatch(config: Config, run_dir: Path | None) -> None:
    """Check that there is a SLURM here, and that it would take the job. Raises InputError.

    ``run_dir`` is None while it has no name yet; then it will be below the working directory.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "cluster=slurm needs sbatch, and there is none here",
            "run the command where jobs are submitted; cluster.dry_run=true shows the sbatch file anywhere",
        )
    text = _build_executor(config, run_dir or Path()).text()
    tried = subprocess.run(["sbatch", "--test-only"], input=text, capture_output=True, text=True)
    if tried.returncode:
        reasons = [re.sub(r"^(sbatch: )?(error: )?", "", line) for line in tried.stderr.splitlines()]
        raise InputError(
            f"sbatch would not take the job: {'; '.join(reasons)}",
            "see cluster.partition, account, time, memory, gpus, cpus, nnodes and sbatch; cluster.dry_run=true shows "
            "the file",
        )


def _run_on_machine(config: Config, train: "TokenFile", val: "TokenFile", run_dir: Path) -> dict[str, Any] | Exception:
    """Run the ranks of one machine, on that machine; an error is returned, for the command that waits."""
    from gpt.cluster.launch import launch  # torch, which the machine that submits need not load
    from gpt.cluster.rank import run

    # Submitit's handlers would requeue the job. SLURM sends SIGUSR2 to every process when the time limit is near:
    # this one handles it as SIGTERM, and the resource tracker, which is started while it is ignored, ignores it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    resource_tracker.ensure_running()
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        if config.cluster.gpus and config.device == "auto":
            config.device = "cuda"  # not the CPU, if the GPUs are missing
        config.cluster = _local_cluster(config.cluster)
        resolve_ranks(config)
        check_machine(config)
        return launch(config.cluster, run, config, train, val, run_dir)
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error


def _local_cluster(cluster: SlurmConfig) -> ClusterConfig:
    """Return the cluster by which this machine of a job starts its ranks and meets the others."""
    shared = {"nproc": cluster.nproc, "threads": cluster.threads, "timeout": cluster.timeout}
    if cluster.nnodes == 1:
        return ClusterConfig(name="ddp" if cluster.nproc > 1 else "single", **shared)
    here = SlurmJobEnvironment()
    port = FIRST_PORT + int(here.job_id) % PORTS
    return MultinodeConfig(
        name="multinode",
        nnodes=cluster.nnodes,
        node_rank=here.node,
        rdzv_endpoint=f"{here.hostnames[0]}:{port}",
        **shared,
    )


def submit(config: Config, train: "TokenFile", val: "TokenFile", run_dir: Path) -> "Submitted":
    """Submit a run to SLURM. Raises InputError where sbatch refuses."""
    executor = _build_executor(config, run_dir)
    try:
        job: SlurmJob = executor.submit(_run_on_machine, config, train, val, run_dir)
    except FailedJobError as error:
        raise InputError(f"sbatch did not take the job: {error}", "cluster.dry_run=true shows its file") from error
    return Submitted(job, run_dir)


def attach(config: Config, run_dir: Path) -> "Submitted | None":
    """Return the job of a run that was submitted before, or None if it is over."""
    # Submitit names its files after the jobs; the last one has the highest number.
    numbers = []
    for path in (run_dir / "slurm").glob("*_submitted.pkl"):
        number = path.name.partition("_")[0]
        if number.isdecimal():
            numbers.append(int(number))
    if not numbers:
        return None
    job = SlurmJob((run_dir / "slurm").absolute(), str(max(numbers)), tasks=list(range(config.cluster.nnodes)))
    return Submitted(job, run_dir) if _is_alive(_job_state(job.job_id)) else None


class Submitted:
    """A run that SLURM has taken."""

    def __init__(self, job: SlurmJob, run_dir: Path):
        self.job_id = job.job_id
        self.run_dir = run_dir
        self.machines = [job.task(number) for number in range(job.num_tasks)]
        self.log = run_dir / "slurm" / job.paths.stdout.name
        self.state = ""
        self._asked = -math.inf  # when SLURM was asked for the state
        self._gone: float | None = None  # when SLURM first said that the job has ended

    def is_over(self) -> bool:
        """True if all its machines have left a result; asks SLURM every few seconds.

        Raises TrainingError where the job has ended without.
        """
        if all(machine.paths.result_pickle.exists() for machine in self.machines):
            return True

        # Ask SLURM, but not too often.
        now = time.monotonic()
        if now - self._asked < POLL:
            return False
        self.state = _job_state(self.job_id)
        self._asked = now

        # Results may show up some time after the job has ended.
        if _is_alive(self.state):
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
        """Yield the states of the job until it runs, then the lines of its log, to its end. Raises TrainingError."""
        last_state = ""
        length = 0  # of the log, as far as it was shown
        is_over = False
        while not is_over:
            is_over = self.is_over()
            log = self.log.read_text(errors="replace") if self.log.exists() else ""

            # The last line may not be whole yet.
            lines = log if is_over else log[: log.rfind("\n") + 1]
            for line in lines[length:].splitlines():
                if not line.startswith("submitit "):
                    yield line
            length = len(lines)
            if not is_over:
                if self.state != last_state and not log:
                    yield self.state.lower()
                last_state = self.state
                time.sleep(POLL)

    def result(self) -> float | None:
        """Return the validation loss of a run that has ended.

        Raises what ended it: InputError, TrainingError, Interrupted.
        """
        try:
            results = [machine.result() for machine in self.machines]
        except FailedJobError as error:
            raise TrainingError(f"SLURM job {self.job_id} failed: {error}") from error
        failed = [result for result in results if isinstance(result, Exception)]
        if failed:
            # Machines that lost a rank are not at fault, where another one says why.
            raise min(failed, key=lambda error: isinstance(error, LostRank))
        return outcome(results[0], self.run_dir)

    def ended(self) -> tuple[str, str] | None:
        """Return how it ended (done, interrupted, failed) and why; None while it goes on."""
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
        """Ask the job to end after its step; cancel it if it has not started."""
        is_pending = _job_state(self.job_id).startswith("PENDING")
        signal_option = [] if is_pending else ["--signal=USR2"]
        subprocess.run(["scancel", *signal_option, self.job_id], capture_output=True)


def _job_state(job_id: str) -> str:
    """Return the state of a job, such as PENDING (Resources); UNKNOWN once SLURM has forgotten it."""
    asked = subprocess.run(["scontrol", "show", "job", job_id, "--oneliner"], capture_output=True, text=True)
    if "Invalid job id" in asked.stderr:
        return "UNKNOWN"
    facts = dict(re.findall(r"(\w+)=(\S*)", asked.stdout))
    if "JobState" not in facts:
        return "PENDING (SLURM does not answer)"  # which does not mean that the job has ended

    # Such as Priority or Resources, while it is pending.
    reason = facts.get("Reason", "None")
    return facts["JobState"] + (f" ({reason})" if reason != "None" else "")


def _is_alive(state: str) -> bool:
    """True if a job in this state has not ended."""
    return state.partition(" ")[0] in ALIVE


def wait(submitted: Submitted) -> float | None:
    """Wait for a run and show its log, as if it ran here; return its validation loss.

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
