"""Evaluate a checkpoint.

    python eval.py checkpoint=DIR [tasks=[val,sample]] [KEY=VALUE] …

DIR is the output directory of a run (its last checkpoint is taken), or one of its checkpoints, such as
outputs/…/checkpoints/best. The run's own config is used; what may be changed:

  data=OPTION, data.*           other data, prepared with the same tokenizer: data.dir=DIR, data.files=[…]
  trainer.eval_tokens=N         evaluate on so many tokens, spread over all; null: on all
  sample.prompt=TEXT            what the sample continues; also sample.tokens, sample.temperature, sample.top_k
  seed=N                        another sample
  device, precision, batch.micro_batch_size, cluster.threads

Results go to the terminal and to eval-STEP.json beside the checkpoint.
"""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.cli import command
from gpt.config.groups import GROUPS
from gpt.errors import InputError, TrainingError

if TYPE_CHECKING:
    from gpt.config.load import Config
    from gpt.tokens.tokenfile import TokenFile

TASKS = ["val", "sample"]


def main() -> None:
    from gpt.cli.compose import compose_evaluation, ready
    from gpt.cluster.machine import check_machine
    from gpt.rundir import check_same_vocabulary, check_whole, find_checkpoint

    checkpoint, tasks, overrides = arguments(sys.argv[1:])
    checkpoint = find_checkpoint(checkpoint)
    check_whole(checkpoint)
    read_figures(figures_of(checkpoint))
    config = compose_evaluation(checkpoint.parents[1], overrides)
    files = None
    if "val" in tasks:
        files = ready(config, None)
        check_same_vocabulary(checkpoint, files[0].vocabulary)
    check_machine(config)
    asked = {"tasks": tasks, "overrides": overrides}
    record(checkpoint, asked, evaluate(config, checkpoint, tasks, files))


def arguments(argv: list[str]) -> tuple[Path, list[str], list[str]]:
    """What to evaluate, by which tasks, and the overrides of the run's config. Raises InputError."""
    from gpt.cli.arguments import check_group, parse
    from gpt.files import as_path

    own: dict[str, Any] = {}
    overrides = []
    for override in parse(argv):
        key, line = override.key_or_group, override.input_line
        if key in GROUPS:
            check_group(override)
        if key not in ("checkpoint", "tasks"):
            overrides.append(line)
        elif line.partition("=")[0] != key or override.is_sweep_override() or key in own:
            raise InputError(f"{line}: {key} is given once, as {key}=…", "python eval.py checkpoint=DIR tasks=[val]")
        else:
            own[key] = override.value()
    tasks = own.get("tasks", TASKS)
    is_known = isinstance(tasks, list) and all(isinstance(task, str) and task in TASKS for task in tasks)
    if not is_known or not tasks or len(set(tasks)) < len(tasks):
        raise InputError(f"tasks={tasks} is not known", f"allowed: a list of {', '.join(TASKS)}, such as tasks=[val]")
    if not own.get("checkpoint"):
        raise InputError("no checkpoint is given", "python eval.py checkpoint=DIR, the output directory of a run")
    return as_path("checkpoint", str(own["checkpoint"])), tasks, overrides


def evaluate(
    config: "Config", checkpoint: Path, tasks: list[str], files: "tuple[TokenFile, TokenFile] | None"
) -> dict[str, Any]:
    """The results by task, printed as they come; ``files`` hold the data where a task reads any."""
    from gpt.checkpoint import load_model
    from gpt.console import plain_console
    from gpt.device import cpu_threads, pick_device
    from gpt.evaluation.validation import Validation, exact_match, per_byte
    from gpt.generate import generate_text
    from gpt.model import GPT
    from gpt.precision import autocast, set_matmul_precision
    from gpt.rundir import read_state
    from gpt.tokens.tokenfile import data_fingerprint
    from gpt.tokens.tokenizer import get_tokenizer, printable
    from gpt.tokens.windows import Windows

    device, state = pick_device(config.device), read_state(checkpoint)
    set_matmul_precision(config.precision.name)
    tokenizer = get_tokenizer(state["tokenizer"]["name"], state["tokenizer"]["chars"])
    model = GPT(config.model, state["tokenizer"]["vocab_size"]).to(device)
    load_model(checkpoint, model)
    results: dict[str, Any] = {"step": state["progress"]["step"]}
    say = plain_console().print
    say(f"checkpoint  {checkpoint}")
    with cpu_threads(config.cluster.threads):
        if files:
            results |= {"data": config.data.name, "data_fingerprint": data_fingerprint(*files)}
            windows = Windows(files[1], config.model.seq_len, config.data.documents, config.data.read)
            validation = Validation(windows, config.trainer.eval_tokens, config.micro_batch_size)
            cast = autocast(config.precision.name, device)
            loss = validation.loss(model, device, cast)
            results["val"] = {"val_loss": loss, "perplexity": math.exp(loss), "tokens": validation.n_targets}
            if measure := exact_match(windows, config.micro_batch_size):
                results["val"]["exact_match"] = measure.share(model, device, cast)
            results["val"] |= per_byte(loss, validation, tokenizer)
            for name, value in results["val"].items():
                shown = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
                say(f"val         {name:<20} {shown:>12}")
        if "sample" in tasks:
            results["sample"] = generate_text(model.eval(), tokenizer, config.sample, config.seed, results["step"])
            say("sample\n  " + printable(results["sample"]))
    return results


def figures_of(checkpoint: Path) -> Path:
    """The file of a checkpoint's evaluations."""
    return checkpoint.with_name(f"eval-{checkpoint.name}.json")


def read_figures(path: Path) -> list[dict[str, Any]]:
    """Earlier evaluations. Raises InputError for a file that is damaged."""
    if not path.exists():
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(held, list) and all(isinstance(entry, dict) for entry in held)):
            raise ValueError("no list of evaluations")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or none of ours: {error}", "move it away, or restore it") from error
    return held


def record(checkpoint: Path, asked: dict[str, Any], results: dict[str, Any]) -> None:
    """Add the results to those of the same checkpoint; the same evaluation again replaces its own."""
    from gpt.files import write_text

    path = figures_of(checkpoint)
    others = [entry for entry in read_figures(path) if any(entry.get(key) != value for key, value in asked.items())]
    try:
        write_text(path, json.dumps([*others, asked | results], indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error}") from error
    print(f"figures     {path}")


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
