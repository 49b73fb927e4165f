"""What a run says of itself: what is known before its first step, and what came of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gpt.device import peak_bytes
from gpt.evaluation.validation import per_byte, unigram_entropy
from gpt.model import flops_per_token, parameter_count
from gpt.rundir import latest_checkpoint
from gpt.tokens.tokenizer import printable
from gpt.tracker.logs import read_metrics
from gpt.tracker.plot import grad_norm_warnings, plot
from gpt.tracker.tracker import Silent, Tracker

if TYPE_CHECKING:
    from gpt.trainer import Trainer


def facts(trainer: Trainer) -> dict[str, Any]:
    """What follows from config and data."""
    return {
        "parameters": parameter_count(trainer.state.model),
        "flops_per_token": flops_per_token(trainer.state.model),
        "total_steps": trainer.total_steps,
        "total_tokens": trainer.total_tokens,
        "tokenizer": trainer.train_file.vocabulary,
        "val_targets": trainer.validation.n_targets,
        "data_fingerprint": trainer.fingerprint,
    }


def introduce(trainer: Trainer, tracker: Tracker | Silent) -> None:
    """Say what is about to run."""
    config, model, progress = trainer.config, trainer.state.model, trainer.state.progress
    tracker.say(
        f"{config.model.name}: {parameter_count(model):,} parameters, vocabulary {model.vocab_size:,} padded to "
        f"{model.padded_vocab_size:,}, {flops_per_token(model) / 1e6:,.1f} MFLOP per token; "
        f"{config.precision.name} on {trainer.device.type}"
        + (f" × {trainer.world.size} ranks" * (trainer.world.size > 1))
    )
    tracker.say(
        f"{config.data.name}: {trainer.train_file.n_tokens:,} training tokens, "
        f"{trainer.validation.n_targets:,} validation tokens"
    )
    tracker.say(f"{config.steps_in_words} -> {trainer.run_dir}")
    if trainer.compiler_problem:
        tracker.say(
            f"compile=true, but torch.compile does not work here, so it goes on without: {trainer.compiler_problem}"
        )
    if progress.step:
        tracker.say(f"resuming after step {progress.step:,}")


def conclude(trainer: Trainer, tracker: Tracker, status: str) -> dict[str, Any]:
    """Draw the plot, say how the run ended, and gather its result."""
    progress, rows, model = trainer.state.progress, read_metrics(trainer.run_dir), trainer.state.model
    val_losses = [row["val/loss"] for row in rows if "val/loss" in row]
    result = {
        "status": status,
        "step": progress.step,
        "tokens": progress.tokens,
        "initial_loss": rows[0]["train/loss"] if rows else None,
        "train_loss": rows[-1]["train/loss"] if rows else None,
        "val_loss": val_losses[-1] if val_losses else None,
        "best_val_loss": progress.best_loss,
        "best_step": progress.best_step,
        **facts(trainer),
        "peak_memory_bytes": peak_bytes(trainer.device),
        "data_order_hash": progress.order_hash,
        "references": {
            "ln(vocab_size)": math.log(model.vocab_size),
            "unigram entropy": unigram_entropy(trainer.validation),
            **trainer.config.data.references,
        },
    }
    if exact := [row["val/exact_match"] for row in rows if "val/exact_match" in row]:
        result["exact_match"] = exact[-1]
    if status == "done":
        result |= per_byte(result["val_loss"], trainer.validation, trainer.tokenizer)
        tracker.say(
            f"validation loss {result['val_loss']:.4f} nats per token, {result['val_loss_per_byte']:.4f} per byte "
            f"(gzip -9 on the same bytes: {result['gzip_loss_per_byte']:.4f})"
        )
        if trainer.exact_match:
            tracker.say(f"exact match {result['exact_match']:.2%} of {len(trainer.exact_match.documents):,} documents")
        if trainer.config.sample.tokens:
            tracker.say("a sample:\n  " + printable(trainer.last_sample or trainer.sample()))
    for warning in grad_norm_warnings(rows):
        tracker.say(f"warning     {warning.text}")
    if trainer.config.tracker.plot and rows:
        path = plot(rows, trainer.run_dir / "loss.png", trainer.config.name, result["references"])
        tracker.say(f"plot        {path}")
    tracker.say(f"checkpoint  {latest_checkpoint(trainer.run_dir)}")
    return result
