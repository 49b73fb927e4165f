"""The jobs of a command, each composed from its overrides, before anything is written."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import open_dict

from gpt.cli.compose import explain_composition
from gpt.config.counts import as_count
from gpt.config.load import load
from gpt.config.lookup import counted_by
from gpt.errors import InputError
from gpt.files import read_yaml
from gpt.rundir import read_result
from gpt.sweep.index import Index
from gpt.sweep.jobs import Job, State, is_done, naming_job
from gpt.sweep.names import job_names, known_names, swept_keys

if TYPE_CHECKING:
    from hydra_plugins.gptlab import LocalLauncher


def compose_jobs(
    launcher: "LocalLauncher",
    job_overrides: list[list[str]],
    first: int,
    sweep_dir: Path | None,
    index: Index,
) -> list[Job]:
    """Return the jobs of a command; ``first`` is Hydra's number of the first one.

    Raises InputError, with the job's number, for one that cannot be composed.
    """
    config = launcher.config
    job_overrides = [[_plain(override) for override in job] for job in job_overrides]
    keys = swept_keys(config, job_overrides)
    names = known_names(job_names(job_overrides, keys, config.name), job_overrides, index.content)
    _check_different(names)

    # Most jobs of a sweep that is started again are finished, and need not be composed again.
    jobs = []
    for number, (name, overrides) in enumerate(zip(names, job_overrides, strict=True)):
        job = None
        if not config.plan:  # which shows every config
            job = _finished_job(name, overrides, sweep_dir, index)
        if job is None:
            swept = [override for override in overrides if override.partition("=")[0] in keys]
            with naming_job(number, len(names), swept):
                job = _compose_job(launcher, name, overrides, first + number)
        jobs.append(job)
    return jobs


def _plain(override: str) -> str:
    """Return an override whose count of tokens or steps is a plain number, so that 1e6 and 1M are the same job."""
    key, _, value = override.partition("=")
    return f"{key}={as_count(value)}" if counted_by(key.lstrip("+")) else override


def _check_different(names: list[str]) -> None:
    """Check that no job is there twice. Raises InputError."""
    seen = set()
    for name in names:
        if name in seen:
            raise InputError(f"the same job is there twice: {name}", "give every value once")
        seen.add(name)


def _finished_job(
    name: str,
    overrides: list[str],
    sweep_dir: Path | None,
    index: Index,
) -> Job | None:
    """Return a job that is done and was composed from the same overrides and files, without composing it again.

    Composing takes a tenth of a second or more.
    """
    if sweep_dir is None or not index.has(name, overrides):
        return None
    result = read_result(sweep_dir / name)
    if not is_done(result):
        return None
    read_yaml(sweep_dir / name / "config.yaml", dict)  # a damaged one could not be compared
    return Job(name, overrides, None, None, Path(name), State.KEPT, result=result)


def _compose_job(
    launcher: "LocalLauncher",
    name: str,
    overrides: list[str],
    hydra_number: int,
) -> Job:
    """Compose a job. Raises InputError."""
    loader = launcher.hydra_context.config_loader
    try:
        composed = loader.load_sweep_config(launcher.config, overrides)
    except Exception as error:
        raise explain_composition(error) from error
    # The name of the job is also that of its directory.
    with open_dict(composed):
        composed.hydra.job.id = name
        composed.hydra.job.num = hydra_number

    config = load(composed)
    if config.cluster.name == "multinode":
        raise InputError(
            "cluster=multinode is started by hand on every machine, once for each run",
            "sweeps over several machines: cluster=slurm",
        )
    return Job(name, overrides, composed, config, Path(composed.hydra.sweep.subdir))
