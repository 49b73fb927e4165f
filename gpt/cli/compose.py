"""Configs composed from overrides, and the explanation of what cannot be composed."""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from gpt.cli.arguments import parse, unreadable
from gpt.config.explain import explain
from gpt.config.groups import CONF, GROUPS
from gpt.config.load import load, read_saved
from gpt.config.schema import Config
from gpt.config.values import did_you_mean
from gpt.errors import InputError

# What an evaluation may change in the config of its run.
EVALUATION = re.compile(
    r"data(\..*)?|(sample|hellaswag|perplexity|arithmetic|inspect|lm_eval)\..*|seed|device|compile|precision"
    r"|trainer\.eval_tokens|batch\.micro_batch_size|cluster(\..*)?"
)
# Hydra's words for the file of an option whose keys it put below the name of its group.
MISPLACED = re.compile(r"In '(?P<group>\w+)/(?P<option>.+)': ConfigKeyError .*: Key '(?P=group)' not in 'Config'")
MICRO_BATCH = "batch.micro_batch_size"
MANY_RANKS = 7_207_200  # tokens of a batch that up to 16 ranks divide, and most numbers beyond


def compose(overrides: list[str]) -> Config:
    """Compose a config from overrides, without a job. Raises InputError."""
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = hydra.compose("config", overrides)
    except Exception as error:
        raise explain_composition(error) from error
    return load(composed)


def compose_evaluation(run_dir: Path, overrides: list[str]) -> Config:
    """Return the saved config of a run, with other data, samples or arithmetic to evaluate it with.

    Raises InputError.
    """
    groups = []
    keys = []
    micro_batch_size = None
    for override in parse(overrides):
        key = override.key_or_group
        if not EVALUATION.fullmatch(key):
            raise InputError(
                f"{key} belongs to the run in {run_dir}, and an evaluation cannot change it",
                "allowed: data, data.*, keys of tasks (sample.*, hellaswag.*, …), seed, device, compile, precision, "
                "trainer.eval_tokens, batch.micro_batch_size, cluster=single or ddp, cluster.*",
            )
        if override.is_sweep_override():
            raise InputError(
                f"{override.input_line}: several values, and an evaluation takes one",
                f"a list is {key}=[a,b]; text with a comma is quoted twice: \"{key}='a, b'\"",
            )
        if key.startswith("cluster"):  # see compose_ranks
            continue
        if key == MICRO_BATCH:
            micro_batch_size = _check_micro_batch(override.value())
        elif "." in key:
            keys.append(override)
        else:
            groups.append(override)
    saved = read_saved(run_dir / "config.yaml")

    # First whole options, then keys: of the option that is given, or else of the saved one. Not of its ranks, nor its
    # compilation, which pays only in training.
    composed = compose([override.input_line for override in groups])
    others = OmegaConf.create(asdict(composed))  # types come with load
    for override in groups:
        group = override.key_or_group
        OmegaConf.update(saved, group, OmegaConf.select(others, group), merge=False)
    for override in keys:
        OmegaConf.update(saved, override.key_or_group, override.value(), merge=False, force_add=True)
    OmegaConf.update(saved, "resume", None)
    OmegaConf.update(saved, "cluster", others.cluster, merge=False)
    if not any(override.key_or_group == "compile" for override in groups):
        OmegaConf.update(saved, "compile", False)
    config = load(saved)
    if micro_batch_size is not None:  # which need not divide the batch of the run
        config.batch.micro_batch_size = micro_batch_size
    return config


def compose_ranks(overrides: list[str], device: str) -> Config:
    """Return a config whose cluster is that of an evaluation's overrides; nothing else of it means anything.

    Apart from the evaluation's own, whose batch need not divide by these ranks. Raises InputError.
    """
    chosen = [override.input_line for override in parse(overrides) if override.key_or_group.startswith("cluster")]
    if "cluster=slurm" in chosen:
        raise InputError("cluster=slurm trains, and an evaluation runs here", "call eval.py in a job of your own")
    batch = ["model.seq_len=1", "batch.micro_batch_size=1", f"batch.global_tokens={MANY_RANKS}"]
    return compose([*chosen, *batch, f"trainer.eval_every={MANY_RANKS}", "trainer.max_steps=1", f"device={device}"])


def _check_micro_batch(value: Any) -> int:
    """Return a number of sequences. Raises InputError for anything else."""
    if type(value) is not int or value < 1:
        raise InputError(f"{MICRO_BATCH}={value} makes no sense", "allowed: at least 1")
    return value


def explain_composition(error: Exception) -> InputError:
    """Return the refusal, in two lines, of what Hydra could not compose."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _explain_option(error)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override, error)
    if isinstance(error, RecursionError):
        return InputError("a value is nested too deeply", "a value has a few brackets at most")

    # OmegaConf tells the rest in lines of its own, of which the first says what is wrong.
    reason = _first_line(error)
    if isinstance(error, OverflowError):
        return InputError(f"a number is too large: {reason}", "allowed: numbers of 64 bits")
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        override = reason.removeprefix("Error merging override ") if "=" in reason else None
        return explain(cause, override)

    # A file of an option that is not YAML, or whose keys are those of the whole config.
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is not None:
        return InputError(f"{mark.name}, line {mark.line + 1}: {error.problem or reason}", "correct the YAML there")
    misplaced = MISPLACED.match(reason)
    if misplaced:
        return InputError(
            f"{misplaced['group']}={misplaced['option']}: its file does not say that its keys are of the whole config",
            "add the line that such files begin with: # @package _global_",
        )

    is_hydra = isinstance(error, HydraException)
    if isinstance(error, OSError) and not is_hydra:
        return InputError(f"the output directory cannot be made: {error}", "choose another with hydra.run.dir=DIR")
    if reason.startswith(("Ambiguous value", "Sweep parameters")):
        return InputError(reason, "several values are several runs: add --multirun; a list is [a,b]")
    if is_hydra:
        return InputError(reason, "groups and keys: python train.py --help")

    # Hydra lets a ValueError through where a group takes no name.
    groups = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in GROUPS]
    what = " ".join(groups) or "the config cannot be composed"
    return InputError(f"{what}: {reason}", "a group takes the name of one of its options: python train.py --help")


def _explain_option(error: MissingConfigException) -> InputError:
    """Return the refusal of an option that a group does not have."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    allowed = [name for name in error.options if not name.startswith("_")]
    return InputError(
        f"{group}={option}: no such option", f"allowed: {', '.join(allowed)}{did_you_mean(option, allowed)}"
    )


def _first_line(error: Exception) -> str:
    """Return the first line of a message, and the second where the first ends with a colon."""
    lines = str(error).splitlines() or [type(error).__name__]
    count = 2 if lines[0].endswith(":") else 1
    return " ".join(line.strip() for line in lines[:count])
