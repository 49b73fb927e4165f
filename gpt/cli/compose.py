"""Where Hydra meets the rest: composing a config, resuming, checking first, and saying what was wrong.

This room belongs to the commands: it stands above data/, and nothing below imports it.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt.cli.arguments import check_arguments, parse, unreadable
from gpt.config import layouts
from gpt.config.checks import did_you_mean
from gpt.config.groups import CONF, GROUPS
from gpt.config.load import Config, explain, flatten, load, read, read_saved
from gpt.errors import InputError, TrainingError
from gpt.files import read_yaml, write_text
from gpt.rundir import check_resumable, check_same_data, check_unused, held

if TYPE_CHECKING:
    from gpt.tokens.tokenfile import TokenFile


MULTIRUN = {"-m", "--multirun"}


def fresh(directory: str) -> str:
    """Hydra resolver: make a directory of this name, or of name-2, name-3, … where it is taken."""
    path, number = Path(directory), 1
    while True:
        try:
            path.mkdir(parents=True)
            return str(path)
        except FileExistsError:
            number += 1
            path = Path(f"{directory}-{number}")


def sweep_dir(choice: str | None, directory: str) -> str:
    """Hydra resolver: where a sweep of sweeps/ lies, always the same; one of the command line gets a new directory."""
    return f"outputs/sweeps/{choice}" if choice else fresh(directory)


OmegaConf.register_new_resolver("fresh", fresh, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_dir", sweep_dir, use_cache=True, replace=True)


def run_hydra(task: Callable[[DictConfig], Any]) -> None:
    """Compose from the command line and call ``task`` in every job. Raises InputError for a wrong command."""
    running, submitted, failed = False, None, None

    @functools.wraps(task)
    def job(composed: DictConfig) -> Any:
        nonlocal running, submitted, failed
        is_single = HydraConfig.get().mode != RunMode.MULTIRUN
        result = None
        running = True
        try:
            result = task(composed)
        except (InputError, TrainingError) as error:
            if not is_single:
                raise
            failed = error  # raised below, because Hydra would print a line of its own before it
        running = False
        if is_single and composed.cluster.name == "slurm":
            submitted = result  # waited for below, where Hydra says nothing of how it ends
            return None
        return result

    argv = as_rank(with_resume(check_arguments(sys.argv[1:])))
    sys.argv[1:] = sorted(argv, key=lambda argument: not argument.startswith("--"))  # anywhere, which Hydra refuses
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except SystemExit as error:
        package = next((a for a in sys.argv[1:] if a.startswith("--package=")), None)
        if error.code and package:
            raise InputError(f"{package} is not there", "a group or a part of the config, such as model") from None
        raise
    except Refused as refused:
        error = refused.args[0]
        raise explain_composition(error) if isinstance(error, OmegaConfBaseException) else error from None
    except Exception as error:
        if running or isinstance(error, (InputError, TrainingError)):
            raise
        raise explain_composition(error) from error
    finally:
        CheckFirst.held.close()
    if failed is not None:
        raise failed
    if submitted is not None:
        from gpt.cluster.slurm import wait

        wait(submitted)


def compose(overrides: list[str]) -> Config:
    """The config that these overrides compose to, without a job. Raises InputError."""
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = hydra.compose("config", overrides)
    except Exception as error:
        raise explain_composition(error) from error
    return load(composed)


def explain_composition(error: Exception) -> InputError:
    """Say in two lines what Hydra could not compose."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        allowed = [name for name in error.options if not name.startswith("_")]
        return InputError(
            f"{group}={option}: no such option", f"allowed: {', '.join(allowed)}{did_you_mean(option, allowed)}"
        )
    if isinstance(error, OverrideParseException):
        return unreadable(error.override, error)
    if isinstance(error, RecursionError):
        return InputError("a value is nested too deeply", "a value has a few brackets at most")
    lines = str(error).splitlines() or [type(error).__name__]
    reason = " ".join(line.strip() for line in (lines[:2] if lines[0].endswith(":") else lines[:1]))
    if isinstance(error, OverflowError):
        return InputError(f"a number is too large: {reason}", "allowed: numbers of 64 bits")
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return explain(cause, given=reason.removeprefix("Error merging override ") if "=" in reason else None)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return InputError(f"the output directory cannot be made: {error}", "choose another with hydra.run.dir=DIR")
    if reason.startswith(("Ambiguous value", "Sweep parameters")):
        return InputError(reason, "several values are several runs: add --multirun; a list is [a,b]")
    if isinstance(error, HydraException):
        return InputError(reason, "groups and keys: python train.py --help")
    groups = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in GROUPS]
    what = " ".join(groups) or "the config cannot be composed"
    return InputError(f"{what}: {reason}", "a group takes the name of one of its options: python train.py --help")


