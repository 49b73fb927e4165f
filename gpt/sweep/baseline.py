"""The baseline of a sweep: one of the arms that its jobs form."""

from pathlib import Path

from omegaconf import DictConfig

from gpt.compare.arms import find_arms
from gpt.compare.comparison import find_baseline, no_such_arm
from gpt.compare.runs import Run, run_directories
from gpt.config.load import flatten, read
from gpt.sweep.jobs import Job


def check_baseline(config: DictConfig, jobs: list[Job], sweep_dir: Path | None) -> None:
    """Check that the baseline of a sweep is an arm of its jobs, or of runs that its directory holds. Raises InputError.

    A command for a part of the sweep may leave the baseline of its file to another command.
    """
    name = config.sweep.baseline
    typed = {override.partition("=")[0].lstrip("+") for override in config.hydra.overrides.task}
    swept = {"sweep.arm", *(config.hydra.sweeper.get("params") or {})} - {"seed"}
    is_part = not typed.isdisjoint(swept) and "sweep.baseline" not in typed
    if name is None or is_part:
        return

    # The arms are those that the comparison will find.
    configs = {}
    for job in jobs:
        if job.config is not None:
            configs[job.name] = flatten(job.config)
    if sweep_dir is not None and any(sweep_dir.glob("*/config.yaml")):
        for path in run_directories(sweep_dir)[0]:
            if path.name not in configs:
                configs[path.name] = flatten(read(path / "config.yaml"))
    runs = []
    for directory, values in configs.items():
        path = Path(directory)
        runs.append(Run(name=directory, path=path, state="unfinished", config=values, result={}, rows=[], starts=[]))
    arms = find_arms(runs, is_sweep=True)
    if find_baseline(arms, name) is None:
        raise no_such_arm("sweep.baseline", name, arms)
