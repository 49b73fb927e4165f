"""The interface of sweeps to Hydra: a batch of jobs is launched, and Hydra gets their losses or errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from gpt.cli.hydra_run import Refused
from gpt.cli.run_checks import check_run
from gpt.console import say
from gpt.errors import TrainingError
from gpt.sweep.baseline import check_baseline
from gpt.sweep.jobs import Job, State, naming_job
from gpt.sweep.sweep import Sweep

if TYPE_CHECKING:
    from hydra_plugins.gptlab import LocalLauncher


def launch(launcher: "LocalLauncher", job_overrides: list[list[str]], first: int) -> list[JobReturn]:
    """Check, run and compare a batch of jobs; ``first`` is the number of its first one.

    Raises InputError for what cannot be run, TrainingError where a failure ended the sweep, Interrupted when a signal
    did.
    """
    try:
        # Composing the jobs, preparing their data and asking the machine take seconds. A dry run's output is a file.
        n_jobs = len(job_overrides)
        if not OmegaConf.select(launcher.config, "cluster.dry_run"):
            say(f"checking {n_jobs} job{'s' if n_jobs > 1 else ''} …")
        sweep = Sweep(launcher, job_overrides, first)
        check_baseline(sweep.config, sweep.jobs, sweep.dir)

        # Commands that only show what would run.
        configs = [job.config for job in sweep.jobs if job.config is not None]
        if any(config.is_dry_run for config in configs):
            _print_sbatch_files(sweep.jobs)
            return []
        if sweep.config.plan:
            _print_plan(sweep.jobs)
            return []

        # The sweep itself.
        sweep.prepare()
        sweep.run()
        return [_job_return(job) for job in sweep.jobs]
    except Exception as error:
        # Hydra would take it for an error in composing.
        raise Refused(error) from error


def raise_failures(results: Sequence[JobReturn]) -> None:
    """Raise TrainingError where a job failed."""
    failed = [result for result in results if result.status == JobStatus.FAILED]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(results)} jobs failed; the same command runs them again and keeps the others"
        )


def _print_sbatch_files(jobs: list[Job]) -> None:
    from gpt.cluster.slurm import sbatch_file

    texts = [sbatch_file(job.config) for job in jobs]
    print("\n".join(texts))


def _print_plan(jobs: list[Job]) -> None:
    from gpt.cli.plan import plan_jobs

    rows = []
    for number, job in enumerate(jobs):
        with naming_job(number, len(jobs), [job.name]):
            checked = check_run(job.config, None)
        rows.append((job.name, job.config, checked.vocab_size))
    plan_jobs(rows)


def _job_return(job: Job) -> JobReturn:
    """Return what Hydra's sweepers expect of a job: its validation loss, or the error that ended it."""
    returned = JobReturn(overrides=job.overrides, cfg=job.composed, working_dir=str(job.run_dir))
    if job.state == State.FAILED:
        returned.status = JobStatus.FAILED
        returned.return_value = TrainingError(f"{job.name}: {job.note}")
    else:
        returned.status = JobStatus.COMPLETED
        returned.return_value = job.result.get("val_loss")
    return returned
