"""The lines and figures of a run that are known before its first step, and those of its end."""

import math
from pathlib import Path
from typing import Any

from gpt.checkpoint.files import latest_checkpoint
from gpt.checkpoint.state import Progress
from gpt.config.schema import Config
from gpt.device import Compute
from gpt.evaluation.metrics import PREFIX
from gpt.evaluation.task import Task
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.rundir import SAMPLES, read_about
from gpt.tokens.tokenfile import TokenFile, data_fingerprint, data_masks
from gpt.tokens.tokenizer import printable
from gpt.tracker.logs import parse_samples, read_metrics
from gpt.tracker.mirror import what_next
from gpt.tracker.plot import grad_norm_warnings, plot
from gpt.tracker.tracker import NullTracker, Tracker


def run_facts(config: Config, model: GPT, train: TokenFile, val: TokenFile, n_targets: int) -> dict[str, Any]:
    """Return what follows from config and data, for about.json and result.json."""
    return {
        "parameters": parameter_count(model),
        "flops_per_token": flops_per_token(model),
        "total_steps": config.total_steps,
        "total_tokens": config.total_tokens,
        "tokenizer": train.vocabulary,
        "val_targets": n_targets,
        "data_fingerprint": data_fingerprint(train, val),
        "data_masks": data_masks(train, val, config.data.documents),
    }


def log_header(
    tracker: Tracker | NullTracker,
    config: Config,
    model: GPT,
    facts: dict[str, Any],
    compute: Compute,
    *,
    run_dir: Path,
    n_train: int,
    step: int,
    compiler_problem: str | None,
) -> None:
    """Print what is about to run."""
    ranks = f" × {compute.world.size} ranks" if compute.world.size > 1 else ""
    tracker.say(
        f"{config.model.name}: {facts['parameters']:,} parameters, vocabulary {model.vocab_size:,} padded to "
        f"{model.padded_vocab_size:,}, {facts['flops_per_token'] / 1e6:,.1f} MFLOP per token; "
        f"{config.precision.name} on {compute.device.type}{ranks}"
    )
    tracker.say(f"{config.data.name}: {n_train:,} training tokens, {facts['val_targets']:,} validation targets")
    tracker.say(f"{config.steps_in_words} -> {run_dir}")
    if "init_sha256" in facts and not step:
        tracker.say(f"weights of {config.init_from}, sha256 {facts['init_sha256'][:12]}")
    if compiler_problem:
        tracker.say(f"compile=true, but torch.compile does not work here, so it goes on without: {compiler_problem}")
    if step:
        tracker.say(f"resuming after step {step:,}")


def summarize(
    config: Config,
    run_dir: Path,
    progress: Progress,
    tasks: dict[str, Task],
    facts: dict[str, Any],
    status: str,
    peak_memory: int,
) -> tuple[dict[str, Any], list[str]]:
    """Return what result.json holds of a training that has ended, and the lines that conclude it; draws the plot."""
    rows = read_metrics(run_dir)
    last = {key: value for row in rows for key, value in row.items()}
    references = {"ln(vocab_size)": math.log(facts["tokenizer"]["vocab_size"])}
    for task in tasks.values():
        references |= task.references()
    references |= config.data.references
    result = {
        "status": status,
        "step": progress.step,
        "tokens": progress.tokens,
        "initial_loss": rows[0]["train/loss"] if rows else None,
        "train_loss": last.get("train/loss"),
        "val_loss": last.get("val/loss"),
        "best_val_loss": progress.best_loss,
        "best_step": progress.best_step,
        **facts,
        "peak_memory_bytes": peak_memory,
        "data_order_hash": progress.order_hash,
        "references": references,
    }
    for key, value in last.items():
        if key.startswith(PREFIX) and key != "val/loss":
            result[key.removeprefix(PREFIX)] = value
    lines = []
    if status == "done":
        figures, lines = _closing(run_dir, tasks, last)
        result |= figures
    lines += [f"warning     {warning.text}" for warning in grad_norm_warnings(rows)]
    if config.tracker.plot and rows:
        resumed = [start["step"] for start in read_about(run_dir)["starts"] if start["step"]]
        path = plot(rows, run_dir / "loss.png", config.name, references | _zlib_per_token(result), resumed)
        lines.append(f"plot        {path}")
    lines.append(f"checkpoint  {latest_checkpoint(run_dir)}")
    lines += what_next(config.tracker.name, run_dir)
    return result, lines


def _zlib_per_token(result: dict[str, Any]) -> dict[str, float]:
    """Return what zlib needs for the validation text, in nats per token; nothing where that is not measured."""
    if "gzip_bpb" not in result:
        return {}
    return {"zlib level 9 on the same text": result["val_loss"] * result["gzip_bpb"] / result["bpb"]}


def _closing(run_dir: Path, tasks: dict[str, Task], last: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Return the figures and the lines that the tasks add at the end of a run, and the last sample."""
    figures = {}
    lines = []
    for task in tasks.values():
        more, line = task.closing(last)
        figures |= more
        if line:
            lines.append(line)
    samples = parse_samples((run_dir / SAMPLES).read_bytes().decode())  # as written, with its line ends
    if "sample" in tasks and samples:
        lines.append("a sample:\n  " + printable(samples[-1][1]))
    return figures, lines
