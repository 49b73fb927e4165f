"""A sweep from its start to its end: all jobs are composed and checked before one starts, then run, then compared.

A job is a run in a directory of its own below the sweep's, named after the values that are swept over. It runs as
``train.py`` with these values would. Its state is read from its directory: finished jobs are kept, interrupted ones
continue, failed ones run again.
"""

import contextlib
import functools
import multiprocessing
import os
import re
import shlex
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobStatus, run_job
from omegaconf import DictConfig, OmegaConf, open_dict

from gpt.cli.hydra_run import output_path
from gpt.cli.run_checks import CheckedRun, check_and_prepare
from gpt.cluster.machine import check_machines
from gpt.config.schema import Config
from gpt.console import say
from gpt.errors import InputError, Interrupted, TrainingError, Unavailable
from gpt.files import locked
from gpt.signals import Interrupt, end_with
from gpt.sweep.board import Board
from gpt.sweep.compose import compose_jobs
from gpt.sweep.index import Index
from gpt.sweep.jobs import REPLACED, Job, State, determine_state, in_state, naming_job, set_aside
from gpt.sweep.scheduler import Scheduler
from gpt.sweep.slots import Process, Slot, share_out
from gpt.tracker.mirror import what_next

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

        # Nothing is made before all jobs are checked.
        self.dir = self._existing_name()
        self.index = Index(self.dir, self.config)
        self.jobs = compose_jobs(launcher, job_overrides, first, self.dir, self.index)
        self.slots = [Slot()]

    def _existing_name(self) -> Path | None:
        """Return the sweep's directory; None for one whose name has the time in it.

        Resolving such a name makes the directory.
        """
        unresolved = OmegaConf.to_container(self.config.hydra.sweep)["dir"]
        if "${sweep_dir:" in unresolved and self.choice is None:
            return None
        return output_path(self.config.hydra.sweep.dir)

    def prepare(self) -> None:
        """Determine the state of every job, check those that will run, and make the directory. Raises InputError."""
        # A directory that exists already may hold runs of these jobs.
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
        """Put the directories of the jobs below that of the sweep."""
        for job in self.jobs:
            job.run_dir = self.dir / job.run_dir

    def _naming(self, job: Job) -> contextlib.AbstractContextManager[None]:
        """Name the job in an InputError that is about it."""
        number = self.jobs.index(job)
        return naming_job(number, len(self.jobs), [job.name])

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
                resumed = job.run_dir if job.config.resume else None
                train, val = check_and_prepare(job.config, resumed)
                # This process submits it, and need not check it again.
                if job.on_slurm:
                    job.checked = CheckedRun(job.config, train, val)

        # SLURM's machines are checked by the jobs themselves.
        local = [job for job in waiting if not job.on_slurm]
        if local:
            self._check_machine(local)

    def _check_machine(self, local: list[Job]) -> None:
        """Check the jobs that this machine will run, and share it out among them. Raises InputError."""
        launcher = self.launcher
        if launcher.gpus:
            for job in local:
                cluster = job.config.cluster
                cluster.nproc = cluster.nproc or launcher.gpus
        configs = [job.config for job in local]
        gpus, answers = _ask_machine(configs)

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

        # Jobs that use no GPU share the cores.
        use_gpus = any(job.config.device in ("auto", "cuda") for job in local)
        if not use_gpus:
            gpus = []
        self.slots = share_out(launcher.slots, launcher.gpus, launcher.threads, gpus, most_ranks)

    def _make_directory(self) -> None:
        """Make the sweep's directory, now that nothing can be wrong any more. Raises InputError."""
        try:
            if self.dir is None:
                self.dir = output_path(self.config.hydra.sweep.dir)
                self._place_jobs()
            self.dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the sweep's directory cannot be made: {error}",
                "choose another with hydra.sweep.dir=DIR",
            ) from error

    def run(self) -> None:
        """Run the jobs that wait, and compare all jobs, unless a signal has ended the sweep.

        Raises TrainingError where a failure ended the sweep, Interrupted where a signal did.
        """
        on_failure = self.config.sweep.on_failure
        interrupt = Interrupt(promise="its jobs end after their steps and save; a second one ends them at once")
        board = Board(self.title, self.jobs, self.slots, self.dir)
        scheduler = Scheduler(self.jobs, self.slots, on_failure, self.start, board)

        # The index lists the jobs from the start; at the end it notes which are finished.
        comparison = None
        with locked(self.dir), board:
            with interrupt:
                self._write_index()
                scheduler.run(interrupt)
                self._write_index()
            # Imports and plots take seconds, in which the table stays.
            if not interrupt.received:
                board.announce_comparison()
                has_new = bool(in_state(self.jobs, State.DONE))
                comparison = _compare(self.dir, has_new)

        # Where nothing has ended there is nothing to list.
        is_empty = interrupt.received and not any(job.is_finished for job in self.jobs)
        if not is_empty:
            board.conclude(comparison)
            for line in what_next(self.config.tracker.name, self.dir):
                say(line)
        self._raise_early_end(interrupt.received)

    def _write_index(self) -> None:
        self.index.add(self.title, self.jobs, self.dir)
        self.index.write(self.dir)

    def _raise_early_end(self, is_interrupted: bool) -> None:
        """Raise Interrupted or TrainingError where the sweep has ended before all its jobs had run."""
        # The same command finds a directory whose name has the time in it only if it is given.
        command = self.index.about["command"]
        if not self.choice and "hydra.sweep.dir=" not in command:
            command += f" {shlex.quote(f'hydra.sweep.dir={self.dir}')}"

        # A failure is the news, unless the user has interrupted the sweep.
        failed = in_state(self.jobs, State.FAILED)
        interrupted = in_state(self.jobs, State.INTERRUPTED)
        if is_interrupted or (interrupted and not failed):
            raise Interrupted(f"{self.title}: interrupted; go on with it:\n  {command}")
        if failed and self.config.sweep.on_failure == "stop":
            raise TrainingError(
                f"{self.title}: stopped after {failed[0].name} failed (sweep.on_failure=stop); go on with it:\n"
                f"  {command}"
            )

    def start(self, job: Job, slot: Slot | None) -> "Process | Submitted":
        """Start a job in a slot, or submit it. Raises InputError, TrainingError, OSError."""
        if job.replaces_run:
            set_aside(job.run_dir, self.dir / REPLACED)
        if slot is not None:
            arguments = _job_arguments(job, self.config)
            return Process(arguments, job.run_dir, slot)

        # An earlier command may have submitted it.
        return job.handle or _submit(job, self)


