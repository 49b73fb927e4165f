"""Checks of an output directory before a run starts or goes on in it. Needs no torch, so that a refusal is fast."""

import shlex
from pathlib import Path
from typing import Any

from gpt.checkpoint.files import check_links, check_logs, check_whole, latest_checkpoint, read_state
from gpt.config import layouts
from gpt.config.load import LENGTH, changed_keys, flatten, read
from gpt.config.schema import Config
from gpt.errors import InputError
from gpt.rundir import METRICS, check_layout, read_about, read_result, read_sweep


def check_unused(run_dir: Path) -> None:
    """Check that a directory holds no run, as a new one needs. Raises InputError."""
    for name in ("config.yaml", METRICS, "checkpoints"):
        if not (run_dir / name).exists():
            continue
        result = read_result(run_dir)
        status = result["status"] if result else "not finished"
        raise InputError(
            f"{run_dir} already holds a run ({status})",
            f"continue it with resume={run_dir}, or take another directory",
        )


def check_resumable(config: Config, run_dir: Path) -> dict[str, Any] | None:
    """Check that a run goes on with its own config, from files that are whole, and has steps left.

    Returns the content of state.json of its newest checkpoint; None where it has none. Raises InputError.
    """
    check_layout(run_dir)

    # The config may differ only in keys that change no finished step.
    saved = read(run_dir / "config.yaml")
    changed = changed_keys(saved, config)
    if changed:
        parts = []
        for key, (was, now) in changed.items():
            parts.append(f"{key} {was} -> {now}")
        listed = ", ".join(parts)
        raise InputError(
            f"resume={run_dir}: the config differs from the saved one: {listed}",
            "allowed to change: cluster.*, batch.micro_batch_size, data.num_workers, trainer.max_*, trainer.log_every, "
            "checkpoint.*, tracker.*; anything else is a new run",
        )
    _check_length_of_job(saved, config, run_dir)

    # The small files can be read.
    read_about(run_dir)
    result = read_result(run_dir)
    is_done = result is not None and result["status"] == "done"

    # The newest checkpoint is whole, and so are the logs up to its step.
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        if is_done:
            raise InputError(
                f"resume={run_dir}: this run is finished, and its checkpoints are gone",
                "restore them",
            )
        return None  # ended before its first checkpoint: it starts again
    check_links(run_dir)
    state = check_whole(checkpoint)
    check_logs(run_dir, checkpoint, state)

    _check_steps_left(config, run_dir, state["progress"]["step"], is_done)
    return state


def _check_steps_left(config: Config, run_dir: Path, step: int, is_done: bool) -> None:
    """Check that a run ends after the step that it is at. Raises InputError."""
    if step > config.total_steps:
        raise InputError(
            f"resume={run_dir}: this run is at step {step}, and would end at step {config.total_steps}",
            "allowed: trainer.max_steps or trainer.max_tokens that it has not passed",
        )
    if is_done and step == config.total_steps:
        raise InputError(
            f"resume={run_dir}: this run is finished, at step {step} of {config.total_steps}",
            "train on with a larger trainer.max_steps or trainer.max_tokens",
        )


def _check_length_of_job(saved: Config, config: Config, run_dir: Path) -> None:
    """Check that a job of a sweep keeps its length: the sweep would run another one again. Raises InputError."""
    old = flatten(saved)
    new = flatten(config)
    changed = []
    for key in LENGTH:
        if old[key] != new[key]:
            changed.append(f"{key} {old[key]} -> {new[key]}")
    if not changed:
        return
    sweep_dir = run_dir.absolute().parent
    index = read_sweep(sweep_dir)
    if index is None or run_dir.name not in index["jobs"]:
        return

    # A copy can have another length; one that is mirrored to wandb is a run of its own there too.
    job = shlex.quote(str(run_dir))
    copy = shlex.quote(f"{sweep_dir}-{run_dir.name}")
    make_copy = f"cp -r {job} {copy}"
    if (run_dir / "wandb.json").exists():
        make_copy += f" && rm {copy}/wandb.json"
    listed = ", ".join(changed)
    raise InputError(
        f"resume={run_dir}: a job of the sweep in {sweep_dir} keeps its length: {listed}",
        f"go on in a copy: {make_copy} && python train.py resume={copy} …\n"
        "  or give the whole sweep another length, in a new directory: hydra.sweep.dir=DIR",
    )


def describe_length_change(config: Config, run_dir: Path) -> str | None:
    """Describe in a line what another length does to a resumed run.

    None where it keeps its length, or has no checkpoint and starts again.
    """
    saved = read(run_dir / "config.yaml")
    checkpoint = latest_checkpoint(run_dir)
    if saved.total_tokens == config.total_tokens or checkpoint is None:
        return None

    # The learning rate where the run goes on.
    tokens = read_state(checkpoint)["progress"]["tokens"]
    old_rate = saved.optimizer.lr * saved.schedule.multiplier(tokens, saved.total_tokens)
    new_rate = config.optimizer.lr * config.schedule.multiplier(tokens, config.total_tokens)
    rate = f"is still {new_rate:.3g}"
    if old_rate != new_rate:
        rate = f"becomes {new_rate:.3g}, and was {old_rate:.3g}"

    # Keys that are null follow the length of the run.
    new_meaning = config.meant_by_null
    overrides = []
    for key, value in saved.meant_by_null.items():
        if new_meaning.get(key, value) != value:
            overrides.append(layouts.as_override(key, value))
    line = f"length      {saved.total_tokens:,} -> {config.total_tokens:,} tokens; "
    line += f"the learning rate at {tokens:,} {rate}"
    if overrides:
        line += "; to keep the curve: " + " ".join(overrides)
    return line


def check_same_data(run_dir: Path, state: dict[str, Any], fingerprint: str, vocabulary: dict[str, Any]) -> None:
    """Check that data is what the run was trained on; ``state`` is of its newest checkpoint. Raises InputError."""
    check_same_vocabulary(latest_checkpoint(run_dir), state["tokenizer"], vocabulary)
    saved = state["fingerprint"]
    if saved != fingerprint:
        raise InputError(
            f"resume={run_dir}: the data is other than it was (fingerprint {fingerprint[:12]}, was {saved[:12]})",
            "give the files it was trained on (data.files, data.dir), unchanged",
        )


def check_same_vocabulary(model: Path | str | None, saved: dict[str, Any], vocabulary: dict[str, Any]) -> None:
    """Check that data has the vocabulary that a model was trained with. Raises InputError."""
    if saved == vocabulary:
        return
    here = f"{vocabulary['name']} with {vocabulary['vocab_size']:,} tokens"
    there = f"{saved['name']} with {saved['vocab_size']:,} tokens"
    alphabet = " and another alphabet" if here == there else ""
    raise InputError(
        f"the data has tokenizer {here}{alphabet}, and {model} was trained with {there}",
        f"give data prepared with the same tokenizer (data.tokenizer={saved['name']})",
    )
