"""The command line of train.py, read and checked before Hydra composes a config from it."""

import os
import re
from argparse import Namespace
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from gpt.config.groups import GROUPS, LIST_GROUPS, options
from gpt.config.values import check_names, did_you_mean
from gpt.errors import InputError
from gpt.files import as_path

FLAGS = ["--help", "--cfg", "--package", "--resolve", "--multirun", "--info", "--config-dir", "--version"]
# Flags of Hydra that would replace the configs in conf/.
OTHER_CONFIGS = ("config_name", "config_path", "experimental_rerun")
# Flags that say what a command does; it does one thing.
MODES = ("run", "multirun", "cfg", "info", "shell_completion")
# Hydra's own keys that a command may set. The others would break resuming or sweeps.
HYDRA_KEYS = re.compile(
    r"hydra\.(run\.dir|sweep\.dir|mode|searchpath|verbose|(launcher|sweeper)\..+)"
    r"|hydra/(launcher|sweeper|job_logging|hydra_logging)"
)
ADDED_HYDRA_KEYS = re.compile(r"hydra\.sweeper\..+")  # those of them that a plus may add
MAX_CHARACTERS = 100_000  # of an argument; Linux passes at most 131,072, and parsing that many takes a second
MULTIRUN = ("-m", "--multirun")
TRUE = ("true", "yes", "on", "y", "1")  # as OmegaConf reads a switch
FOLLOWER = ["hydra.run.dir=.", "hydra.output_subdir=null"]  # for a process that makes no output directory


def check_arguments(argv: list[str]) -> list[str]:
    """Check every argument by itself; return them as Hydra takes them, flags first.

    ``resume=`` is left to :mod:`gpt.cli.resume`. Raises InputError.
    """
    given = _read_flags(argv)
    overrides = parse([argument for argument in given.overrides if not argument.startswith("resume=")])
    for override in overrides:
        key = override.key_or_group
        if key in GROUPS:
            check_group(override)
        elif re.match(r"hydra\b", key):
            _check_hydra_key(override)
    _check_mode(given, overrides)
    return [*_write_flags(given), *given.overrides]


def _read_flags(argv: list[str]) -> Namespace:
    """Return Hydra's flags and, as ``overrides``, all other arguments. Raises InputError."""

    def refuse(message: str) -> NoReturn:
        first = message.split(": ")[-1].split(" ")[0]
        hint = _as_override(first, argv) or did_you_mean(first, FLAGS)
        raise InputError(message, f"flags: {', '.join(FLAGS)}; anything else is KEY=VALUE{hint}")

    parser = get_args_parser()
    parser.allow_abbrev = False
    parser.error = refuse
    given = parser.parse_intermixed_args(argv)

    # Only the configs in conf/, and directories that add options to their groups.
    for name in OTHER_CONFIGS:
        if getattr(given, name) is not None:
            value = getattr(given, name)
            raise InputError(
                f"{_flag(name)}={value} is not for train.py, whose configs are in conf/",
                "an option of your own: --config-dir DIR, or hydra.searchpath=[file://DIR]",
            )
    if given.config_dir is not None and not as_path("--config-dir", given.config_dir).is_dir():
        raise InputError(f"--config-dir={given.config_dir}: no such directory", "give one that has options of groups")

    # Flags that exclude or need each other.
    modes = [_flag(mode) for mode in MODES if getattr(given, mode)]
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)} exclude each other", "give one of them")
    if given.cfg is None and (given.resolve or given.package is not None):
        raise InputError("--resolve and --package say how --cfg prints", "python train.py --cfg job --resolve")
    return given


def _as_override(flag: str, argv: list[str]) -> str:
    """Return the question whether ``--seed 3`` meant ``seed=3``; nothing where the flag is no key."""
    from gpt.config.lookup import dotted_keys, keys_by_word

    # The value is behind an equals sign, or the next argument.
    name, equals, value = flag.lstrip("-").partition("=")
    if not equals and flag in argv:
        following = argv[argv.index(flag) + 1 :][:1]
        value = next((text for text in following if text[:1] != "-" and "=" not in text), "…")
    word = name.replace("-", "_")
    is_key = word in (*GROUPS, *dotted_keys())
    meant = [word] if is_key else keys_by_word().get(word, [])
    return f"; did you mean {' or '.join(f'{key}={value}' for key in meant)}?" if meant else ""


def _write_flags(given: Namespace) -> list[str]:
    """Return the flags of a command as they are typed."""
    flags = []
    for name, value in vars(given).items():
        if name == "overrides" or value in (None, False):
            continue
        flags.append(_flag(name) if value is True else f"{_flag(name)}={value}")
    return flags


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse(overrides: list[str]) -> list[Override]:
    """Parse overrides into keys and values. Raises InputError."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"{text[:20]}…: an argument of {len(text):,} characters",
                f"allowed: up to {MAX_CHARACTERS:,}; many files are a glob, or data.dir",
            )
        try:
            parsed += parser.parse_overrides([text])
        except (HydraException, ValueError, RecursionError) as error:
            raise unreadable(text, error) from error
    return parsed


def split_arguments(argv: list[str], defaults: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a command's own keys, which have ``defaults``, and the overrides of the config.

    Raises InputError.
    """
    own = dict(defaults)
    overrides = []
    for override in parse(argv):
        key = override.key_or_group
        if key in own:
            own[key] = override.value()
        else:
            overrides.append(override.input_line)
    return own, overrides


