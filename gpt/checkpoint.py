"""Checkpoints: written whole or not at all, never changed, and read without unpickling anything.

A directory ``checkpoints/step_00000500/`` holds model.safetensors, optimizer.safetensors (keyed by parameter
name), the run's metrics.jsonl and samples.txt up to there, and state.json with the sha256 of each of them. ``last`` and
``best`` are links to such directories, and follow from what state.json says. No times, hosts or paths inside.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gpt.errors import InputError
from gpt.rundir import (
    METRICS,
    SAMPLES,
    STATE,
    STATE_LAYOUT,
    checkpoints,
    digest,
    latest_checkpoint,
    read_state,
    step_directory,
)

COPIED = (METRICS, SAMPLES)  # logs of which a checkpoint holds what belongs to it; histograms would be as large as it


@dataclass(slots=True)
class Progress:
    """Where a run stands: all of its state that is not tensors."""

    step: int = 0  # finished optimizer steps
    tokens: int = 0  # trained on
    samples: int = 0  # consumed by finished steps
    order_hash: str = ""
    best_loss: float | None = None  # lowest validation loss, and its step
    best_step: int | None = None
    pending: dict[str, Any] | None = None  # the metrics of the last step, whose evaluation is still to come


@dataclass(slots=True)
class TrainState:
    """All mutable state of a run."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    progress: Progress


def save(run_dir: Path, state: TrainState, *, about: dict[str, Any], logs: dict[str, int], keep: int) -> None:
    """Write a checkpoint, move the links to it, and delete all but the ``keep`` newest and the best.

    ``about`` goes into state.json beside the progress: the fingerprint of the data and its tokenizer; ``logs`` is how
    many bytes of each log belong to it. Raises OSError where it cannot be written; what was there stays as it was.
    """
    final = step_directory(run_dir, state.progress.step)
    part = final.with_name("." + final.name)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.parent.mkdir(exist_ok=True)  # and not its parents: a directory that was moved is not made again
        part.mkdir()
        _write(part, run_dir, state, about | {"logs": logs})
        for path in (*part.iterdir(), part):
            _fsync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)  # gives its room back
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    os.rename(part, final)
    _fsync(final.parent)
    settle(run_dir, state.progress.best_step, keep)


