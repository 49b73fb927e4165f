"""Sweeps: all jobs are checked before one starts, finished ones are kept, interrupted ones go on, failures are seen.

A job is a run in a directory of its own below the sweep's, named after the values that are swept over. It runs as
``train.py`` with these values would; what is known of it is what its directory says.
"""

import contextlib
import functools
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, run_job
from omegaconf import OmegaConf, open_dict

from gpt.cli.compose import explain_composition
from gpt.cli.hydra_run import Refused, output_path
from gpt.cli.run_checks import CheckedRun, check_and_prepare
from gpt.cluster.machine import check_machines
from gpt.config.load import load
from gpt.errors import InputError, Interrupted, TrainingError, Unavailable
from gpt.files import LAYOUT, locked, read_yaml, write_json
from gpt.rundir import INDEX, read_result, read_sweep
from gpt.signals import Interrupt, end_with
from gpt.sweep.board import Board
from gpt.sweep.jobs import REPLACED, Job, check_sweep_dir, job_names, known_names, set_aside, stand, swept_keys
from gpt.sweep.slots import Process, Slot, share_out

if TYPE_CHECKING:
    from gpt.cluster.slurm import Submitted
    from gpt.compare import Comparison
    from hydra_plugins.gptlab import LocalLauncher

POLL = 0.1  # seconds between two looks at the jobs
NOT_FOR_JOBS = re.compile(r"hydra([./](launcher|sweeper)|\.(mode|sweep|run)\b)")  # overrides of the sweep alone


def launch(launcher: "LocalLauncher", job_overrides: list[list[str]], first: int) -> list[JobReturn]:
    """Check, run and sum up a batch of jobs; ``first`` is the number of its first one.

    Raises InputError for what cannot be run, TrainingError where a failure ended the sweep, Interrupted when a signal
    did.
    """
    try:
        sweep = Sweep(launcher, job_overrides, first)
        if any(job.config and job.config.is_dry_run for job in sweep.jobs):
            from gpt.cluster.slurm import sbatch_file

            print("\n".join(sbatch_file(job.config) for job in sweep.jobs))
            return []
        if sweep.config.plan:
            from data.preparation import vocab_size
            from gpt.cli.plan import plan_jobs

            plan_jobs([(job.name, job.config, vocab_size(job.config.data)) for job in sweep.jobs])
            return []
        sweep.look()
        sweep.run()
        return [sweep.returned(job) for job in sweep.jobs]
    except Exception as error:  # nothing that went wrong in composing, as others are taken for
        raise Refused(error) from error


def raise_failures(results: Sequence[JobReturn]) -> None:
    """Raises TrainingError where a job failed."""
    failed = [result for result in results if result.status == JobStatus.FAILED]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(results)} jobs failed; the same command runs them again and keeps the others"
        )


