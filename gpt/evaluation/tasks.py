"""The table of evaluation tasks. Imports no torch, so that a wrong name is refused at once."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from gpt.errors import InputError

if TYPE_CHECKING:
    from gpt.evaluation.task import Subject, Task


class Entry(NamedTuple):
    """A row of the table: the module and the class of a task, and whether it reads the validation data."""

    module: str
    name: str
    reads_data: bool


# In the order in which they run; the validation loss, by which checkpoints are chosen, comes first.
TASKS = {
    "val": Entry("gpt.evaluation.validation", "Validation", reads_data=True),
    "exact_match": Entry("gpt.evaluation.exact_match", "ExactMatch", reads_data=True),
    "sample": Entry("gpt.evaluation.sample", "Sample", reads_data=False),
}


def build_tasks(subject: "Subject", names: list[str] | None = None) -> dict[str, "Task"]:
    """Return the tasks of these names (None: all), without those that have nothing to measure."""
    tasks = {}
    for name, entry in TASKS.items():
        if names is not None and name not in names:
            continue
        kind = getattr(import_module(entry.module), entry.name)
        task = kind.build(subject)
        if task is not None:
            tasks[name] = task
    return tasks


def check_measurable(names: list[str], tasks: dict[str, "Task"]) -> None:
    """Check that tasks that were chosen by name have something to measure. Raises InputError."""
    for name in names:
        if name not in tasks:
            raise InputError(
                f"tasks={names}: {name} has nothing to measure with this run and data",
                "leave it out of tasks; see its key or data in docs/config.md and docs/data.md",
            )
