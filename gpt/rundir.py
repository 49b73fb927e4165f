"""The output directory of a run: who holds it, where its checkpoints lie, and whether a run may start in it.

Needs no torch, so that a wrong command is refused at once.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.config import Config, changed_keys, read
from gpt.errors import InputError, Interrupted
from gpt.files import LAYOUT, locked, parse_object, read_json, write_json

METRICS, SAMPLES, HISTOGRAMS = "metrics.jsonl", "samples.txt", "histograms.jsonl"
CHECKPOINT = re.compile(r"step_\d{8,}")
STATE, STATE_LAYOUT = "state.json", 1  # 0: before checkpoints had hashes, which is still read


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold a run's directory for this command alone. Raises InputError while another command or a training has it.

    A training holds its metrics.jsonl by itself, because it may outlive the command, on another machine for instance.
    """
    with locked(run_dir):
        if (run_dir / METRICS).is_file():
            with locked(run_dir / METRICS):
                pass
        yield


@contextlib.contextmanager
def logs_held(run_dir: Path) -> Iterator[None]:
    """Hold a run's logs for this training alone. Raises InputError while another training does."""
    (run_dir / METRICS).touch()
    with locked(run_dir / METRICS):
        yield


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


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; directories of this name are whole, because they get it when they are."""
    inside = (run_dir / "checkpoints").glob("step_*")
    return sorted(path for path in inside if CHECKPOINT.fullmatch(path.name) and path.is_dir())


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint."""
    return max(checkpoints(run_dir), default=None)


def what_is_saved(run_dir: Path) -> str:
    """How a run that ended before its time goes on, in words."""
    if (checkpoint := latest_checkpoint(run_dir)) is None:
        return f"nothing had been saved yet; from the beginning: python train.py resume={run_dir}"
    return f"the checkpoint of step {int(checkpoint.name[5:]):,} is intact: python train.py resume={run_dir}"


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``path`` is, or the last one of the run whose output directory it is. Raises InputError."""
    is_one = (path / STATE).exists() or CHECKPOINT.fullmatch(path.resolve().name)
    checkpoint = path if is_one and path.is_dir() else latest_checkpoint(path)
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
    """What state.json says: fingerprint of the data, bytes of each log, progress. Raises InputError."""
    try:
        return _parse_state(checkpoint)
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, STATE, str(error)) from error


def _parse_state(checkpoint: Path) -> dict[str, Any]:
    """Read state.json and see that it is whole. Raises OSError or ValueError, and InputError for a newer layout."""
    path = checkpoint / STATE
    content = parse_object(path.read_text())
    layout = content.get("layout", 0)
    if layout not in (0, STATE_LAYOUT):
        raise InputError(
            f"{path} has layout {layout}, and this version of gptlab reads up to {STATE_LAYOUT}",
            "take the version that wrote it",
        )
    hashes = content.get("sha256")
    if (layout or hashes is not None) and (not isinstance(hashes, dict) or hashes.pop(STATE, None) != digest(content)):
        raise ValueError("its sha256 is not what it says")
    if missing := {"progress", "tokenizer", "fingerprint", "logs"} - content.keys():
        raise ValueError(f"it has no {min(missing)}")
    return content


def digest(content: dict[str, Any]) -> str:
    """sha256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_whole(checkpoint: Path) -> None:
    """Every file of a checkpoint is as it was written. Raises InputError, with another checkpoint that is whole."""
    if damage := _find_damage(checkpoint):
        raise _damaged(checkpoint, *damage)


def _find_damage(checkpoint: Path) -> tuple[str, str] | None:
    """The first file that is not as it was written, and why; None where all are."""
    name = STATE
    try:
        for name, expected in _parse_state(checkpoint).get("sha256", {}).items():
            with open(checkpoint / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return name, f"its sha256 is not what {STATE} says"
    except (OSError, ValueError) as error:
        return name, error.strerror if isinstance(error, OSError) else str(error)
    return None


def _damaged(checkpoint: Path, name: str, reason: str) -> InputError:
    """The refusal of a checkpoint, and which would do in its place: the newest older one that is whole."""
    others = [path for path in checkpoints(checkpoint.parents[1]) if path.name != checkpoint.name]
    others.sort(key=lambda path: (path.name < checkpoint.name, path.name), reverse=True)
    whole = next((path for path in others if _find_damage(path) is None), None)
    if whole is None:
        cure = "no other checkpoint of this run is whole: restore this one from a copy"
    else:
        cure = f"{whole} is whole: evaluate that one; to go on from there, delete {checkpoint.name} and resume"
    return InputError(f"{checkpoint / name} is damaged: {reason}", cure)


def check_logs(run_dir: Path, checkpoint: Path) -> None:
    """What belongs to a checkpoint of each log is there, or in the checkpoint itself. Raises InputError."""
    for name, length in read_state(checkpoint)["logs"].items():
        path = run_dir / name
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file", "move it away: what belongs there is in the checkpoint")
        size = path.stat().st_size if path.exists() else 0
        is_given_up = name == HISTOGRAMS and not path.exists()
        if size < length and not (checkpoint / name).exists() and not is_given_up:
            raise InputError(
                f"{path} has {size:,} bytes, and {length:,} belong to {checkpoint.name}",
                "restore it from a copy" + (", or delete it to go on without" if name == HISTOGRAMS else ""),
            )


def check_unused(run_dir: Path) -> None:
    """A new run needs a directory in which there is none. Raises InputError."""
    if any((run_dir / name).exists() for name in ("config.yaml", METRICS, "checkpoints")):
        result = read_result(run_dir)
        status = result["status"] if result else "not finished"
        raise InputError(
            f"{run_dir} already holds a run ({status})", f"continue it with resume={run_dir}, or take another directory"
        )


def check_resumable(config: Config, run_dir: Path) -> None:
    """A run is continued with its own config, from files that are whole, while it has steps left. Raises InputError."""
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
    check_whole(checkpoint)
    check_logs(run_dir, checkpoint)
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