class Sweep:
    """The jobs of one command. Raises InputError, with the job's number, for one that cannot be composed."""

    def __init__(self, launcher: "LocalLauncher", job_overrides: list[list[str]], first: int):
        self.launcher, self.config = launcher, launcher.config
        where = OmegaConf.to_container(self.config.hydra.sweep)["dir"]
        choice = self.config.hydra.runtime.choices.get("sweeps")
        self.title = choice or "sweep"
        # Resolving the name of a new directory makes it, which is for later.
        self.dir = None if "${sweep_dir:" in where and choice is None else output_path(self.config.hydra.sweep.dir)
        keys = swept_keys(self.config, job_overrides)
        self.index = self.read_index()
        names = known_names(job_names(job_overrides, keys, self.config.name), job_overrides, self.index)
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise InputError(f"the same job is there twice: {twice[0]}", "give every value once")
        self.jobs = [
            self.known(name, overrides) or self.compose(number, names, overrides, keys, first)
            for number, (name, overrides) in enumerate(zip(names, job_overrides, strict=True))
        ]

    def read_index(self) -> dict[str, Any]:
        """What earlier commands have left here, or {}. Raises InputError for a directory that is no sweep's."""
        if self.dir is None:
            return {}
        check_sweep_dir(self.dir)
        return read_sweep(self.dir) or {}

    def known(self, name: str, overrides: list[str]) -> Job | None:
        """A job that is done and was composed from the same overrides and files, so that it need not be composed again.

        Composing takes a tenth of a second or more, and a sweep that is started again has mostly such jobs.
        """
        if self.config.plan or self.index.get("jobs", {}).get(name) != self.entry(overrides):
            return None
        result = read_result(self.dir / name)
        is_done = result is not None and result["status"] == "done"
        if is_done:
            read_yaml(self.dir / name / "config.yaml", dict)  # or it could not be compared
        return Job(name, overrides, None, None, Path(name), "kept", result=result) if is_done else None

    def entry(self, overrides: list[str]) -> dict[str, Any]:
        """What the index says of a job: what it is composed from."""
        return {"overrides": overrides, "configs": self.fingerprint}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all files that configs are composed from."""
        digest = sha256()
        roots = [source.path for source in self.config.hydra.runtime.config_sources if source.schema == "file"]
        for directory, _, names in (walked for root in roots for walked in os.walk(root, followlinks=True)):
            for path in (Path(directory, name) for name in sorted(names) if name.endswith((".yaml", ".yml"))):
                digest.update(f"{path}\n".encode() + path.read_bytes())
        return digest.hexdigest()

    def compose(self, number: int, names: list[str], overrides: list[str], keys: list[str], first: int) -> Job:
        """A job of its overrides."""
        loader = self.launcher.hydra_context.config_loader
        with self.at_fault(number, [o for o in overrides if o.partition("=")[0] in keys], len(names)):
            try:
                composed = loader.load_sweep_config(self.config, overrides)
            except Exception as error:
                raise explain_composition(error) from error
            with open_dict(composed):
                composed.hydra.job.id, composed.hydra.job.num = names[number], first + number
            config = load(composed)
            if config.cluster.name == "multinode":
                raise InputError(
                    "cluster=multinode is started by hand on every machine, once for each run",
                    "sweeps over several machines: cluster=slurm",
                )
        return Job(names[number], overrides, composed, config, Path(composed.hydra.sweep.subdir))

    @contextlib.contextmanager
    def at_fault(self, number: int, swept: list[str], count: int) -> Iterator[None]:
        """Name the job that an InputError is about."""
        try:
            yield
        except InputError as error:
            what = f" ({' '.join(swept)})" if swept else ""
            raise type(error)(f"job {number + 1} of {count}{what}: {error.problem}", error.cure) from error

    def look(self) -> None:
        """See how every job stands, check those that are to run, and make the sweep's directory. Raises InputError."""
        if self.dir is not None:
            for number, job in enumerate(self.jobs):
                job.run_dir = self.dir / job.run_dir
                with self.at_fault(number, [job.name], len(self.jobs)):
                    if job.state != "kept":
                        stand(job)
            self.leave_out_again()
        waiting = [job for job in self.jobs if job.state == "waiting"]
        self.slots = [Slot()]
        if waiting:
            self.check(waiting)
        try:
            if self.dir is None:
                self.dir = output_path(self.config.hydra.sweep.dir)
                for job in self.jobs:
                    job.run_dir = self.dir / job.run_dir
            self.dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the sweep's directory cannot be made: {error}", "choose another with hydra.sweep.dir=DIR"
            ) from error

    def leave_out_again(self) -> None:
        """Where nothing else is left, do not ask this machine again for what it could not run: asking takes torch."""
        waiting = [job for job in self.jobs if job.state == "waiting"]
        known = self.index.get("left_out", {}) if self.index.get("machine") == this_machine() else {}
        if self.config.sweep.leave_out and all(job.name in known for job in waiting):
            for job in waiting:
                job.state, job.note = "left out", known[job.name]

    def check(self, waiting: list[Job]) -> None:
        """All that can be wrong with the jobs that are to run, as far as it can be known here. Raises InputError."""
        local = [job for job in waiting if not job.on_slurm]
        for job in waiting:
            with self.at_fault(self.jobs.index(job), [job.name], len(self.jobs)):
                if job.on_slurm:
                    from gpt.cluster.slurm import check_sbatch

                    check_sbatch(job.config, job.run_dir)
                train, val = check_and_prepare(job.config, job.run_dir if job.config.resume else None)
                if job.on_slurm:  # submitted by this process, which need not check it again
                    job.checked = CheckedRun(job.config, train, val)
        if not local:
            return
        if self.launcher.gpus:
            for job in local:
                job.config.cluster.nproc = job.config.cluster.nproc or self.launcher.gpus
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, initializer=end_with, initargs=(os.getpid(),)) as other:
            gpus, found = other.submit(check_machines, [job.config for job in local]).result()
        for job, ranks in zip(local, found, strict=True):
            if isinstance(ranks, Unavailable) and self.config.sweep.leave_out:
                job.state, job.note = "left out", str(ranks.problem)
            elif isinstance(ranks, InputError):
                with self.at_fault(self.jobs.index(job), [job.name], len(self.jobs)):
                    raise ranks
        most = max((ranks for ranks in found if isinstance(ranks, int)), default=1)
        on_gpus = any(job.config.device in ("auto", "cuda") for job in local)
        wanted = self.launcher.slots, self.launcher.gpus, self.launcher.threads
        self.slots = share_out(*wanted, gpus if on_gpus else [], most)

    def run(self) -> None:
        """Run what is to run. Raises TrainingError where a failure ended the sweep, and Interrupted."""
        interrupt = Interrupt(promise="its jobs end after their steps and save; a second one ends them at once")
        with locked(self.dir), interrupt, Board(self.title, self.jobs, self.slots, self.dir) as board:
            self.write_index()
            try:
                self.work(interrupt, board)
            except KeyboardInterrupt:
                for job in self.running():
                    if not job.on_slurm:
                        job.handle.end()
                raise
            self.write_index()
        is_new = any(job.state == "done" for job in self.jobs)
        board.conclude(compared(self.dir, is_new))
        if interrupt.received or (any(job.state == "interrupted" for job in self.jobs) and not self.failed()):
            raise Interrupted(f"{self.title}: interrupted; the same command goes on with it{self.same_place()}")
        if self.failed() and self.config.sweep.on_failure == "stop":
            raise TrainingError(
                f"{self.title}: stopped after {self.failed()[0].name} failed (sweep.on_failure=stop); the same command "
                f"goes on with it{self.same_place()}"
            )

    def same_place(self) -> str:
        """What the same command needs besides to find a directory whose name has the time in it."""
        return "" if self.config.hydra.runtime.choices.get("sweeps") else f", with hydra.sweep.dir={self.dir}"

    def write_index(self) -> None:
        """Add the jobs to those that earlier commands have put here; once done, with the files they are composed from.

        A run that is to be replaced would else pass for the new one, were this command killed before that.
        """
        taken = {str(job.run_dir.relative_to(self.dir)): job for job in self.jobs if job.state != "left out"}
        self.index |= {"layout": LAYOUT, "name": self.title, "baseline": self.config.sweep.baseline}
        self.index["jobs"] = self.index.get("jobs", {}) | {
            name: self.entry(job.overrides) if job.is_finished else {"overrides": job.overrides}
            for name, job in taken.items()
        }
        self.index["left_out"] = {job.name: job.note for job in self.jobs if job.state == "left out"}
        self.index["machine"] = this_machine()
        write_json(self.dir / INDEX, self.index)

    def running(self) -> list[Job]:
        """Those under way."""
        return [job for job in self.jobs if job.state == "running"]

    def failed(self) -> list[Job]:
        """Those that failed."""
        return [job for job in self.jobs if job.state == "failed"]

    def work(self, interrupt: Interrupt, board: Board) -> None:
        """Start jobs where there is room and see them end, until none is left, or it is to stop."""
        free, asked = list(self.slots), False
        for job in self.jobs:
            if job.state in ("kept", "left out"):
                board.event(job)
        while True:
            stopping = interrupt.received or (self.failed() and self.config.sweep.on_failure == "stop")
            if stopping and not asked:
                asked = True
                for job in self.running():
                    if job.on_slurm and interrupt.received:
                        self.settle(job, "interrupted", f"goes on as SLURM job {job.handle.job_id}")
                        board.event(job)
                    else:
                        job.handle.stop()
            for job in () if stopping else [job for job in self.jobs if job.state == "waiting"]:
                if job.on_slurm or free:
                    self.start(job, None if job.on_slurm else free.pop(0))
                    free += [job.slot] if job.slot and job.state == "failed" else []
                    board.event(job)
            for job in self.running():
                ended = job.handle.ended()
                if ended:
                    self.settle(job, *ended)
                    free += [job.slot] if job.slot else []
                    board.event(job)
            if not self.running() and (stopping or not any(job.state == "waiting" for job in self.jobs)):
                return
            board.refresh()
            time.sleep(POLL)

    def start(self, job: Job, slot: Slot | None) -> None:
        """Start a job in a slot, or submit it."""
        job.began, job.slot = time.monotonic(), slot
        if job.state == "waiting" and job.note == REPLACED:
            set_aside(job.run_dir, self.dir / REPLACED)
        job.state, job.note = "running", ""
        try:
            if slot is None:
                job.handle = job.handle or self.submit(job)
            else:
                job.handle = Process(self.arguments(job), job.run_dir, slot)
        except (InputError, TrainingError, OSError) as error:
            self.settle(job, "failed", str(error))

    def arguments(self, job: Job) -> list[str]:
        """The overrides of its command."""
        shared = [o for o in self.config.hydra.overrides.hydra if not NOT_FOR_JOBS.match(o)]
        quoted = "'" + str(job.run_dir).replace("'", r"\'") + "'"
        on = [f"++resume={quoted}"] if job.config.resume else []  # which, unlike resume=, adds no saved overrides
        return [*job.overrides, *shared, *on, f"hydra.run.dir={quoted}", "hydra.mode=RUN"]

    def submit(self, job: Job) -> "Submitted":
        """Have SLURM take it."""
        with open_dict(job.composed):
            job.composed.hydra.sweep.dir, job.composed.hydra.sweep.subdir = (
                str(self.dir),
                str(job.run_dir.relative_to(self.dir)),
            )
            job.composed.resume = job.config.resume
        context = self.launcher.hydra_context
        task = functools.partial(self.launcher.task_function, checked=job.checked)
        returned = run_job(task, job.composed, "hydra.sweep.dir", "hydra.sweep.subdir", context)
        if returned.status == JobStatus.FAILED:
            raise returned._return_value  # which return_value would announce on stderr
        return returned.return_value

    def settle(self, job: Job, state: str, note: str) -> None:
        """Note how a job ended."""
        job.state, job.note, job.seconds = state, note, time.monotonic() - job.began
        result = None
        with contextlib.suppress(InputError):
            result = read_result(job.run_dir)
        if state == "done" and not (result and result["status"] == "done"):
            job.state, job.note = "failed", f"ended without a result; see {job.run_dir}"
        elif state == "done":
            job.result = result

    def returned(self, job: Job) -> JobReturn:
        """What a sweeper gets: the validation loss of a job, or what it failed with."""
        returned = JobReturn(overrides=job.overrides, cfg=job.composed, working_dir=str(job.run_dir))
        returned.status = JobStatus.COMPLETED
        returned.return_value = job.result.get("val_loss")
        if job.state == "failed":
            returned.status = JobStatus.FAILED
            returned.return_value = TrainingError(f"{job.name}: {job.note}")
        return returned


def this_machine() -> str:
    """Tells machines apart, and one with GPUs from itself without."""
    return f"{platform.node()}, {len(list(Path('/dev').glob('nvidia[0-9]*')))} GPUs"


def compared(sweep_dir: Path, is_new: bool) -> "Comparison | None":
    """The comparison of the runs; None where nothing has been added to the last one, or there is nothing to compare."""
    from gpt.compare import PAGE, report

    page = sweep_dir / PAGE
    if not is_new and page.exists():
        ended = [path.stat().st_mtime for path in sweep_dir.glob("*/result.json")]
        if max(ended, default=0) <= page.stat().st_mtime:
            return None
    try:
        return report([sweep_dir])
    except InputError as error:  # the results are there all the same
        print(f"no comparison: {error}")
        return None
