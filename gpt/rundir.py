"""The output directory of a run: who holds it, where its checkpoints lie, and whether a run may start in it.

Needs no torch, so that a wrong command is refused at once.
"""

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from gpt.config import layouts
from gpt.config.load import LENGTH, Config, changed_keys, flatten, read
from gpt.errors import InputError, Interrupted
from gpt.files import LAYOUT, check_kinds, locked, parse_object, read_json, write_json

METRICS, SAMPLES, HISTOGRAMS = "metrics.jsonl", "samples.txt", "histograms.jsonl"
CHECKPOINT = re.compile(r"step_\d{8,}")
STATE, STATE_LAYOUT = "state.json", 1  # 0: before checkpoints had hashes, which is still read
ABOUT = "about.json"  # of a run's directory: facts, and its starts
INDEX = "sweep.json"  # of a sweep's directory: its baseline, and its jobs in order
FILES = """
    config.yaml .hydra/overrides.yaml metrics.jsonl samples.txt histograms.jsonl result.json about.json log.txt loss.png
    code.diff wandb.json
""".split()
DIRECTORIES = ".hydra checkpoints logs slurm tensorboard".split()
NUMBER = (int, float, NoneType)
RESULT = {
    **dict.fromkeys(("step", "tokens"), int),
    **dict.fromkeys(("initial_loss", "train_loss", "val_loss", "best_val_loss", "best_step"), NUMBER),
    **dict.fromkeys(("parameters", "flops_per_token", "val_targets", "peak_memory_bytes", "seconds"), NUMBER),
    **dict.fromkeys(("tokenizer", "references"), dict),
    **dict.fromkeys(("status", "data_fingerprint", "data_order_hash"), str),
}


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
    if not path.exists():
        return None
    result = read_json(path, ("status",), "delete it: the run writes it again when it goes on")
    check_kinds(path, result, RESULT)
    return result


def read_about(run_dir: Path) -> dict[str, Any] | None:
    """What about.json says, or None where there is none. Raises InputError for what this version cannot read."""
    path = run_dir / ABOUT
    if not path.exists():
        return None
    about = read_json(path, ("starts",))
    check_kinds(path, about, {"starts": list})
    for start in about["starts"] or [None]:
        check_kinds(path, {"a start": start}, {"a start": dict})
        check_kinds(path, start, {"git": (dict, NoneType), "machine": dict, "versions": dict})
    return about


def read_sweep(directory: Path) -> dict[str, Any] | None:
    """What sweep.json says, or None where there is none. Raises InputError for what this version cannot read."""
    path = directory / INDEX
    if not path.exists():
        return None
    sweep = read_json(path, ("jobs",))
    check_kinds(path, sweep, {"jobs": dict, "baseline": (str, NoneType), "left_out": dict})
    check_kinds(path, sweep["jobs"], dict.fromkeys(sweep["jobs"], dict))
    for entry in sweep["jobs"].values():
        check_kinds(path, entry, {"overrides": list})
        for override in entry.get("overrides", []):
            check_kinds(path, {"an override": override}, {"an override": str})
    check_kinds(path, left_out := sweep.get("left_out", {}), dict.fromkeys(left_out, str))
    return sweep


def check_layout(run_dir: Path) -> None:
    """Files are files, and directories are directories, where they are there. Raises InputError."""
    for name in ("", *DIRECTORIES, *FILES):
        path, what = run_dir / name, "file" if name in FILES else "directory"
        if path.exists() and not (path.is_file() if name in FILES else path.is_dir()):
            raise InputError(f"{path} is no {what}", f"move it away: runs keep a {what} of this name there")


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
    if not checkpoint.exists():
        return InputError(f"{checkpoint} is gone: its run has replaced it by a newer one", "give the command again")
    others = [path for path in checkpoints(checkpoint.parents[1]) if path.name != checkpoint.name]
    others.sort(key=lambda path: (path.name < checkpoint.name, path.name), reverse=True)
    whole = next((path for path in others if _find_damage(path) is None), None)
    if whole is None:
        cure = "no other checkpoint of this run is whole: restore this one from a copy"
    else:
        cure = f"{whole} is whole: evaluate that one; to go on from there, delete {checkpoint.name} and resume"
    return InputError(f"{checkpoint / name} is damaged: {reason}", cure)


