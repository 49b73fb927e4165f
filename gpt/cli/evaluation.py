"""The command line of eval.py."""

from pathlib import Path
from typing import Any

from gpt.cli.arguments import check_group, parse
from gpt.config.groups import GROUPS
from gpt.errors import InputError
from gpt.evaluation.tasks import TASKS
from gpt.files import as_path


def read_arguments(argv: list[str]) -> tuple[Path, list[str], list[str]]:
    """Return the checkpoint, the names of the tasks, and the overrides of the run's config. Raises InputError."""
    own: dict[str, Any] = {}
    overrides = []
    for override in parse(argv):
        key = override.key_or_group
        line = override.input_line
        if key in GROUPS:
            check_group(override)
        if key not in ("checkpoint", "tasks"):
            overrides.append(line)
        elif line.partition("=")[0] != key or override.is_sweep_override() or key in own:
            raise InputError(f"{line}: {key} is given once, as {key}=…", "python eval.py checkpoint=DIR tasks=[val]")
        else:
            own[key] = override.value()
    tasks = own.get("tasks", list(TASKS))
    is_known = isinstance(tasks, list) and all(isinstance(task, str) and task in TASKS for task in tasks)
    if not is_known or not tasks or len(set(tasks)) < len(tasks):
        raise InputError(f"tasks={tasks} is not known", f"allowed: a list of {', '.join(TASKS)}, such as tasks=[val]")
    if not own.get("checkpoint"):
        raise InputError("no checkpoint is given", "python eval.py checkpoint=DIR, the output directory of a run")
    return as_path("checkpoint", str(own["checkpoint"])), tasks, overrides