def with_resume(argv: list[str]) -> list[str]:
    """With ``resume=DIR`` among the arguments: the overrides of that run first, and its directory last.

    Raises InputError where DIR holds no run.
    """
    given = [argument for argument in argv if argument.startswith("resume=")]
    path = given[-1].removeprefix("resume=").strip("'\"") if given else "null"
    if path == "null":
        return argv
    if not path:
        raise InputError("resume= names no directory", "give the output directory of a run, or leave resume out")
    if MULTIRUN & set(argv):
        raise InputError("resume continues one run, and --multirun starts many", "leave one of them out")
    run_dir = Path(path).expanduser().resolve()
    if not (run_dir / "config.yaml").exists():
        inside = [parent for parent in run_dir.parents if (parent / "config.yaml").is_file()]
        hint = (
            f"did you mean resume={inside[0]}?"
            if inside
            else "give the output directory of a run, such as outputs/DATE/TIME-NAME"
        )
        raise InputError(f"resume={path}: no run there (no config.yaml)", hint)
    dropped = ("resume=", "++resume=")  # the latter of a job of a sweep
    if any(argument.startswith("cluster=") for argument in argv):
        dropped += ("cluster=", "cluster.")  # another cluster has other keys
    saved = [override for override in saved_overrides(run_dir) if not override.startswith(dropped)]
    quoted = "'" + str(run_dir).replace("'", r"\'") + "'"
    rest = [argument for argument in argv if argument not in given]
    return [*saved, *rest, f"resume={quoted}", f"hydra.run.dir={quoted}", "hydra.mode=RUN"]


# Hydra writes the one at each resume, in place, so that what it held is kept in the other until then.
OVERRIDES, OVERRIDES_BEFORE = ".hydra/overrides.yaml", ".hydra/.overrides.yaml"


def keep_overrides(run_dir: Path) -> None:
    """Keep the overrides of a run while Hydra writes those of its resume. Raises TrainingError."""
    try:
        if text := (run_dir / OVERRIDES).read_text(encoding="utf-8"):
            write_text(run_dir / OVERRIDES_BEFORE, text)
    except OSError as error:
        raise TrainingError(f"{run_dir} cannot be written: {error}\n  make room, and give the command again") from error


def saved_overrides(run_dir: Path) -> list[str]:
    """The overrides that a run was composed from, in today's names, after those that keep what it had as default.

    Raises InputError, with the path, for damaged files.
    """
    path, before = run_dir / OVERRIDES, run_dir / OVERRIDES_BEFORE
    if path.is_file() and not path.stat().st_size and before.is_file():
        path = before  # Hydra was killed while it wrote the other
    flat = flatten(read(run_dir / "config.yaml"))
    cure = "restore it from a copy, or write it: a line '- KEY=VALUE' for each override of the run's command"
    overrides = read_yaml(path, list, cure)
    for override in overrides:
        if not isinstance(override, str) or not is_override(override):
            raise InputError(f"{path} is damaged, or none of ours: {str(override)[:60]!r} is no override", cure)
    defaults = [layouts.as_override(key, flat[key]) for key in layouts.ADDED if key in flat]
    return [*defaults, *filter(None, map(layouts.rename_override, overrides))]


def is_override(text: str) -> bool:
    """Whether Hydra can read an override."""
    try:
        parse([text])
    except InputError:
        return False
    return True


FOLLOWER = ["hydra.run.dir=.", "hydra.output_subdir=null"]  # makes no directory


def as_rank(argv: list[str]) -> list[str]:
    """The arguments for this process: torchrun's ranks are the cluster, and only rank 0 makes a directory.

    Raises InputError for what torchrun cannot start.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        last = dict(argument.partition("=")[::2] for argument in argv)
        follows = last.get("cluster.node_rank", "0") != "0" or last.get("cluster.dry_run", "").lower() == "true"
        return [*argv, *FOLLOWER] if follows else argv
    if MULTIRUN & set(argv) or any(re.match(r"hydra\.mode=['\"]?MULTIRUN|sweeps=(?!null$)", a) for a in argv):
        raise InputError(
            "torchrun starts the ranks of one run, and a sweep is many runs",
            "let each job start its ranks: python train.py cluster=ddp …",
        )
    given = [argument for argument in argv if argument.partition("=")[0] == "cluster"]
    if given and given[-1] not in ("cluster=single", "cluster=torchrun"):
        raise InputError(
            f"torchrun has started the ranks already, and {given[-1]} would start others",
            "leave it out (when resuming, say cluster=torchrun), or use python in place of torchrun",
        )
    argv = [*argv, "cluster=torchrun"]
    return argv if os.environ["RANK"] == "0" else [*argv, *FOLLOWER]


def output_dir() -> Path | None:
    """The output directory of this job; None in a process that follows rank 0, or submits nothing."""
    hydra_config = HydraConfig.get()
    if hydra_config.output_subdir is None:
        return None
    return output_path(hydra_config.runtime.output_dir)


def output_path(path: str) -> Path:
    """A directory as one would type it: relative to where one is, if it is below."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