def check_links(run_dir: Path) -> None:
    """``last`` and ``best`` are links, and no copies of what they name. Raises InputError."""
    for path in (run_dir / "checkpoints" / name for name in ("last", "best")):
        if path.is_dir() and not path.is_symlink():
            raise InputError(
                f"{path} is a directory, and should be a link to a checkpoint beside it",
                "delete it, if that checkpoint is there: the link is made again",
            )


def check_logs(run_dir: Path, checkpoint: Path) -> None:
    """What belongs to a checkpoint of each log is there, or in the checkpoint itself. Raises InputError."""
    for name, length in read_state(checkpoint)["logs"].items():
        path = run_dir / name
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
    check_layout(run_dir)
    saved = read(run_dir / "config.yaml")
    if changed := changed_keys(saved, config):
        listed = ", ".join(f"{key} {was} -> {now}" for key, (was, now) in changed.items())
        raise InputError(
            f"resume={run_dir}: the config differs from the saved one: {listed}",
            "allowed to change: cluster.*, batch.micro_batch_size, data.num_workers, trainer.max_*, trainer.log_every, "
            "checkpoint.*, tracker.*; anything else is a new run",
        )
    check_job(saved, config, run_dir)
    read_about(run_dir)
    result = read_result(run_dir)
    is_done = result is not None and result["status"] == "done"
    if (checkpoint := latest_checkpoint(run_dir)) is None:
        if is_done:
            raise InputError(f"resume={run_dir}: this run is finished, and its checkpoints are gone", "restore them")
        return  # ended before its first checkpoint: it starts again
    check_links(run_dir)
    check_whole(checkpoint)
    check_logs(run_dir, checkpoint)
    step = read_state(checkpoint)["progress"]["step"]
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


def check_job(saved: Config, config: Config, run_dir: Path) -> None:
    """A job keeps the length that its sweep gives it, which would not take it back. Raises InputError."""
    old, now = flatten(saved), flatten(config)
    changed = [f"{key} {old[key]} -> {now[key]}" for key in LENGTH if old[key] != now[key]]
    if not changed:
        return
    sweep_dir = run_dir.absolute().parent
    index = read_sweep(sweep_dir)
    if index is None or run_dir.name not in index["jobs"]:
        return
    job, copy = shlex.quote(str(run_dir)), shlex.quote(f"{sweep_dir}-{run_dir.name}")
    fresh = f" && rm {copy}/wandb.json" if (run_dir / "wandb.json").exists() else ""  # a run of its own there too
    raise InputError(
        f"resume={run_dir}: a job of the sweep in {sweep_dir} keeps its length: {', '.join(changed)}",
        f"go on in a copy: cp -r {job} {copy}{fresh} && python train.py resume={copy} …\n"
        "  or give the whole sweep another length, in a new directory: hydra.sweep.dir=DIR",
    )


def told_length(config: Config, run_dir: Path) -> str | None:
    """What another length does to a run that goes on, in a line; None where it keeps its length, or starts again."""
    saved, checkpoint = read(run_dir / "config.yaml"), latest_checkpoint(run_dir)
    if saved.total_tokens == config.total_tokens or checkpoint is None:
        return None
    tokens = read_state(checkpoint)["progress"]["tokens"]
    was, now = (c.optimizer.lr * c.schedule.multiplier(tokens, c.total_tokens) for c in (saved, config))
    rate = f"is still {now:.3g}" if was == now else f"becomes {now:.3g}, and was {was:.3g}"
    meant = config.meant_by_null
    moved = {key: value for key, value in saved.meant_by_null.items() if meant.get(key, value) != value}
    kept = "; to keep the curve: " + " ".join(map(layouts.as_override, moved, moved.values())) if moved else ""
    return (
        f"length      {saved.total_tokens:,} -> {config.total_tokens:,} tokens; "
        f"the learning rate at {tokens:,} {rate}{kept}"
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
