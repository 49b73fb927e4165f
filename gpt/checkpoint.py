"""Checkpoints: written whole or not at all, and read without unpickling anything.

A directory ``checkpoints/step_00000500/`` holds model.safetensors, optimizer.safetensors (keyed by parameter
name) and state.json. ``last`` and ``best`` are links to such directories. No times, hosts or paths inside.
"""

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
from gpt.rundir import read_state, step_directory


@dataclass(slots=True)
class Progress:
    """Where a run stands: all of its state that is not tensors."""

    step: int = 0  # finished optimizer steps
    tokens: int = 0  # trained on
    samples: int = 0  # consumed by finished steps
    order_hash: str = ""
    best_loss: float | None = None  # lowest validation loss, and its step
    best_step: int | None = None


@dataclass(slots=True)
class TrainState:
    """All mutable state of a run."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    progress: Progress


def save(run_dir: Path, state: TrainState, *, about: dict[str, Any], is_best: bool, keep: int) -> Path:
    """Write a checkpoint, move the links to it, and delete all but the ``keep`` newest and the best.

    ``about`` goes into state.json beside the progress: the fingerprint of the data, its tokenizer, and how many bytes
    of each log file belong to it. Raises OSError where it cannot be written; what was there stays as it was.
    """
    final = step_directory(run_dir, state.progress.step)
    part = final.with_name("." + final.name)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        tensors, scalars = _optimizer_state(state)
        save_file(_model_tensors(state.model), part / "model.safetensors")
        save_file(tensors, part / "optimizer.safetensors")
        content = about | {
            "progress": asdict(state.progress),
            "scaler": state.scaler.state_dict(),
            "optimizer": scalars,
            "groups": [_scalars(group) for optimizer in state.optimizers for group in optimizer.param_groups],
        }
        (part / "state.json").write_text(json.dumps(content, indent=1) + "\n")
        for path in (*part.iterdir(), part):
            _fsync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)  # gives its room back
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    os.rename(part, final)
    _link(final, "last")
    if is_best:
        _link(final, "best")
    _fsync(final.parent)
    _prune(final.parent, keep)
    return final


def load(path: Path, state: TrainState) -> dict[str, int]:
    """Bring a freshly built state to where the checkpoint stands; returns the bytes of each log that belong to it.

    Raises InputError when the checkpoint is of another model.
    """
    load_model(path, state.model)
    about = read_state(path)
    _load_optimizers(state, load_file(path / "optimizer.safetensors"), about["optimizer"])
    groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
    for group, saved in zip(groups, about["groups"], strict=True):
        group.update(saved)
    state.scaler.load_state_dict(about["scaler"])
    state.progress = Progress(**about["progress"])
    return about["logs"]


def load_model(path: Path, model: nn.Module) -> None:
    """The weights of a checkpoint. Raises InputError when it is of another model."""
    tensors, own = load_file(path / "model.safetensors"), _model_tensors(model)
    differing = [name for name in {**tensors, **own} if _shape(tensors.get(name)) != _shape(own.get(name))]
    if differing:
        name = differing[0]
        raise InputError(
            f"{path} holds another model: {name} is {_shape(tensors.get(name))} there and {_shape(own.get(name))} here",
            f"{len(differing)} tensors differ; give the model keys of that run",
        )
    model.load_state_dict(tensors, strict=False)  # a tied head is stored once


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
    part = target.with_name(f".{name}")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    os.replace(part, target.with_name(name))


def _prune(directory: Path, keep: int) -> None:
    best = directory / "best"
    kept = {best.resolve()} if best.exists() else set()
    for path in sorted(directory.glob("step_*"))[:-keep]:
        if path.resolve() not in kept:
            shutil.rmtree(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
