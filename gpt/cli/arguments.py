"""The command line of train.py, read and checked before Hydra composes anything from it."""

import re
from argparse import Namespace
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from gpt.config.checks import check_names, did_you_mean
from gpt.config.groups import GROUPS, options
from gpt.errors import InputError
from gpt.files import as_path

FLAGS = ["--help", "--cfg", "--package", "--resolve", "--multirun", "--info", "--config-dir", "--version"]
# Of Hydra's own keys those that a command may set; the others would take from a run what resuming or a sweep needs.
HYDRAS = re.compile(
    r"hydra\.(run\.dir|sweep\.dir|mode|searchpath|verbose|(launcher|sweeper)\..+)"
    r"|hydra/(launcher|sweeper|job_logging|hydra_logging)"
)
ADDED = re.compile(r"hydra\.sweeper\..+")  # of them those that a plus adds
LONGEST = 100_000  # characters of an argument; Linux passes no more than 131,072, and reading as many takes a second


def check_arguments(argv: list[str]) -> list[str]:
    """The arguments as Hydra takes them, flags first, where nothing is wrong with them by themselves.

    Raises InputError.
    """
    given = read_flags(argv)
    resumed = [argument for argument in given.overrides if argument.startswith("resume=")]
    overrides = parse([argument for argument in given.overrides if argument not in resumed])
    for override in overrides:
        key = override.key_or_group
        if key in GROUPS:
            check_group(override)
        elif re.match(r"hydra\b", key):
            check_hydra(override)
    check_mode(given, overrides)
    check_resume(resumed, overrides)
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in vars(given).items()
        if name != "overrides" and value not in (None, False)
    ]
    return [*flags, *given.overrides]


def read_flags(argv: list[str]) -> Namespace:
    """Hydra's flags and, as ``overrides``, the rest. Raises InputError."""

    def refuse(message: str) -> NoReturn:
        first = message.split(": ")[-1].split(" ")[0]
        raise InputError(message, f"flags: {', '.join(FLAGS)}{did_you_mean(first, FLAGS)}; anything else is KEY=VALUE")

    parser = get_args_parser()
    parser.allow_abbrev, parser.error = False, refuse
    given = parser.parse_intermixed_args(argv)
    for name in ("config_name", "config_path", "experimental_rerun"):
        if getattr(given, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')}={getattr(given, name)} is not for train.py, whose configs are in conf/",
                "an option of your own: --config-dir DIR, or hydra.searchpath=[file://DIR]",
            )
    if given.config_dir is not None and not as_path("--config-dir", given.config_dir).is_dir():
        raise InputError(f"--config-dir={given.config_dir}: no such directory", "give one that has options of groups")
    modes = ("run", "multirun", "cfg", "info", "shell_completion")
    if len(asked := [f"--{mode.replace('_', '-')}" for mode in modes if getattr(given, mode)]) > 1:
        raise InputError(f"{' and '.join(asked)} exclude each other", "give one of them")
    if given.cfg is None and (given.resolve or given.package is not None):
        raise InputError("--resolve and --package say how --cfg prints", "python train.py --cfg job --resolve")
    return given


def parse(overrides: list[str]) -> list[Override]:
    """Overrides by key and value. Raises InputError."""
    parser, found = OverridesParser.create(), []
    for text in overrides:
        if len(text) > LONGEST:
            raise InputError(
                f"{text[:20]}…: an argument of {len(text):,} characters",
                f"allowed: up to {LONGEST:,}; many files are a glob, or data.dir",
            )
        try:
            found += parser.parse_overrides([text])
        except (HydraException, ValueError, RecursionError) as error:
            raise unreadable(text, error) from error
    return found


def unreadable(text: str, error: Exception) -> InputError:
    """What is said of an argument that is no override."""
    if isinstance(error, RecursionError):
        return InputError(f"cannot read {text!r}: it is nested too deeply", "a value has a few brackets at most")
    if text.startswith("-"):
        return InputError(f"cannot read {text!r}: there are no such flags here", "an argument is KEY=VALUE")
    if strange := [character for character in text if not character.isascii()]:
        return InputError(
            f"cannot read {text!r}: {strange[0]!r} is no ASCII character", "text with others is quoted: \"KEY='VALUE'\""
        )
    return InputError(f"cannot read {text!r}", "an override is KEY=VALUE; quote lists and spaces: 'data.files=[a,b]'")


def check_group(override: Override) -> None:
    """An option of a group, where the group is, in place of another. Raises InputError."""
    group, line = override.key_or_group, override.input_line
    if override.package is not None or override.is_add() or override.is_force_add() or override.is_delete():
        raise InputError(
            f"{line}: every run has the groups that there are, where they are",
            f"{group}=OPTION takes another option: {', '.join(options(group))}",
        )
    if override.is_sweep_override():
        if group == "sweeps":
            raise InputError(f"{line} names several sweeps", "a command runs one, by its name: sweeps=lr")
        return
    value = override.value()
    if isinstance(value, dict) or (isinstance(value, list) and group not in ("experiment", "debug")):
        raise InputError(
            f"{line}: a group takes the name of one of its options", f"allowed: {', '.join(options(group))}"
        )
    if isinstance(value, str) and re.search(r"^_|/|\.", value):
        check_names(group, value, list(options(group)))


def check_hydra(override: Override) -> None:
    """What a command may say of Hydra itself. Raises InputError."""
    key, line = override.key_or_group, override.input_line
    is_changed = not (override.is_add() or override.is_force_add() or override.is_delete())
    if not HYDRAS.fullmatch(key) or not (is_changed or ADDED.fullmatch(key)):
        raise InputError(
            f"{line}: runs and sweeps rely on Hydra as it is",
            "allowed: hydra.run.dir, hydra.sweep.dir, hydra.mode, hydra.searchpath, hydra.verbose, "
            "hydra.launcher.slots (gpus, threads), hydra.sweeper.params (arms, ladder)",
        )
    if override.is_sweep_override() and not ADDED.fullmatch(key):
        raise InputError(f"{line}: several values, and only one can be", f"give one: {key}=…")
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


def check_mode(given: Namespace, overrides: list[Override]) -> None:
    """One run, or a sweep. Raises InputError."""
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


def check_resume(resumed: list[str], overrides: list[Override]) -> None:
    """One directory, in which a run goes on: ``resumed`` as typed, for a path may hold what no override can.

    Raises InputError.
    """
    directories = [str(o.value()) for o in overrides if o.key_or_group == "hydra.run.dir"]
    for override in overrides:
        if override.key_or_group == "resume" and (override.is_add() or override.is_force_add()):
            path = str(override.value())  # as jobs of sweeps are started
            if directories[-1:] != [path] or not (as_path("resume", path) / "config.yaml").is_file():
                raise InputError(f"{override.input_line}: resume is there already", "leave the plus out: resume=DIR")
    given = dict.fromkeys(argument.removeprefix("resume=").strip("'\"") for argument in resumed)
    if len(given) > 1:
        raise InputError(f"{' and '.join(resumed)}: a command continues one run", "give one directory")
    if not given or set(given) <= {"", "null"}:
        return
    path = as_path("resume", next(iter(given)))
    if directories and as_path("hydra.run.dir", directories[-1]).resolve() != path.resolve():
        raise InputError(
            f"hydra.run.dir={directories[-1]} is another directory than resume={path}",
            "leave it out: a run continues in its own",
        )
    if any(o.key_or_group == "sweeps" for o in overrides):
        raise InputError("resume continues one run, and sweeps= starts many", "leave one of them out")
