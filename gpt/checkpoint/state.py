"""The state of a run: saved as a checkpoint, and loaded from one."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gpt.checkpoint.files import (
    MODEL,
    OPTIMIZER,
    TRAINED,
    checkpoint_dir,
    file_hash,
    latest_checkpoint,
    list_checkpoints,
    read_state,
    weights_file,
    write_state,
)
from gpt.errors import InputError
from gpt.optimizer.averages import Averages
from gpt.optimizer.packing import pack, unpack
from gpt.rundir import METRICS, SAMPLES

COPIED_LOGS = (METRICS, SAMPLES)  # not the histograms, which would be as large as the checkpoint


@dataclass(slots=True)
class Progress:
    """All state of a run that is not tensors."""

    step: int = 0  # finished optimizer steps
    tokens: int = 0  # trained on
    samples: int = 0  # consumed by finished steps
    order_hash: str = ""
    best_loss: float | None = None  # lowest validation loss, and its step
    best_step: int | None = None
    pending: dict[str, Any] | None = None  # the metrics of the last step, where it was saved before its evaluation


@dataclass(slots=True)
class TrainState:
    """All mutable state of a run."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    progress: Progress
    averages: Averages = field(default_factory=Averages)


# --- saving


def save(run_dir: Path, state: TrainState, *, about: dict[str, Any], logs: dict[str, int], keep: int) -> None:
    """Write a checkpoint, move the links to it, and delete all but the ``keep`` newest and the best.

    ``about`` goes into state.json beside the progress: the fingerprint of the data and its tokenizer; ``logs`` is how
    many bytes of each log belong to it. Raises OSError where it cannot be written; what was there stays as it was.
    """
    final = checkpoint_dir(run_dir, state.progress.step)
    part = final.with_name("." + final.name)
    shutil.rmtree(part, ignore_errors=True)

    # Write all files under a hidden name, and wait until they are on the disk.
    try:
        part.parent.mkdir(exist_ok=True)  # and not its parents: a directory that was moved is not made again
        part.mkdir()
        _write_files(part, run_dir, state, about, logs)
        for path in part.iterdir():
            _fsync(path)
        _fsync(part)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)  # a full disk gets its space back
        if isinstance(error, OSError):
            raise
        raise OSError(str(error)) from error

    # Only a whole checkpoint gets its name.
    os.rename(part, final)
    _fsync(final.parent)
    prune(run_dir, state.progress.best_step, keep)


def _write_files(
    part: Path,
    run_dir: Path,
    state: TrainState,
    about: dict[str, Any],
    logs: dict[str, int],
) -> None:
    """Write the files of a checkpoint, state.json last, which holds the hashes of the others."""
    # Tensors.
    tensors, others = _optimizer_state(state)
    save_file(tensors, part / OPTIMIZER)
    # Whoever reads a checkpoint gets the weights that were evaluated; a run goes on from those that it trains.
    averages = state.averages
    with averages.evaluated():
        save_file(_model_tensors(state.model), part / MODEL)
    if averages.optimizers:
        save_file(_model_tensors(state.model), part / TRAINED)
    for average in averages.begun:
        save_file(average.tensors, part / weights_file(average.name))

    # Logs, up to this step.
    for name in COPIED_LOGS:
        with open(run_dir / name, "rb") as log:
            content = log.read(logs[name])
        (part / name).write_bytes(content)

    # All files get the mode that follows the umask; safetensors writes files for their owner alone.
    mode = (part / METRICS).stat().st_mode
    hashes = {}
    for path in sorted(part.iterdir()):
        path.chmod(mode)
        hashes[path.name] = file_hash(path)

    groups = [_scalars(group) for group in _param_groups(state)]
    content = {
        **about,
        "logs": logs,
        "progress": asdict(state.progress),
        "scaler": state.scaler.state_dict(),
        "optimizer": others,
        "groups": groups,
    }
    if averages.kept:
        content["averages"] = {average.name: average.count for average in averages.kept}
    write_state(part, content, hashes)


def prune(run_dir: Path, best_step: int | None, keep: int) -> None:
    """Link ``last`` and ``best`` to their checkpoints, and delete all but the ``keep`` newest and the best.

    Also completes what an earlier process began before it was killed. Raises OSError.
    """
    directory = run_dir / "checkpoints"
    newest = latest_checkpoint(run_dir)
    if newest is None:
        return

    # Links come first, so that no checkpoint is deleted while a link still needs it.
    _link(newest, "last")
    link = directory / "best"
    best = None if best_step is None else checkpoint_dir(run_dir, best_step)
    if best is not None and best.is_dir():
        _link(best, "best")
    elif not link.exists():
        link.unlink(missing_ok=True)  # the checkpoint that it names is gone
    _fsync(directory)

    # A directory is renamed before it is deleted: half of a checkpoint has no name of one.
    linked = link.resolve()
    for path in list_checkpoints(run_dir)[:-keep]:
        if path.resolve() != linked:
            os.rename(path, path.with_name("." + path.name))
    for path in directory.glob(".step_*"):
        shutil.rmtree(path)