EVALUATION = re.compile(
    r"data(\..*)?|sample\..*|seed|device|precision|trainer\.eval_tokens|batch\.micro_batch_size|cluster\.threads"
)


def compose_evaluation(run_dir: Path, overrides: list[str]) -> Config:
    """The saved config of a run, with other data, samples or arithmetic to evaluate it with. Raises InputError."""
    parsed = parse(overrides)
    if fixed := [o.key_or_group for o in parsed if not EVALUATION.fullmatch(o.key_or_group)]:
        raise InputError(
            f"{fixed[0]} belongs to the run in {run_dir}, and an evaluation cannot change it",
            "allowed: data, data.*, sample.*, seed, device, precision, trainer.eval_tokens, batch.micro_batch_size, "
            "cluster.threads",
        )
    saved = read_saved(run_dir / "config.yaml")
    groups = [override for override in parsed if "." not in override.key_or_group]
    given = OmegaConf.structured(compose([override.input_line for override in groups]))
    for override in groups:
        OmegaConf.update(saved, override.key_or_group, OmegaConf.select(given, override.key_or_group), merge=False)
    for override in parsed:
        if override not in groups:  # a key of the option that is given, or else of the saved one
            OmegaConf.update(saved, override.key_or_group, override.value(), merge=False, force_add=True)
    OmegaConf.update(saved, "resume", None)
    return load(saved)


def ready(config: Config, run_dir: Path | None) -> "tuple[TokenFile, TokenFile]":
    """All that can be checked before torch is needed, preparing the data on the way. Raises InputError.

    ``run_dir`` is None while it is not made.
    """
    if run_dir is not None:
        if config.resume:
            check_resumable(config, run_dir)
        else:
            check_unused(run_dir)
    from data.preparation import check_fits, prepare  # numpy and h5py, once config and directory are right
    from gpt.tokens.tokenfile import data_fingerprint

    train, val = prepare(config.data)
    check_fits(config, train, val)
    if run_dir is not None and config.resume:
        check_same_data(run_dir, data_fingerprint(train, val), train.vocabulary)
    return train, val


def check_first(config: Config, run_dir: Path | None) -> None:
    """All that can be wrong, as far as it can be known here, in the order of what it costs. Raises InputError."""
    if config.cluster.name == "slurm":  # the job finds out the rest
        from gpt.cluster.slurm import attach, check_sbatch

        check_sbatch(config, run_dir)
        if run_dir is not None and (submitted := attach(config, run_dir)):
            raise InputError(
                f"{run_dir} is in use: SLURM job {submitted.job_id} is not over",
                f"wait for it, or end it after its step: scancel --signal=USR2 {submitted.job_id}",
            )
        ready(config, run_dir)
        return
    from gpt.cluster.machine import check_machine, check_meeting_place, check_memory, settle

    ready(config, run_dir)
    settle(config)
    check_meeting_place(config.cluster)
    check_machine(config)
    check_memory(config)


def check_plan(config: Config, run_dir: Path | None) -> None:
    """What a plan needs of data, device and directory. Raises InputError."""
    if run_dir is not None:
        check_unused(run_dir)
    from data.preparation import vocab_size
    from gpt.device import pick_device

    vocab_size(config.data)
    pick_device(config.device)


class Refused(BaseException):
    """Carries an exception past Hydra, which turns those of callbacks into warnings, and past who explains its own."""


class CheckFirst(Callback):
    """Hydra callback: refuses a single run before anything is written, and holds its directory from then on."""

    held = contextlib.ExitStack()  # what run_hydra lets go at its end

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            typed = load(config)
            is_fresh = "${fresh:" in OmegaConf.to_container(config.hydra.run)["dir"]  # resolving it makes the directory
            if typed.plan:
                check_plan(typed, None if is_fresh else Path(config.hydra.run.dir))
            elif not typed.is_dry_run:
                self.check(typed, config, is_fresh)
        except Exception as error:
            raise Refused(error) from error

    def check(self, typed: Config, config: DictConfig, is_fresh: bool) -> None:
        """Check a run and hold its directory, which is made last, when nothing can be wrong any more."""
        if config.hydra.output_subdir is None:  # rank 0 has the directory
            return check_first(typed, None)
        run_dir = None if is_fresh else Path(config.hydra.run.dir)
        if run_dir is not None and run_dir.is_dir():
            self.held.enter_context(held(run_dir))
            check_first(typed, run_dir)
            return keep_overrides(run_dir) if typed.resume else None
        check_first(typed, run_dir)
        try:
            run_dir = Path(config.hydra.run.dir)
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_composition(error) from error
        self.held.enter_context(held(run_dir))
        check_unused(run_dir)  # by another command with the same directory, meanwhile
