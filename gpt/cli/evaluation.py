"""The command line of eval.py."""

from pathlib import Path
from typing import Any

from gpt.cli.arguments import check_group, parse
from gpt.config.groups import GROUPS
from gpt.errors import InputError
from gpt.evaluation.tasks import TASKS
from gpt.files import as_path


def read_arguments(argv: list[str]) -> tuple[Path, list[str] | None, list[str]]:
    """Return the checkpoint, the chosen tasks (None: all), and the overrides of the run's config. Raises InputError."""
    # The keys of eval.py itself; all others override the run's config.
    own: dict[str, Any] = {}
    overrides = []
    for override in parse(argv):
        key = override.key_or_group
        line = override.input_line
        if key in GROUPS:
            check_group(override)
        if key not in ("checkpoint", "tasks"):
            overrides.append(line)
            continue
        is_plain = line.startswith(f"{key}=") and not override.is_sweep_override()
        if not is_plain or key in own:
            raise InputError(
                f"{line}: {key} is given once, as {key}=…",
                "python eval.py checkpoint=DIR tasks=[val]",
            )
        own[key] = override.value()

    tasks = own.get("tasks")
    if "tasks" in own and not _are_tasks(tasks):
        raise InputError(
            f"tasks={tasks} is not known",
            f"allowed: a list of {', '.join(TASKS)}, such as tasks=[val]",
        )
    checkpoint = own.get("checkpoint")
    if not checkpoint:
        raise InputError(
            "no checkpoint is given",
            "python eval.py checkpoint=DIR, the output directory of a run",
        )
    return as_path("checkpoint", str(checkpoint)), tasks, overrides


def _are_tasks(value: Any) -> bool:
    """True for a list of names of tasks, each there once."""
    if not isinstance(value, list) or not value:
        return False
    for name in value:
        if not isinstance(name, str) or name not in TASKS:
            return False
    return len(set(value)) == len(value)
