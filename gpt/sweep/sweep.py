"""A sweep from its start to its end: all jobs are composed and checked before one starts, then run, then compared.

A job is a run in a directory of its own below the sweep's, named after the values that are swept over. It runs as
``train.py`` with these values would. Its state is read from its directory: finished jobs are kept, interrupted ones
continue, failed ones run again.
"""

import contextlib
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobStatus, run_job
from omegaconf import DictConfig, OmegaConf, open_dict

from gpt.cli.compose import output_path, ready
from gpt.cluster.machine import check_machines
from gpt.errors import InputError, Interrupted, TrainingError, Unavailable
from gpt.files import locked
from gpt.signals import Interrupt, end_with
from gpt.sweep.board import Board
from gpt.sweep.compose import compose_jobs
from gpt.sweep.index import Index
from gpt.sweep.jobs import REPLACED, Job, State, determine_state, naming_job, set_aside
from gpt.sweep.scheduler import Scheduler, in_state
from gpt.sweep.slots import Process, Slot, share_out

if TYPE_CHECKING:
    from gpt.cluster.slurm import Submitted
    from gpt.compare import Comparison
    from hydra_plugins.gptlab import LocalLauncher

NOT_FOR_JOBS = re.compile(r"hydra([./](launcher|sweeper)|\.(mode|sweep|run)\b)")  # overrides of the sweep alone