def _submit(job: Job, sweep: Sweep) -> "Submitted":
    """Submit a job to SLURM. Raises InputError, TrainingError."""
    with open_dict(job.composed):
        job.composed.hydra.sweep.dir = str(sweep.dir)
        job.composed.hydra.sweep.subdir = str(job.run_dir.relative_to(sweep.dir))
        job.composed.resume = job.config.resume

    # Hydra makes the job's directory, and train.py submits it.
    task = functools.partial(sweep.launcher.task_function, checked=job.checked)
    returned = run_job(
        task,
        job.composed,
        "hydra.sweep.dir",
        "hydra.sweep.subdir",
        sweep.launcher.hydra_context,
    )
    if returned.status == JobStatus.FAILED:
        raise returned._return_value  # return_value would also print it on stderr
    return returned.return_value


def _ask_machine(configs: list[Config]) -> tuple[list[str], list[int | InputError]]:
    """Return the GPUs of this machine, and for each config its number of ranks, or why it cannot run here.

    A process of its own imports torch, so that this one, which waits for the jobs, holds no GPU.
    """
    spawn = multiprocessing.get_context("spawn")
    parent = os.getpid()
    with ProcessPoolExecutor(1, spawn, initializer=end_with, initargs=(parent,)) as other:
        answer = other.submit(check_machines, configs)
        return answer.result()


def _job_arguments(job: Job, config: DictConfig) -> list[str]:
    """Return the arguments of ``train.py`` for a job of a sweep with this config."""
    arguments = list(job.overrides)
    for override in config.hydra.overrides.hydra:
        if not NOT_FOR_JOBS.match(override):
            arguments.append(override)

    # Unlike resume=, ++resume= adds no saved overrides: a job has all of its own.
    escaped = str(job.run_dir).replace("'", r"\'")
    if job.config.resume:
        arguments.append(f"++resume='{escaped}'")
    return [*arguments, f"hydra.run.dir='{escaped}'", "hydra.mode=RUN"]


def _compare(sweep_dir: Path, has_new: bool) -> "Comparison | None":
    """Return the comparison of the runs; None where no run is newer than the last one, or nothing can be compared."""
    from gpt.compare import PAGE, report

    # A page that is newer than all runs is up to date.
    page = sweep_dir / PAGE
    if not has_new and page.exists():
        ends = [path.stat().st_mtime for path in sweep_dir.glob("*/result.json")]
        last_end = max(ends, default=0)
        if last_end <= page.stat().st_mtime:
            return None

    # The results are complete, also where they cannot be compared.
    try:
        return report([sweep_dir])
    except InputError as error:
        print(f"no comparison: {error}")
        return None