def unreadable(text: str, error: Exception) -> InputError:
    """Return the refusal of an argument that is no override."""
    if isinstance(error, RecursionError):
        return InputError(f"cannot read {text!r}: it is nested too deeply", "a value has a few brackets at most")
    if text.startswith("-"):
        return InputError(f"cannot read {text!r}: there are no such flags here", "an argument is KEY=VALUE")
    for character in text:
        if not character.isascii():
            return InputError(
                f"cannot read {text!r}: {character!r} is no ASCII character",
                "text with others is quoted: \"KEY='VALUE'\"",
            )
    return InputError(f"cannot read {text!r}", "an override is KEY=VALUE; quote lists and spaces: 'data.files=[a,b]'")


def check_group(override: Override) -> None:
    """Check that an override takes another option of a group, and changes no group itself. Raises InputError."""
    group = override.key_or_group
    line = override.input_line
    if override.package is not None or not _is_changed(override):
        raise InputError(
            f"{line}: every run has the groups that there are, where they are",
            f"{group}=OPTION takes another option: {', '.join(options(group))}",
        )
    if override.is_sweep_override():
        if group == "sweeps":
            raise InputError(f"{line} names several sweeps", "a command runs one, by its name: sweeps=lr")
        return

    # Only the names of options, or lists of them where a group takes several.
    value = override.value()
    if isinstance(value, dict) or (isinstance(value, list) and group not in LIST_GROUPS):
        raise InputError(
            f"{line}: a group takes the name of one of its options", f"allowed: {', '.join(options(group))}"
        )
    # Hydra would compose files that are no options: _common, ../model/tiny, tiny.yaml.
    if isinstance(value, str) and re.search(r"^_|/|\.", value):
        check_names(group, value, list(options(group)))


def _is_changed(override: Override) -> bool:
    """True if an override changes what is there, and adds or deletes nothing."""
    return not (override.is_add() or override.is_force_add() or override.is_delete())


def _check_hydra_key(override: Override) -> None:
    """Check an override of Hydra's own keys. Raises InputError."""
    key = override.key_or_group
    line = override.input_line
    # The key itself.
    is_added = ADDED_HYDRA_KEYS.fullmatch(key)
    if not HYDRA_KEYS.fullmatch(key) or not (_is_changed(override) or is_added):
        raise InputError(
            f"{line}: runs and sweeps rely on Hydra as it is",
            "allowed: hydra.run.dir, hydra.sweep.dir, hydra.mode, hydra.searchpath, hydra.verbose, "
            "hydra.launcher.slots (gpus, threads), hydra.sweeper.params (arms, ladder)",
        )
    if override.is_sweep_override() and not is_added:
        raise InputError(f"{line}: several values, and only one can be", f"give one: {key}=…")

    # Its value: a directory, a table, a switch, a list of directories.
    value = override.value()
    if key in ("hydra.run.dir", "hydra.sweep.dir") and isinstance(value, str):
        if not value.strip():
            raise InputError(f"{line} names no directory", f"give one, or leave {key} out for a new one in outputs/")
        as_path(key, value)
    if key in ("hydra.sweeper.params", "hydra.sweeper.arms") and not isinstance(value, dict):
        raise InputError(f"{line} is no table", f"one is added to by +{key}.NAME=…; see docs/ablations.md")
    if key == "hydra.sweeper.ladder":
        check_names(key, str(value).lower(), ["true", "false"])
    if key == "hydra.searchpath":
        for place in value if isinstance(value, list) else [value]:
            kind, _, path = str(place).partition("://")
            if kind not in ("file", "pkg") or (kind == "file" and not as_path(key, path).is_dir()):
                raise InputError(f"{line}: no such directory", "a list of directories: hydra.searchpath=[file://DIR]")


def _check_mode(given: Namespace, overrides: list[Override]) -> None:
    """Check that the arguments agree on one run or a sweep. Raises InputError."""
    last = {override.key_or_group: override for override in overrides}
    if "hydra.mode" in last:
        mode = str(last["hydra.mode"].value())
        check_names("hydra.mode", mode, ["RUN", "MULTIRUN"])
        if given.multirun and mode == "RUN":
            raise InputError("--multirun starts many runs, and hydra.mode=RUN one", "leave one of them out")
    if given.multirun and "hydra.run.dir" in last:
        raise InputError(
            f"{last['hydra.run.dir'].input_line}: with --multirun every job has a directory of its own",
            "the sweep's directory: hydra.sweep.dir=DIR",
        )


def as_rank(argv: list[str]) -> list[str]:
    """Return the arguments for this process: torchrun's ranks are the cluster, and only rank 0 makes a directory.

    Raises InputError for what torchrun cannot start.
    """
    # Without torchrun, other machines than the first one follow it, and what only shows a run leaves nothing.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        last = {}
        for argument in argv:
            key, _, value = argument.partition("=")
            last[key] = value
        is_machine_0 = last.get("cluster.node_rank", "0") == "0"
        is_dry_run = last.get("cluster.dry_run", "").lower() in TRUE
        is_shown_plan = last.get("plan", "").lower() in TRUE and "hydra.run.dir" not in last
        return argv if is_machine_0 and not is_dry_run and not is_shown_plan else [*argv, *FOLLOWER]

    # torchrun has started the ranks of one run.
    for argument in argv:
        if argument in MULTIRUN or re.match(r"hydra\.mode=['\"]?MULTIRUN|sweeps=(?!null$)", argument):
            raise InputError(
                "torchrun starts the ranks of one run, and a sweep is many runs",
                "let each job start its ranks: python train.py cluster=ddp …",
            )
    clusters = [argument for argument in argv if argument.startswith("cluster=")]
    if clusters and clusters[-1] not in ("cluster=single", "cluster=torchrun"):
        raise InputError(
            f"torchrun has started the ranks already, and {clusters[-1]} would start others",
            "leave it out (when resuming, say cluster=torchrun), or use python in place of torchrun",
        )
    argv = [*argv, "cluster=torchrun"]
    return argv if os.environ["RANK"] == "0" else [*argv, *FOLLOWER]
