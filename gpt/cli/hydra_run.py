"""A command from its arguments to its job: composed by Hydra, checked and locked before a file is written."""

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt.cli.arguments import as_rank, check_arguments
from gpt.cli.compose import explain_composition
from gpt.cli.init_from import with_init_from
from gpt.cli.resume import keep_overrides, with_resume
from gpt.cli.resume_checks import check_unused
from gpt.cli.run_checks import CheckedRun, check_run
from gpt.config.groups import CONF
from gpt.config.load import load
from gpt.config.schema import Config
from gpt.errors import InputError, TrainingError
from gpt.rundir import lock_run_dir


def _make_fresh(directory: str) -> str:
    """Make a directory of this name, or of name-2, name-3, … where it is taken; return its name."""
    path = Path(directory)
    number = 1
    while True:
        try:
            path.mkdir(parents=True)
            return str(path)
        except FileExistsError:
            number += 1
            path = Path(f"{directory}-{number}")


def _sweep_dir(choice: str | None, directory: str) -> str:
    """Return the directory of a sweep: always the same for one of sweeps/, a new one for one of the command line."""
    return f"outputs/sweeps/{choice}" if choice else _make_fresh(directory)


# In conf/config.yaml. A cached resolver gives the same directory each time that a command asks for it.
OmegaConf.register_new_resolver("fresh", _make_fresh, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_dir", _sweep_dir, use_cache=True, replace=True)


def run_hydra(task: Callable[[CheckedRun], Any]) -> None:
    """Compose from the command line, check, and call ``task`` in every job. Raises InputError for a wrong command."""
    # Hydra reads sys.argv, and takes flags only before all overrides.
    argv = as_rank(with_resume(with_init_from(check_arguments(sys.argv[1:]))))
    sys.argv[1:] = sorted(argv, key=lambda argument: not argument.startswith("--"))

    # What Hydra raises before a job is a command that cannot be composed; what a job raises is its own.
    job = _Job(task)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except SystemExit as error:
        package = next((argument for argument in sys.argv[1:] if argument.startswith("--package=")), None)
        if error.code and package:
            raise InputError(f"{package} is not there", "a group or a part of the config, such as model") from None
        raise
    except Refused as refused:
        error = refused.args[0]
        raise explain_composition(error) if isinstance(error, OmegaConfBaseException) else error from None
    except Exception as error:
        # A closed pipe is no error of the config, though an OSError.
        if job.is_running or isinstance(error, (InputError, TrainingError, BrokenPipeError)):
            raise
        raise explain_composition(error) from error
    finally:
        CheckFirst.release()
    job.conclude()


class _Job:
    """The function that Hydra calls in every job, and the end of a single run.

    A single run ends in :meth:`conclude`, after Hydra, which would print a line of its own before an error.
    """

    def __init__(self, task: Callable[[CheckedRun], Any]):
        functools.update_wrapper(self, task)  # Hydra looks for the file of the function
        self.task = task
        self.is_running = False
        self.error: InputError | TrainingError | BrokenPipeError | None = None
        self.submitted: Any = None

    def __call__(self, composed: DictConfig, checked: CheckedRun | None = None) -> Any:
        """Run one job. A sweep gives what it has ``checked``; a single run was checked by :class:`CheckFirst`."""
        # Here, Hydra has made the directory and written its own files.
        is_single = HydraConfig.get().mode != RunMode.MULTIRUN
        run_dir = _output_dir()
        self.is_running = True
        try:
            checked = checked or CheckFirst.checked
            if checked is None:  # a job of hydra/launcher=basic, which checks none
                checked = check_run(load(composed), run_dir)
            checked.run_dir = run_dir
            result = self.task(checked)
        except (InputError, TrainingError, BrokenPipeError) as error:
            if not is_single:
                raise
            self.error = error
            result = None
        self.is_running = False

        # A single run is waited for in conclude, a job of a sweep by the sweep.
        if is_single and composed.cluster.name == "slurm":
            self.submitted = result
            return None
        return result

    def conclude(self) -> None:
        """Raise what ended a single run, or wait for the one that was submitted."""
        if self.error is not None:
            raise self.error
        if self.submitted is not None:
            from gpt.cluster.slurm import wait

            wait(self.submitted)


class Refused(BaseException):
    """Carries an exception out of a callback or a launcher, where Hydra would handle it."""


class CheckFirst(Callback):
    """Hydra callback that refuses a single run before anything is written, and locks its directory from then on."""

    checked: ClassVar[CheckedRun | None] = None
    locks: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()

    @classmethod
    def release(cls) -> None:
        """Unlock the directory, at the end of the command."""
        cls.checked = None
        cls.locks.close()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            CheckFirst.checked = self._check(load(config), config)
        except Exception as error:
            raise Refused(error) from error

    def _check(self, config: Config, composed: DictConfig) -> CheckedRun:
        """Check a run and lock its directory, which is made last, when nothing else can be wrong."""
        follows = composed.hydra.output_subdir is None  # rank 0 has the directory
        is_fresh = "${fresh:" in OmegaConf.to_container(composed.hydra.run)["dir"]  # resolving it makes the directory
        run_dir = None if follows or is_fresh else Path(composed.hydra.run.dir)
        if follows or config.plan or config.is_dry_run:
            return check_run(config, run_dir)

        # A directory that is there may belong to another command.
        if run_dir is not None and run_dir.is_dir():
            self.locks.enter_context(lock_run_dir(run_dir))
            checked = check_run(config, run_dir)
            if config.resume:
                keep_overrides(run_dir)
            return checked

        # A directory of a new name is made, unless the run is refused.
        checked = check_run(config, run_dir)
        try:
            run_dir = Path(composed.hydra.run.dir)
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_composition(error) from error
        self.locks.enter_context(lock_run_dir(run_dir))
        check_unused(run_dir)  # another command may have used the same directory meanwhile
        return checked


def _output_dir() -> Path | None:
    """Return the output directory of this job; None in a process that follows rank 0, or submits nothing."""
    hydra_config = HydraConfig.get()
    if hydra_config.output_subdir is None:
        return None
    return output_path(hydra_config.runtime.output_dir)


def output_path(path: str) -> Path:
    """Return a directory as one would type it: relative to the working directory, if it is below."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