def _write(part: Path, run_dir: Path, state: TrainState, about: dict[str, Any]) -> None:
    """Write the files of a checkpoint, state.json last."""
    tensors, scalars = _optimizer_state(state)
    save_file(_model_tensors(state.model), part / "model.safetensors")
    save_file(tensors, part / "optimizer.safetensors")
    for name in COPIED:
        with open(run_dir / name, "rb") as log:
            (part / name).write_bytes(log.read(about["logs"][name]))
    mode = (part / METRICS).stat().st_mode  # as the umask says; safetensors writes for its owner alone
    hashes = {}
    for path in sorted(part.iterdir()):
        path.chmod(mode)
        with open(path, "rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    content = {"layout": STATE_LAYOUT} | about
    content |= {
        "progress": asdict(state.progress),
        "scaler": state.scaler.state_dict(),
        "optimizer": scalars,
        "groups": [_scalars(group) for optimizer in state.optimizers for group in optimizer.param_groups],
        "sha256": hashes,
    }
    hashes[STATE] = digest(content)
    (part / STATE).write_text(json.dumps(content, indent=1) + "\n")


def settle(run_dir: Path, best_step: int | None, keep: int) -> None:
    """Let ``last`` and ``best`` name the checkpoints that they should, and delete all that are not to be kept.

    Whatever an earlier process was killed at; raises OSError.
    """
    directory, newest = run_dir / "checkpoints", latest_checkpoint(run_dir)
    if newest is None:
        return
    _link(newest, "last")
    best = None if best_step is None else step_directory(run_dir, best_step)
    if best is not None and best.is_dir():
        _link(best, "best")
    elif not (directory / "best").exists():
        (directory / "best").unlink(missing_ok=True)  # the checkpoint that it names is gone
    _fsync(directory)
    linked = (directory / "best").resolve()
    for path in checkpoints(run_dir)[:-keep]:
        if path.resolve() != linked:
            os.rename(path, path.with_name("." + path.name))  # what is half deleted is no checkpoint
    for path in directory.glob(".step_*"):
        shutil.rmtree(path)


def load(path: Path, state: TrainState) -> dict[str, int]:
    """Bring a freshly built state to where the checkpoint stands; returns the bytes of each log that belong to it.

    Raises InputError when the checkpoint is of another model, or cannot be read.
    """
    load_model(path, state.model)
    about = read_state(path)
    _load_optimizers(state, _tensors(path / "optimizer.safetensors"), about["optimizer"])
    groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
    for group, saved in zip(groups, about["groups"], strict=True):
        group.update(saved)
    state.scaler.load_state_dict(about["scaler"])
    state.progress = Progress(**about["progress"])
    return about["logs"]


def restore_logs(path: Path, run_dir: Path, logs: dict[str, int]) -> list[str]:
    """Rebuild the logs of a run that are not as the checkpoint has them; returns their names. Raises OSError."""
    rebuilt = []
    for name in COPIED:
        if not (path / name).exists():  # written before checkpoints had copies
            continue
        copy, log = (path / name).read_bytes(), run_dir / name
        if log.exists():
            with open(log, "rb") as file:
                if file.read(logs[name]) == copy:
                    continue
        log.write_bytes(copy)  # in place, because the training's lock is on it
        rebuilt.append(name)
    return rebuilt


def load_model(path: Path, model: nn.Module) -> None:
    """The weights of a checkpoint. Raises InputError when it is of another model."""
    tensors, own = _tensors(path / "model.safetensors"), _model_tensors(model)
    differing = [name for name in {**tensors, **own} if _shape(tensors.get(name)) != _shape(own.get(name))]
    if differing:
        name = differing[0]
        raise InputError(
            f"{path} holds another model: {name} is {_shape(tensors.get(name))} there and {_shape(own.get(name))} here",
            f"{len(differing)} tensors differ; give the model keys of that run",
        )
    model.load_state_dict(tensors, strict=False)  # a tied head is stored once


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        if not path.parent.exists():
            read_state(path.parent)  # says that its run has replaced it
        raise InputError(
            f"{path} cannot be read: {error}", "restore it from a copy, or take another checkpoint"
        ) from error


def _model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}  # each once, however often it is used


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...] | str:
    return "missing" if tensor is None else tuple(tensor.shape)


def _optimizer_state(state: TrainState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What the optimizers hold for each parameter, as tensors and as numbers, keyed by ``parameter/key``."""
    names = {p: name for name, p in state.model.named_parameters()}
    held = {
        f"{names[p]}/{key}": value
        for optimizer in state.optimizers
        for p, values in optimizer.state.items()
        for key, value in values.items()
    }
    return {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}, _scalars(held)


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, (bool, int, float, str))}


def _load_optimizers(state: TrainState, tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
    names = {p: name for name, p in state.model.named_parameters()}
    held: dict[str, dict[str, Any]] = {}
    for full_name, value in {**tensors, **scalars}.items():
        name, _, key = full_name.rpartition("/")
        held.setdefault(name, {})[key] = value
    for optimizer in state.optimizers:
        ordered = [names[p] for group in optimizer.param_groups for p in group["params"]]
        positional = {i: held[name] for i, name in enumerate(ordered) if name in held}
        optimizer.load_state_dict({"state": positional, "param_groups": optimizer.state_dict()["param_groups"]})


def _link(target: Path, name: str) -> None:
    if (link := target.with_name(name)).is_symlink() and os.readlink(link) == target.name:
        return
    part = target.with_name(f".{name}")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    os.replace(part, link)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
