"""``resume=DIR``: the arguments that continue a run, made from its saved overrides and those of the command."""

from pathlib import Path

from hydra.core.override_parser.types import Override

from gpt.cli.arguments import MULTIRUN, parse
from gpt.config import layouts
from gpt.config.load import flatten, read
from gpt.errors import InputError, TrainingError
from gpt.files import as_path, read_yaml, write_text

# Hydra rewrites its file in place at each resume, so that its content is kept in the other one until then.
OVERRIDES = ".hydra/overrides.yaml"
OVERRIDES_BEFORE = ".hydra/.overrides.yaml"
CURE = "restore it from a copy, or write it: a line '- KEY=VALUE' for each override of the run's command"


def with_resume(argv: list[str]) -> list[str]:
    """Return the arguments; with ``resume=DIR`` among them, the overrides of that run first, and its directory last.

    Raises InputError where DIR has no run, or where another argument contradicts resuming.
    """
    # A path may hold characters that no override can, so that resume= is taken as typed.
    resumed = [argument for argument in argv if argument.startswith("resume=")]
    others = [argument for argument in argv if argument not in resumed]
    if any("resume=" in argument for argument in argv):
        _check_resume(resumed, parse([argument for argument in others if not argument.startswith("--")]))
    path = _as_typed(resumed[-1]) if resumed else "null"
    if path == "null":
        return argv
    if not path:
        raise InputError("resume= names no directory", "give the output directory of a run, or leave resume out")
    if any(flag in argv for flag in MULTIRUN):
        raise InputError("resume continues one run, and --multirun starts many", "leave one of them out")
    run_dir = _find_run(path)

    # ++resume= is that of a job of a sweep. Another cluster has other keys.
    dropped = ("resume=", "++resume=")
    if any(argument.startswith("cluster=") for argument in argv):
        dropped += ("cluster=", "cluster.")
    saved = [override for override in _saved_overrides(run_dir) if not override.startswith(dropped)]
    quoted = "'" + str(run_dir).replace("'", r"\'") + "'"
    return [*saved, *others, f"resume={quoted}", f"hydra.run.dir={quoted}", "hydra.mode=RUN"]


def _as_typed(argument: str) -> str:
    """Return the path of ``resume=PATH``."""
    return argument.removeprefix("resume=").strip("'\"")


def _check_resume(resumed: list[str], overrides: list[Override]) -> None:
    """Check that one run continues, in its own directory. Raises InputError."""
    directories = [str(override.value()) for override in overrides if override.key_or_group == "hydra.run.dir"]
    for override in overrides:
        if override.key_or_group == "resume" and (override.is_add() or override.is_force_add()):
            path = str(override.value())  # as jobs of sweeps are started
            if directories[-1:] != [path] or not (as_path("resume", path) / "config.yaml").is_file():
                raise InputError(f"{override.input_line}: resume is there already", "leave the plus out: resume=DIR")
    paths = {_as_typed(argument) for argument in resumed}
    if len(paths) > 1:
        raise InputError(f"{' and '.join(resumed)}: a command continues one run", "give one directory")
    if paths <= {"", "null"}:
        return
    path = as_path("resume", paths.pop())
    if directories and as_path("hydra.run.dir", directories[-1]).resolve() != path.resolve():
        raise InputError(
            f"hydra.run.dir={directories[-1]} is another directory than resume={path}",
            "leave it out: a run continues in its own",
        )
    if any(override.key_or_group == "sweeps" for override in overrides):
        raise InputError("resume continues one run, and sweeps= starts many", "leave one of them out")


def _find_run(path: str) -> Path:
    """Return the run's directory. Raises InputError, with the directory above that has a run, if there is one."""
    run_dir = Path(path).expanduser().resolve()
    if (run_dir / "config.yaml").exists():
        return run_dir
    hint = "give the output directory of a run, such as outputs/DATE/TIME-NAME"
    for parent in run_dir.parents:
        if (parent / "config.yaml").is_file():
            hint = f"did you mean resume={parent}?"
            break
    raise InputError(f"resume={path}: no run there (no config.yaml)", hint)


def keep_overrides(run_dir: Path) -> None:
    """Keep the overrides of a run while Hydra writes those of its resume. Raises TrainingError."""
    try:
        text = (run_dir / OVERRIDES).read_text(encoding="utf-8")
        if text:
            write_text(run_dir / OVERRIDES_BEFORE, text)
    except OSError as error:
        raise TrainingError(f"{run_dir} cannot be written: {error}\n  make room, and give the command again") from error


def _saved_overrides(run_dir: Path) -> list[str]:
    """Return the overrides that a run was composed from, in today's names, after those that keep its defaults.

    Raises InputError, with the path, for damaged files.
    """
    path = run_dir / OVERRIDES
    before = run_dir / OVERRIDES_BEFORE
    if path.is_file() and not path.stat().st_size and before.is_file():
        path = before  # Hydra was killed while it wrote the other
    flat = flatten(read(run_dir / "config.yaml"))
    overrides = read_yaml(path, list, CURE)
    for override in overrides:
        if not isinstance(override, str) or not _is_override(override):
            raise InputError(f"{path} is damaged, or none of ours: {str(override)[:60]!r} is no override", CURE)

    # A key that is newer than the run keeps the value that the run had without it.
    defaults = [layouts.as_override(key, flat[key]) for key in layouts.ADDED if key in flat]
    renamed = map(layouts.rename_override, overrides)
    return [*defaults, *filter(None, renamed)]


def _is_override(text: str) -> bool:
    """True if Hydra can read an override."""
    try:
        parse([text])
    except InputError:
        return False
    return True
