"""Configs composed from overrides, and the explanation of what cannot be composed."""

import re
import sys

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from gpt.cli.arguments import unreadable
from gpt.config.explain import explain
from gpt.config.groups import CONF, GROUPS
from gpt.config.load import load
from gpt.config.schema import VARIANTS, Config
from gpt.config.values import did_you_mean
from gpt.errors import InputError

# Hydra's words for the file of an option whose keys it put below the name of its group.
MISPLACED = re.compile(r"In '(?P<group>\w+)/(?P<option>.+)': ConfigKeyError .*: Key '(?P=group)' not in 'Config'")

# Its words for a file of an option that sets a key of another option: of optimizer=muon, where the optimizer is AdamW.
FOREIGN = re.compile(
    r"In '(?P<group>\w+)/(?P<option>.+)': ConfigKeyError .*:\s+Key '.*?' not in '\w+'\s+"
    r"full_key: (?P<section>\w+)\.(?P<key>\S+)"
)


def compose(overrides: list[str]) -> Config:
    """Compose a config from overrides, without a job. Raises InputError."""
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = hydra.compose("config", overrides)
    except Exception as error:
        raise explain_composition(error) from error
    return load(composed)


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

    foreign = FOREIGN.match(str(error))
    if foreign and foreign["section"] in VARIANTS:
        section = foreign["section"]
        return InputError(
            f"{foreign['group']}={foreign['option']} sets {section}.{foreign['key']}, "
            f"which the chosen {section} does not have",
            f"leave {section}= or {foreign['group']}={foreign['option']} out, or correct the key",
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