def _link(target: Path, name: str) -> None:
    """Make ``name`` beside ``target`` a link to it, atomically."""
    link = target.with_name(name)
    if link.is_symlink() and os.readlink(link) == target.name:
        return
    part = target.with_name(f".{name}")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    os.replace(part, link)


def _fsync(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- loading


def load(checkpoint: Path, state: TrainState) -> dict[str, int]:
    """Load a checkpoint into a freshly built state; returns how many bytes of each log belong to it.

    Raises InputError when the checkpoint is of another model, or cannot be read.
    """
    load_model(checkpoint, state.model, TRAINED if state.averages.optimizers else MODEL)
    saved = read_state(checkpoint)
    for average in state.averages.kept:
        count = saved["averages"][average.name]
        average.load(_load_tensors(checkpoint / weights_file(average.name)) if count else {}, count)
    _load_optimizers(state, _load_tensors(checkpoint / OPTIMIZER), saved["optimizer"])
    for group, saved_group in zip(_param_groups(state), saved["groups"], strict=True):
        group.update(saved_group)
    state.scaler.load_state_dict(saved["scaler"])
    state.progress = Progress(**saved["progress"])
    return saved["logs"]


def load_latest(run_dir: Path, state: TrainState) -> dict[str, int]:
    """Load the newest checkpoint of a run, if there is one; returns the bytes of each log that belong to it."""
    checkpoint = latest_checkpoint(run_dir)
    return load(checkpoint, state) if checkpoint else {}


def load_model(checkpoint: Path, model: nn.Module, name: str = MODEL) -> None:
    """Load the weights of a checkpoint from its file ``name``. Raises InputError when it is of another model."""
    saved = _load_tensors(checkpoint / name)
    own = _model_tensors(model)

    # The first difference is named, in the order of the saved tensors.
    differences = []
    for name in {**saved, **own}:
        there = _shape(saved.get(name))
        here = _shape(own.get(name))
        if there != here:
            differences.append(f"{name} is {there} there and {here} here")
    if differences:
        raise InputError(
            f"{checkpoint} holds another model: {differences[0]}",
            f"{len(differences)} tensors differ; give the model keys of that run",
        )
    model.load_state_dict(saved, strict=False)  # a tied head is stored once


def restore_logs(checkpoint: Path, run_dir: Path, logs: dict[str, int]) -> list[str]:
    """Rebuild the logs that differ from the checkpoint's copies, and return their names. Raises OSError.

    A log may be longer than its copy: ``logs`` is how many of its bytes belong to the checkpoint.
    """
    rebuilt = []
    for name in COPIED_LOGS:
        log = run_dir / name
        copied = checkpoint / name
        if not copied.exists():  # layout 0 had no copies
            continue
        copy = copied.read_bytes()
        if log.exists():
            with open(log, "rb") as file:
                if file.read(logs[name]) == copy:
                    continue
        log.write_bytes(copy)  # in place, because the training's lock is on it
        rebuilt.append(name)
    return rebuilt


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a safetensors file. Raises InputError where it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        if not path.parent.exists():
            read_state(path.parent)  # raises InputError: its run has replaced it
        raise InputError(
            f"{path} cannot be read: {error}",
            "restore it from a copy, or take another checkpoint",
        ) from error


def _load_optimizers(state: TrainState, tensors: dict[str, torch.Tensor], others: dict[str, Any]) -> None:
    """Load what :func:`_optimizer_state` returned."""
    # From one flat dictionary to one dictionary per parameter.
    values_by_name: dict[str, dict[str, Any]] = {}
    for full_name, value in unpack(tensors, others).items():
        name, _, key = full_name.rpartition("/")
        values_by_name.setdefault(name, {})[key] = value

    # torch counts the parameters of an optimizer from 0, group after group.
    names = {p: name for name, p in state.model.named_parameters()}
    for optimizer in state.optimizers:
        by_index = {}
        index = 0
        for group in optimizer.param_groups:
            for p in group["params"]:
                if names[p] in values_by_name:
                    by_index[index] = values_by_name[names[p]]
                index += 1
        state_dict = optimizer.state_dict()
        state_dict["state"] = by_index
        optimizer.load_state_dict(state_dict)


# --- parts of the state


def _model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters by name, a shared one once."""
    return {name: p.detach() for name, p in model.named_parameters()}


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...] | str:
    return "missing" if tensor is None else tuple(tensor.shape)


def _optimizer_state(state: TrainState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the optimizers' state by ``parameter/key``: the tensors, and all else."""
    names = {p: name for name, p in state.model.named_parameters()}
    values = {}
    for optimizer in state.optimizers:
        for p, values_of_p in optimizer.state.items():
            for key, value in values_of_p.items():
                values[f"{names[p]}/{key}"] = value
    return pack(values)


def _param_groups(state: TrainState) -> list[dict[str, Any]]:
    """List the parameter groups of all optimizers."""
    groups = []
    for optimizer in state.optimizers:
        groups += optimizer.param_groups
    return groups


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that JSON holds as they are."""
    scalars = {}
    for key, value in values.items():
        if isinstance(value, (bool, int, float, str)):
            scalars[key] = value
    return scalars
