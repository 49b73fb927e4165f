"""The command line of eval.py, and the data that it asks for."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.checkpoint.files import find_average
from gpt.cli.arguments import check_group, parse
from gpt.cli.resume_checks import check_same_vocabulary
from gpt.config.groups import GROUPS
from gpt.config.schema import Config
from gpt.console import say
from gpt.errors import InputError
from gpt.evaluation.tasks import TASKS
from gpt.files import as_path

if TYPE_CHECKING:
    from gpt.interop.pretrained import Header
    from gpt.tokens.tokenfile import TokenFile

USAGE = "python eval.py DIR [tasks=[val]], or checkpoint=DIR"


def read_arguments(argv: list[str]) -> tuple[str, list[str] | None, list[str]]:
    """Return the source of the model, the chosen tasks (None: the usual), and the overrides. Raises InputError."""
    # A directory by itself is the checkpoint, as typed: a path may hold characters that no override can.
    own: dict[str, Any] = {}
    assignments = []
    for argument in argv:
        if argument.startswith("-") or ("=" in argument and not os.path.isdir(argument)):
            assignments.append(argument)
        elif "checkpoint" in own:
            raise InputError(f"{argument}: one checkpoint is evaluated, and {own['checkpoint']} is given", USAGE)
        else:
            own["checkpoint"] = argument

    # The keys of eval.py itself; all others override the run's config.
    overrides = []
    for override in parse(assignments):
        key = override.key_or_group
        line = override.input_line
        if key in GROUPS:
            check_group(override)
        if key not in ("checkpoint", "tasks", "weights"):
            overrides.append(line)
            continue
        is_plain = line.startswith(f"{key}=") and not override.is_sweep_override()
        if not is_plain or key in own:
            raise InputError(f"{line}: {key} is given once, as {key}=…", USAGE)
        own[key] = override.value()

    tasks = own.get("tasks")
    if isinstance(tasks, str):
        tasks = [tasks]
    if "tasks" in own and not _are_tasks(tasks):
        raise InputError(
            f"tasks={tasks} is not known",
            f"allowed: a list of {', '.join(TASKS)}, such as tasks=[val]",
        )
    checkpoint = own.get("checkpoint")
    if not checkpoint:
        raise InputError("no checkpoint is given", f"{USAGE}; DIR is the output directory of a run")
    if "weights" in own:
        checkpoint = find_average(as_path("checkpoint", str(checkpoint)), str(own["weights"]))
    return str(checkpoint), tasks, overrides


def _are_tasks(value: Any) -> bool:
    """True for a list of names of tasks, each there once."""
    if not isinstance(value, list) or not value:
        return False
    for name in value:
        if not isinstance(name, str) or name not in TASKS:
            return False
    return len(set(value)) == len(value)


def find_model(source: str) -> "Header":
    """Return what a checkpoint, or weights from elsewhere, say of themselves. Raises InputError."""
    from gpt.interop.pretrained import check_knows_tokens
    from gpt.interop.read import fetch, read_header

    header = read_header(source)
    check_knows_tokens(header)
    fetch(source)
    return header


def compose_for(header: "Header", overrides: list[str]) -> Config:
    """Return the config of a model's run, or the default one with that model, and overrides. Raises InputError."""
    from gpt.cli.compose_evaluation import compose_evaluation, compose_foreign

    if header.checkpoint is None:
        return compose_foreign(header.model, overrides)
    return compose_evaluation(header.checkpoint.parents[1], overrides)


def results_place(header: "Header") -> Path:
    """Return the path beside which the results of a model go: its checkpoint, its file, or outputs/NAME."""
    if header.checkpoint is not None:
        return header.checkpoint
    # Weights on the hub have no place here.
    path = as_path("checkpoint", header.source.removeprefix("hf:"))
    return path if path.exists() else Path("outputs") / path.name


def prepare_data(config: Config, header: "Header", overrides: list[str]) -> "tuple[TokenFile | None, TokenFile]":
    """Prepare the data of an evaluation, and return its training file, if it has one, and its validation file.

    Text is prepared with the tokenizer and the alphabet of the model. Raises InputError.
    """
    keys = {override.key_or_group for override in parse(overrides)}
    _take_files(config, keys)
    _take_tokenizer(config, header, keys)

    # numpy and h5py are imported once the config is right.
    from data.preparation import check_fits, prepare

    train, val = prepare(config.data, header.chars)
    check_fits(config, None, val)  # nothing is trained
    check_same_vocabulary(header.checkpoint or header.source, header.vocabulary, val.vocabulary)
    return train, val


def _take_files(config: Config, keys: set[str]) -> None:
    """Evaluate on the files that are given, and on all of their text, unless the ``keys`` say otherwise."""
    data = config.data
    if "data.files" not in keys or not data.files or (data.dir and "data.dir" in keys):
        return
    data.dir = None  # of the run
    if "data.val_fraction" not in keys:
        data.val_fraction = 1.0
        say("text        all of it is evaluated; its last tenth: data.val_fraction=0.1")


def _take_tokenizer(config: Config, header: "Header", keys: set[str]) -> None:
    """Prepare text with the tokenizer of the model. Raises InputError if it cannot be."""
    data = config.data
    name = header.tokenizer
    if data.dir or data.tokenizer == name:  # prepared data says itself what made it
        return
    if data.source == "bin" or "data.tokenizer" in keys:
        raise InputError(
            f"data.tokenizer={data.tokenizer}, and {header.checkpoint or header.source} was trained with {name}",
            f"give text, which is prepared with {name}: data=text data.files=[…], without data.tokenizer",
        )
    say(f"tokenizer   {name}, with which the model was trained; data={data.name} has {data.tokenizer}")
    data.tokenizer = name
