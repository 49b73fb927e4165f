"""The table of evaluation tasks. Imports no torch, so that a wrong name is refused at once."""

from importlib import import_module
from typing import TYPE_CHECKING, Literal, NamedTuple

from gpt.errors import InputError

if TYPE_CHECKING:
    from gpt.config.schema import Config
    from gpt.evaluation.task import Subject, Task


class Entry(NamedTuple):
    """A row of the table: a task's module and class, what it reads, and when it runs."""

    module: str
    name: str
    reads_data: bool  # whether it needs the validation data
    # A module without torch whose ``check`` refuses a config, or files, with which the task cannot run.
    inputs: str | None = None
    # With each evaluation, where trainer.tasks names it, or in eval.py alone.
    runs: Literal["always", "chosen", "alone"] = "always"


# In the order in which they run; the validation loss, by which checkpoints are chosen, comes first.
TASKS = {
    "val": Entry("gpt.evaluation.validation", "Validation", reads_data=True),
    "exact_match": Entry("gpt.evaluation.exact_match", "ExactMatch", reads_data=True),
    "sample": Entry("gpt.evaluation.sample", "Sample", reads_data=False),
    "hellaswag": Entry(
        "gpt.evaluation.hellaswag",
        "HellaSwag",
        reads_data=False,
        inputs="gpt.evaluation.hellaswag_file",
        runs="chosen",
    ),
    "perplexity": Entry(
        "gpt.evaluation.perplexity",
        "Perplexity",
        reads_data=False,
        inputs="gpt.evaluation.perplexity_files",
        runs="chosen",
    ),
    "arithmetic": Entry("gpt.evaluation.arithmetic", "Arithmetic", reads_data=False, runs="chosen"),
    "lm_eval": Entry(
        "gpt.evaluation.lm_eval",
        "LmEval",
        reads_data=False,
        inputs="gpt.evaluation.lm_eval_names",
        runs="chosen",
    ),
    "inspect": Entry("gpt.evaluation.inspect", "Inspect", reads_data=False, runs="alone"),
}


def usual_tasks(config: "Config") -> list[str]:
    """Return the names of the tasks of an evaluation during training, in the order in which they run."""
    return [name for name, entry in TASKS.items() if entry.runs == "always" or name in config.trainer.tasks]


def check_tasks(config: "Config", names: list[str]) -> None:
    """Check that these tasks exist, and that their inputs can be read. Raises InputError."""
    for name in config.trainer.tasks:
        chosen = [known for known, entry in TASKS.items() if entry.runs == "chosen"]
        if name not in chosen:
            always = [known for known, entry in TASKS.items() if entry.runs == "always"]
            raise InputError(
                f"trainer.tasks={config.trainer.tasks}: {name} is not known",
                f"allowed: {', '.join(chosen)}; {', '.join(always)} run with each evaluation",
            )
    for name in names:
        entry = TASKS[name]
        if entry.inputs:
            import_module(entry.inputs).check(config)


def build_tasks(subject: "Subject", names: list[str]) -> dict[str, "Task"]:
    """Return the tasks of these names, without those that have nothing to measure."""
    tasks = {}
    for name, entry in TASKS.items():
        if name not in names:
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
