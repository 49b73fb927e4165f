"""Checkpoints: written whole or not at all, and read without unpickling anything.

A directory ``checkpoints/step_00000500/`` holds model.safetensors, optimizer.safetensors (keyed by parameter
name) and state.json. ``last`` and ``best`` are links to such directories. No times, hosts or paths inside.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
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
    optimizer: torch.optim.Optimizer
    progress: Progress


def save(run_dir: Path, state: TrainState, *, fingerprint: str, logs: dict[str, int], is_best: bool, keep: int) -> Path:
    """Write a checkpoint, move the links to it, and delete all but the ``keep`` newest and the best.

    ``logs`` says how many bytes of each log file belong to it, ``fingerprint`` on which data it was trained.
    """
    final = step_directory(run_dir, state.progress.step)
    part = final.with_name("." + final.name)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(_model_tensors(state.model), part / "model.safetensors")
    save_file(_optimizer_tensors(state), part / "optimizer.safetensors")
    about = {"fingerprint": fingerprint, "logs": logs, "progress": asdict(state.progress)}
    (part / "state.json").write_text(json.dumps(about, indent=1) + "\n")
    for path in (*part.iterdir(), part):
        _fsync(path)
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
    tensors = load_file(path / "model.safetensors")
    own = _model_tensors(state.model)
    differing = [name for name in {**tensors, **own} if _shape(tensors.get(name)) != _shape(own.get(name))]
    if differing:
        name = differing[0]
        raise InputError(
            f"{path} holds another model: {name} is {_shape(tensors.get(name))} there and {_shape(own.get(name))} here",
            f"{len(differing)} tensors differ; give the model keys of that run",
        )
    state.model.load_state_dict(tensors, strict=False)  # the tied head is stored once
    _load_optimizer(state, load_file(path / "optimizer.safetensors"))
    about = read_state(path)
    state.progress = Progress(**about["progress"])
    return about["logs"]


def _model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}  # each once, however often it is used


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _optimizer_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name, p in state.model.named_parameters()
        for key, value in state.optimizer.state[p].items()
    }


def _load_optimizer(state: TrainState, tensors: dict[str, torch.Tensor]) -> None:
    names = {p: name for name, p in state.model.named_parameters()}
    held: dict[str, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        held.setdefault(name, {})[key] = tensor
    ordered = [names[p] for group in state.optimizer.param_groups for p in group["params"]]
    positional = {i: held[name] for i, name in enumerate(ordered)}
    state.optimizer.load_state_dict({"state": positional, "param_groups": state.optimizer.state_dict()["param_groups"]})


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
