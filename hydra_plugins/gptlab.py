"""The plugins that Hydra finds here: ``hydra/launcher=local`` and ``hydra/sweeper=arms``. They call gpt.sweep."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Runs jobs in processes of their own, some at a time; submits those of ``cluster=slurm``."""

    def __init__(self, slots: int | None, gpus: int | None, threads: int | None):
        self.slots = slots
        self.gpus = gpus
        self.threads = threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from gpt.sweep import launch

        jobs = [list(overrides) for overrides in job_overrides]
        return launch(self, jobs, initial_job_idx)


class ArmsSweeper(BasicSweeper):
    """Sweeps over every combination of values, as Hydra's own sweeper, for each of the named sets of overrides (arms).

    It makes no files: the launcher checks all jobs first.
    """

    def __init__(
        self,
        params: dict[str, str],
        arms: dict[str, list[str]],
        ladder: bool,
    ):
        super().__init__(max_batch_size=None, params=params)
        self.arms = arms
        self.ladder = ladder

    def sweep(self, arguments: list[str]) -> Any:
        """Launch all jobs. Raises TrainingError where one failed."""
        from gpt.sweep import check_swept, over_arms, param_overrides, raise_failures

        # The sweep's own values first, then those of the command line.
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        texts = [*param_overrides(self.params), *arguments]
        overrides = parser.parse_overrides(texts)

        # A job alone is meant where it is one more of a sweep that has a name.
        typed = self.config.hydra.overrides.hydra
        is_named = any(override.startswith("hydra.sweep.dir=") for override in typed)
        may_be_one = bool(self.params) or is_named
        check_swept(overrides, self.arms, may_be_one)

        # Every combination of values, in every arm.
        (combinations,) = self.split_arguments(overrides, None)
        jobs = over_arms(combinations, self.arms, self.ladder)
        results = self.launcher.launch(jobs, initial_job_idx=0)
        raise_failures(results)
        return results
