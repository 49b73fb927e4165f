"""Evaluate a checkpoint.

    python eval.py DIR [tasks=[val,sample]] [KEY=VALUE] …

The tasks are val, exact_match and sample; without tasks=, all that the run and its data allow.
DIR, or checkpoint=DIR, is the output directory of a run (its last checkpoint is taken), or one of its checkpoints, such
as outputs/…/checkpoints/best. The run's own config is used; what may be changed:

  data=OPTION, data.*           other data: data=text data.files=a.txt, or data.dir=DIR. Text is prepared with the
                                model's tokenizer and alphabet; of files, all is evaluated, unless data.val_fraction
                                is given
  trainer.eval_tokens=N         evaluate on so many tokens, spread over all; null: on all
  sample.prompt=TEXT            what the sample continues; also sample.tokens, sample.temperature,
                                sample.top_k, sample.top_p
  seed=N                        another sample
  device, precision, batch.micro_batch_size, cluster.threads

Results go to the terminal and to eval-STEP.json beside the checkpoint.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.cli import command

if TYPE_CHECKING:
    from gpt.config.schema import Config
    from gpt.tokens.tokenfile import TokenFile


def main() -> None:
    from gpt.checkpoint.files import check_whole, find_checkpoint
    from gpt.cli.compose import compose_evaluation
    from gpt.cli.evaluation import prepare_data, read_arguments
    from gpt.cluster.machine import check_machine
    from gpt.evaluation.results import add_results, read_results
    from gpt.evaluation.tasks import TASKS

    path, chosen, overrides = read_arguments(sys.argv[1:])
    checkpoint = find_checkpoint(path)
    check_whole(checkpoint)
    read_results(checkpoint)  # so that damage is found before the work
    config = compose_evaluation(checkpoint.parents[1], overrides)
    files = None
    if any(TASKS[task].reads_data for task in chosen or TASKS):
        files = prepare_data(config, checkpoint, overrides)
    check_machine(config)
    results = evaluate(config, checkpoint, chosen, files)
    command_line = {"tasks": chosen or list(TASKS), "overrides": overrides}
    print(f"figures     {add_results(checkpoint, command_line, results)}")


def evaluate(
    config: "Config", checkpoint: Path, chosen: list[str] | None, files: "tuple[TokenFile | None, TokenFile] | None"
) -> dict[str, Any]:
    """Run the chosen tasks on a checkpoint; prints the results as they come and returns them by task.

    None chooses all that have something to measure. ``files`` are the training and the validation data, if a task
    reads any; without training data, all of it validates.
    """
    from gpt.checkpoint.files import read_state
    from gpt.checkpoint.state import load_model
    from gpt.console import plain_console
    from gpt.device import Compute, cpu_threads, pick_device
    from gpt.evaluation.task import Subject
    from gpt.evaluation.tasks import build_tasks, check_measurable
    from gpt.model import GPT
    from gpt.precision import autocast, set_matmul_precision
    from gpt.tokens.tokenfile import data_fingerprint
    from gpt.tokens.tokenizer import get_tokenizer, printable

    # The model as it was saved.
    device = pick_device(config.device)
    set_matmul_precision(config.precision.name)
    state = read_state(checkpoint)
    tokenizer = get_tokenizer(state["tokenizer"]["name"], state["tokenizer"]["chars"])
    tasks = build_tasks(Subject(config, tokenizer, files and files[1]), chosen)
    check_measurable(chosen or [], tasks)
    model = GPT(config.model, state["tokenizer"]["vocab_size"]).to(device)
    load_model(checkpoint, model)

    say = plain_console().print
    say(f"checkpoint  {checkpoint}")
    step = state["progress"]["step"]
    results: dict[str, Any] = {"step": step}
    if files:
        results |= {"data": config.data.name, "data_fingerprint": data_fingerprint(*files)}
    compute = Compute(device, autocast(config.precision.name, device))
    with cpu_threads(config.cluster.threads):
        for name, task in tasks.items():
            measurement = task.measure(model, step, compute)
            if measurement.text is not None:
                results[name] = measurement.text
                say(f"{name}\n  " + printable(measurement.text))
                continue
            results[name] = task.figures(measurement)
            for figure, value in results[name].items():
                shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
                say(f"{name:<12}{figure:<20} {shown:>12}")
    return results


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