class Sweep:
    """The jobs of one command, and their directory.

    Raises InputError, with the job's number, for a job that cannot be composed.
    """

    def __init__(self, launcher: "LocalLauncher", job_overrides: list[list[str]], first: int):
        self.launcher = launcher
        self.config = launcher.config
        self.choice = self.config.hydra.runtime.choices.get("sweeps")  # the option of sweeps=, if one is given
        self.title = self.choice or "sweep"
        self.dir = self._existing_name()
        self.index = Index(self.dir, self.config)
        self.jobs = compose_jobs(launcher, job_overrides, first, self.dir, self.index)
        self.slots = [Slot()]

    def _existing_name(self) -> Path | None:
        """Return the sweep's directory; None for one whose name has the time in it.

        Resolving such a name makes the directory, and nothing is made before all jobs are checked.
        """
        unresolved = OmegaConf.to_container(self.config.hydra.sweep)["dir"]
        if "${sweep_dir:" in unresolved and self.choice is None:
            return None
        return output_path(self.config.hydra.sweep.dir)

    def prepare(self) -> None:
        """Determine the state of every job, check those that will run, and make the directory. Raises InputError."""
        if self.dir is not None:
            self._place_jobs()
            for job in self.jobs:
                with self._naming(job):
                    if job.state != State.KEPT:
                        determine_state(job)
            self._leave_out_again()
        waiting = in_state(self.jobs, State.WAITING)
        if waiting:
            self.check(waiting)
        self._make_directory()

    def _place_jobs(self) -> None:
        for job in self.jobs:
            job.run_dir = self.dir / job.run_dir

    def _naming(self, job: Job) -> contextlib.AbstractContextManager[None]:
        return naming_job(self.jobs.index(job), len(self.jobs), [job.name])

    def _leave_out_again(self) -> None:
        """Leave out what an earlier command has left out here, if no other job waits.

        Asking the machine again would need torch, and take seconds.
        """
        if not self.config.sweep.leave_out:
            return
        waiting = in_state(self.jobs, State.WAITING)
        reasons = self.index.left_out_here()
        if all(job.name in reasons for job in waiting):
            for job in waiting:
                job.state = State.LEFT_OUT
                job.note = reasons[job.name]

    def check(self, waiting: list[Job]) -> None:
        """Check all that can be known here about the jobs that will run. Raises InputError."""
        for job in waiting:
            with self._naming(job):
                if job.on_slurm:
                    from gpt.cluster.slurm import check_sbatch

                    check_sbatch(job.config, job.run_dir)
                ready(job.config, job.run_dir if job.config.resume else None)
        local = [job for job in waiting if not job.on_slurm]
        if local:
            self._check_machine(local)

    def _check_machine(self, local: list[Job]) -> None:
        """Check the jobs that this machine will run, and share it out among them. Raises InputError."""
        if self.launcher.gpus:
            for job in local:
                job.config.cluster.nproc = job.config.cluster.nproc or self.launcher.gpus
        # A process of its own imports torch, so that this one, which waits for the jobs, holds no GPU.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, initializer=end_with, initargs=(os.getpid(),)) as other:
            gpus, answers = other.submit(check_machines, [job.config for job in local]).result()

        # An answer is the number of ranks of a job, or the reason why it cannot run here.
        most_ranks = 1
        for job, answer in zip(local, answers, strict=True):
            if isinstance(answer, Unavailable) and self.config.sweep.leave_out:
                job.state = State.LEFT_OUT
                job.note = str(answer.problem)
            elif isinstance(answer, InputError):
                with self._naming(job):
                    raise answer
            else:
                most_ranks = max(most_ranks, answer)

        needs_gpus = any(job.config.device in ("auto", "cuda") for job in local)
        launcher = self.launcher
        self.slots = share_out(launcher.slots, launcher.gpus, launcher.threads, gpus if needs_gpus else [], most_ranks)

    def _make_directory(self) -> None:
        """Make the sweep's directory, now that nothing can be wrong any more. Raises InputError."""
        try:
            if self.dir is None:
                self.dir = output_path(self.config.hydra.sweep.dir)
                self._place_jobs()
            self.dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the sweep's directory cannot be made: {error}", "choose another with hydra.sweep.dir=DIR"
            ) from error

    def run(self) -> None:
        """Run the jobs that wait, and compare all jobs.

        Raises TrainingError where a failure ended the sweep, Interrupted where a signal did.
        """
        interrupt = Interrupt(promise="its jobs end after their steps and save; a second one ends them at once")
        with locked(self.dir), interrupt, Board(self.title, self.jobs, self.slots, self.dir) as board:
            self._write_index()
            scheduler = Scheduler(self.jobs, self.slots, self.config.sweep.on_failure, self.start, board)
            scheduler.run(interrupt)
            self._write_index()
        has_new = bool(in_state(self.jobs, State.DONE))
        board.conclude(_compare(self.dir, has_new))
        self._raise_early_end(interrupt.received)

    def _write_index(self) -> None:
        self.index.add(self.title, self.jobs, self.dir)
        self.index.write(self.dir)

    def _raise_early_end(self, is_interrupted: bool) -> None:
        """Raise Interrupted or TrainingError where the sweep has ended before all its jobs had run."""
        # The same command finds a directory whose name has the time in it only if it is given.
        place = "" if self.choice else f", with hydra.sweep.dir={self.dir}"
        failed = in_state(self.jobs, State.FAILED)
        interrupted = in_state(self.jobs, State.INTERRUPTED)
        if is_interrupted or (interrupted and not failed):
            raise Interrupted(f"{self.title}: interrupted; the same command goes on with it{place}")
        if failed and self.config.sweep.on_failure == "stop":
            raise TrainingError(
                f"{self.title}: stopped after {failed[0].name} failed (sweep.on_failure=stop); the same command "
                f"goes on with it{place}"
            )

    def start(self, job: Job, slot: Slot | None) -> "Process | Submitted":
        """Start a job in a slot, or submit it. Raises InputError, TrainingError, OSError."""
        if job.replaces_run:
            set_aside(job.run_dir, self.dir / REPLACED)
        if slot is not None:
            return Process(_job_arguments(job, self.config), job.run_dir, slot)
        return job.handle or self.submit(job)  # a handle: an earlier command has submitted it

    def submit(self, job: Job) -> "Submitted":
        """Submit a job to SLURM. Raises InputError, TrainingError."""
        with open_dict(job.composed):
            job.composed.hydra.sweep.dir = str(self.dir)
            job.composed.hydra.sweep.subdir = str(job.run_dir.relative_to(self.dir))
            job.composed.resume = job.config.resume
        context = self.launcher.hydra_context
        task = self.launcher.task_function
        returned = run_job(task, job.composed, "hydra.sweep.dir", "hydra.sweep.subdir", context)
        if returned.status == JobStatus.FAILED:
            raise returned._return_value  # return_value would also print it on stderr
        return returned.return_value


def _job_arguments(job: Job, config: DictConfig) -> list[str]:
    """Return the arguments of ``train.py`` for a job of a sweep with this config."""
    shared = [override for override in config.hydra.overrides.hydra if not NOT_FOR_JOBS.match(override)]
    run_dir = "'" + str(job.run_dir).replace("'", r"\'") + "'"
    resume = [f"++resume={run_dir}"] if job.config.resume else []  # unlike resume=, it adds no saved overrides
    return [*job.overrides, *shared, *resume, f"hydra.run.dir={run_dir}", "hydra.mode=RUN"]


def _compare(sweep_dir: Path, has_new: bool) -> "Comparison | None":
    """Return the comparison of the runs; None where no run is newer than the last one, or nothing can be compared."""
    from gpt.compare import PAGE, report

    page = sweep_dir / PAGE
    if not has_new and page.exists():
        ends = [path.stat().st_mtime for path in sweep_dir.glob("*/result.json")]
        if max(ends, default=0) <= page.stat().st_mtime:
            return None
    try:
        return report([sweep_dir])
    except InputError as error:  # the results are complete all the same
        print(f"no comparison: {error}")
        return None
