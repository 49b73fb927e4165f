"""The output directory of a run: who holds it, where its checkpoints lie, and whether a run may start in it.

Needs no torch, so that a wrong command is refused at once.
"""

import json
from pathlib import Path
from typing import Any

from gpt.config import Config, changed_keys, read
from gpt.errors import InputError, Interrupted
from gpt.files import LAYOUT, locked, read_json, write_json


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Write result.json, whole or not at all."""
    write_json(run_dir / "result.json", {"layout": LAYOUT, **result})


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """What result.json says, or None where there is none. Raises InputError for what this version cannot read."""
    path = run_dir / "result.json"
    return read_json(path, ("status",)) if path.exists() else None


def outcome(result: dict[str, Any], run_dir: Path) -> float | None:
    """The validation loss of a run, which rank 0 knows. Raises Interrupted where a signal has ended it."""
    if result["status"] == "interrupted":
        raise Interrupted(f"interrupted after step {result['step']}; continue with\n  python train.py resume={run_dir}")
    return result.get("val_loss")


def step_directory(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint; directories of this name are whole, because they get it when they are."""
    return max((run_dir / "checkpoints").glob("step_*"), default=None)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``path`` is, or the last one of the run whose output directory it is. Raises InputError."""
    checkpoint = path if (path / "state.json").is_file() else latest_checkpoint(path)
    if checkpoint is None:
        raise InputError(
            f"checkpoint={path}: no checkpoint there",
            "give the output directory of a run, or one of its checkpoints: DIR/checkpoints/best",
        )
    checkpoint = checkpoint.resolve()
    if not (checkpoint.parents[1] / "config.yaml").is_file():
        raise InputError(
            f"checkpoint={path}: no config.yaml in {checkpoint.parents[1]}",
            "a checkpoint is read where its run wrote it",
        )
    return checkpoint


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What state.json says: fingerprint of the data, bytes of each log, progress."""
    return json.loads((checkpoint / "state.json").read_text())


def check_unused(run_dir: Path) -> None:
    """A new run needs a directory in which there is none. Raises InputError."""
    if (run_dir / "metrics.jsonl").exists():
        result = read_result(run_dir)
        status = result["status"] if result else "not finished"
        raise InputError(
            f"{run_dir} already holds a run ({status})", f"continue it with resume={run_dir}, or take another directory"
        )


def check_resumable(config: Config, run_dir: Path) -> None:
    """A run is continued by one process, with its own config, and while it has steps left. Raises InputError."""
    with locked(run_dir):
        saved = read(run_dir / "config.yaml")
    if changed := changed_keys(saved, config):
        listed = ", ".join(f"{key} {was} -> {now}" for key, (was, now) in changed.items())
        raise InputError(
            f"resume={run_dir}: the config differs from the saved one: {listed}",
            "allowed to change: cluster.*, batch.micro_batch_size, data.num_workers, trainer.max_*, trainer.log_every, "
            "checkpoint.*, tracker.*; anything else is a new run",
        )
    if (checkpoint := latest_checkpoint(run_dir)) is None:
        return  # ended before its first checkpoint: it starts again
    step, result = read_state(checkpoint)["progress"]["step"], read_result(run_dir)
    is_done = result is not None and result["status"] == "done"
    if step > config.total_steps or (is_done and step == config.total_steps):
        raise InputError(
            f"resume={run_dir}: this run is finished, at step {step} of {config.total_steps}",
            "train on with a larger trainer.max_steps or trainer.max_tokens",
        )


def check_same_vocabulary(checkpoint: Path, vocabulary: dict[str, Any]) -> None:
    """A model reads only tokens of the vocabulary that it was trained on. Raises InputError."""
    saved = read_state(checkpoint)["tokenizer"]
    if saved != vocabulary:
        here, there = (f"{v['name']} with {v['vocab_size']:,} tokens" for v in (vocabulary, saved))
        alike = " and another alphabet" if here == there else ""
        raise InputError(
            f"the data has tokenizer {here}{alike}, and {checkpoint} was trained with {there}",
            f"give data prepared with the same tokenizer (data.tokenizer={saved['name']})",
        )


def check_same_data(run_dir: Path, fingerprint: str, vocabulary: dict[str, Any]) -> None:
    """A resumed run needs the data that it was trained on. Raises InputError."""
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        return
    check_same_vocabulary(checkpoint, vocabulary)
    saved = read_state(checkpoint)["fingerprint"]
    if saved != fingerprint:
        raise InputError(
            f"resume={run_dir}: the data is other than it was (fingerprint {fingerprint[:12]}, was {saved[:12]})",
            "give the files it was trained on (data.files, data.dir), unchanged",
        )
