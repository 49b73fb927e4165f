"""``resume=DIR`` and ``resume=last``: the arguments that continue a run, from its saved overrides and the command's."""

import os
from pathlib import Path

from hydra.core.override_parser.types import Override

from gpt.checkpoint.files import check_no_sweep
from gpt.cli.arguments import MULTIRUN, parse
from gpt.config import layouts
from gpt.config.load import LENGTH, flatten, read
from gpt.console import say
from gpt.errors import InputError, TrainingError
from gpt.files import as_path, read_yaml, write_text
from gpt.runs.listing import newest_unfinished

# Hydra rewrites its file in place at each resume, so that its content is kept in the other one until then.
OVERRIDES = ".hydra/overrides.yaml"
OVERRIDES_BEFORE = ".hydra/.overrides.yaml"
LAST = "last"  # in place of a directory: the newest run that can go on
OUTPUTS = Path("outputs")  # where runs are made, unless they are given another directory
CURE = "restore it from a copy, or write it: a line '- KEY=VALUE' for each override of the run's command"


def with_resume(argv: list[str]) -> list[str]:
    """Return the arguments; with ``resume=DIR`` among them, the overrides of that run first, and its directory last.

    Raises InputError where DIR has no run, or where another argument contradicts resuming.
    """
    # A path may hold characters that no override can, so that resume= is taken as typed.
    resumed = []
    others = []
    for argument in argv:
        if argument.startswith("resume="):
            resumed.append(argument)
        else:
            others.append(argument)

    # One run, and nothing that contradicts it.
    if any("resume=" in argument for argument in argv):
        overrides = [argument for argument in others if not argument.startswith("--")]
        _check_resume(resumed, parse(overrides))
    path = _as_typed(resumed[-1]) if resumed else "null"
    if path == "null":
        return argv
    if path == LAST and not Path(path).exists():
        path = _newest_run(others)
        say(f"resume=last is {path}")
    if not path:
        raise InputError("resume= names no directory", "give the output directory of a run, or leave resume out")
    if any(flag in argv for flag in MULTIRUN):
        raise InputError("resume continues one run, and --multirun starts many", "leave one of them out")
    run_dir = _find_run(path)

    # ++resume= is that of a job of a sweep. Another cluster has other keys.
    dropped = ("resume=", "++resume=")
    if any(argument.startswith("cluster=") for argument in argv):
        dropped += ("cluster=", "cluster.")
    saved = []
    for override in _saved_overrides(run_dir):
        if not override.startswith(dropped):
            saved.append(override)

    # Hydra takes the last of several values, so that the directory comes last.
    escaped = str(run_dir).replace("'", r"\'")
    directory = [
        f"resume='{escaped}'",
        f"hydra.run.dir='{escaped}'",
        "hydra.mode=RUN",
    ]
    return saved + others + directory


def _newest_run(others: list[str]) -> str:
    """Return the newest run in outputs/ that can go on beside the ``others`` among the arguments. Raises InputError."""
    # The ranks and machines of one run start one after the other, and each would look for itself.
    if "TORCHELASTIC_RUN_ID" in os.environ or any(argument.startswith("cluster.node_rank=") for argument in others):
        raise InputError("resume=last is for one process, and ranks are started here", "name the run: resume=DIR")

    # A run that is done goes on only if it is made longer.
    keys = {argument.partition("=")[0] for argument in others}
    newest = newest_unfinished(OUTPUTS, or_done=not keys.isdisjoint(LENGTH))
    if newest is None:
        raise InputError(
            f"resume=last: no run in {OUTPUTS}/ can go on",
            "runs that are done go on with a larger trainer.max_steps or trainer.max_tokens, the jobs of a sweep with "
            "its command; a loss that was not finite before anything was saved would be so again; all runs: "
            "python -m gpt.runs",
        )
    return str(newest)


def _as_typed(argument: str) -> str:
    """Return the path of ``resume=PATH``."""
    return argument.removeprefix("resume=").strip("'\"")


def _check_resume(resumed: list[str], overrides: list[Override]) -> None:
    """Check that one run continues, in its own directory. Raises InputError."""
    keys = [override.key_or_group for override in overrides]
    directories = []
    for override in overrides:
        if override.key_or_group == "hydra.run.dir":
            directories.append(str(override.value()))

    # A plus is for jobs of sweeps, which are started with it, in the directory of their run.
    for override in overrides:
        is_added = override.is_add() or override.is_force_add()
        if override.key_or_group != "resume" or not is_added:
            continue
        path = str(override.value())
        is_own = directories[-1:] == [path]
        if not is_own or not (as_path("resume", path) / "config.yaml").is_file():
            raise InputError(
                f"{override.input_line}: resume is there already",
                "leave the plus out: resume=DIR",
            )

    # One run, in its own directory.
    paths = {_as_typed(argument) for argument in resumed}
    if len(paths) > 1:
        raise InputError(f"{' and '.join(resumed)}: a command continues one run", "give one directory")
    if paths <= {"", "null"}:
        return
    path = as_path("resume", paths.pop())
    if directories:
        run_dir = as_path("hydra.run.dir", directories[-1])
        if run_dir.resolve() != path.resolve():
            raise InputError(
                f"hydra.run.dir={directories[-1]} is another directory than resume={path}",
                "leave it out: a run continues in its own",
            )
    if "sweeps" in keys:
        raise InputError("resume continues one run, and sweeps= starts many", "leave one of them out")


def _find_run(path: str) -> Path:
    """Return the run's directory. Raises InputError, with the directory above that has a run, if there is one."""
    run_dir = Path(path).expanduser().resolve()
    if (run_dir / "config.yaml").exists():
        return run_dir
    check_no_sweep("resume", Path(path).expanduser())
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
            shown = str(override)[:60]
            raise InputError(f"{path} is damaged, or none of ours: {shown!r} is no override", CURE)

    # A key that is newer than the run keeps the value that the run had without it.
    in_todays_names = []
    for key in layouts.ADDED:
        if key in flat:
            in_todays_names.append(layouts.as_override(key, flat[key]))
    for override in overrides:
        renamed = layouts.rename_override(override)
        if renamed:
            in_todays_names.append(renamed)
    return in_todays_names


def _is_override(text: str) -> bool:
    """True if Hydra can read an override."""
    try:
        parse([text])
    except InputError:
        return False
    return True
