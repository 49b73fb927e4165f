"""The tasks of eval.py, on one rank or several."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from gpt.checkpoint.files import read_state
from gpt.config.schema import Config
from gpt.console import plain_console
from gpt.device import Compute, cpu_threads, pick_device
from gpt.distributed import World, process_group
from gpt.evaluation.results import add_results, write_picture
from gpt.evaluation.task import Subject, Task
from gpt.evaluation.tasks import build_tasks, check_measurable
from gpt.interop.load import load_pretrained
from gpt.interop.pretrained import Header
from gpt.interop.read import read_pretrained
from gpt.model import GPT
from gpt.parallelize import compile_blocks, compiler_problem
from gpt.precision import autocast, set_matmul_precision
from gpt.signals import Interrupt, Stopped
from gpt.tokens.tokenfile import TokenFile, data_fingerprint
from gpt.tokens.tokenizer import get_tokenizer, printable

PROMISE = "ends after this batch, and keeps what other tasks have found; a second one ends at once"


@dataclass(frozen=True)
class Evaluation:
    """A command: the config, the model, the names of the tasks, and those of them that were asked for by name.

    Files are written beside ``place``, with the ``overrides``. ``files`` are the training and the validation data, if a
    task reads any; without training data, all of it validates.
    """

    config: Config
    header: Header
    place: Path
    names: list[str]
    chosen: list[str]
    overrides: list[str]
    files: tuple[TokenFile | None, TokenFile] | None


def evaluate(world: World, evaluation: Evaluation) -> bool:
    """Run the tasks on a model, on all ranks together; rank 0 prints the results as they come, and keeps them.

    Returns whether all were run: a signal ends them at the next batch. Raises InputError for a chosen task that has
    nothing to measure.
    """
    config = evaluation.config
    files = evaluation.files
    device = pick_device(config.device, world.local_rank)
    with process_group(world, device, config.cluster.timeout), cpu_threads(config.cluster.threads):
        # The tasks first: what they cannot measure is refused before the weights are read.
        set_matmul_precision(config.precision.name)
        header = evaluation.header
        tokenizer = get_tokenizer(header.tokenizer, header.chars)
        tasks = build_tasks(Subject(config, tokenizer, files and files[1]), evaluation.names)
        check_measurable(evaluation.chosen, tasks)

        # The same weights on every rank.
        model = GPT(config.model, header.vocab_size)
        load_pretrained(model, read_pretrained(header.source))
        model.to(device)
        console = plain_console()
        console.quiet = not world.is_main
        problem = compiler_problem(device) if config.compile else None
        if problem:
            console.print(f"compile=true, but torch.compile does not work here, so it goes on without: {problem}")
        elif config.compile:
            compile_blocks(model)
        average = f", weights={header.average}" if header.average else ""
        console.print(f"checkpoint  {header.checkpoint or header.source}{average}")
        with Interrupt(world.stop, listens=world.stop is None, promise=PROMISE) as interrupt:
            compute = Compute(device, autocast(config.precision.name, device), world, lambda: interrupt.received)
            return _run(evaluation, tasks, model, compute, console)


def _run(evaluation: Evaluation, tasks: dict[str, Task], model: GPT, compute: Compute, console: Console) -> bool:
    """Run the tasks one by one; return whether all were run."""
    header = evaluation.header
    step = read_state(header.checkpoint)["progress"]["step"] if header.checkpoint else 0
    results: dict[str, Any] = {"step": step}
    if evaluation.files:
        data = {"data": evaluation.config.data.name, "data_fingerprint": data_fingerprint(*evaluation.files)}
        results |= data

    # What one task has found is kept, whatever becomes of the others.
    path = None
    command = {"tasks": list(tasks), "overrides": evaluation.overrides}
    is_whole = True
    for name, task in tasks.items():
        try:
            measurement = task.measure(model, step, replace(compute, track=_bar(console, name)))
        except Stopped:
            is_whole = False
            break
        results[name] = task.figures(measurement) if measurement.text is None else measurement.text
        _show(console, name, results[name])
        if compute.world.is_main:
            path = add_results(evaluation.place, command, results)
            for picture, content in measurement.pictures.items():
                console.print(f"{name:<12}{write_picture(evaluation.place, picture, content)}")
    if path:
        console.print(f"figures     {path}")
    return is_whole


def _bar(console: Console, name: str) -> Callable[..., Iterable]:
    """Return a function that shows a bar of the batches that a task has passed, on a terminal."""
    is_shown = console.is_terminal and not console.quiet
    return lambda batches, number: track(batches, name, number, console=console, transient=True, disable=not is_shown)


def _show(console: Console, name: str, result: dict[str, Any] | str) -> None:
    """Print the figures of a task, or its text."""
    if isinstance(result, str):
        console.print(f"{name}\n  " + printable(result))
        return
    for figure, value in result.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
        console.print(f"{name:<12}{figure:<24} {shown:>12}")
