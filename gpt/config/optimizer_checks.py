"""Refusals of what the keys of an optimizer and of averages of weights mean together. Imports no torch."""

from typing import TYPE_CHECKING

from gpt.config.optimizer import GROUPS, MuonConfig
from gpt.errors import InputError

if TYPE_CHECKING:
    from gpt.config.schema import Config, ScheduleConfig


def check_optimizer(config: "Config") -> None:
    """Check that Adam has two betas, Muon matrices, and every group of parameters some of them. Raises InputError."""
    optimizer = config.optimizer
    _check_betas("optimizer.betas", getattr(optimizer, "betas", None))
    for name in GROUPS:
        _check_betas(f"optimizer.groups.{name}.betas", optimizer.group(name).betas)

    # What the optimizer and the model must have for each other.
    if optimizer.name == "muon" and config.model.n_layer == 0:
        raise InputError(
            f"optimizer=muon works on the matrices of the blocks, and model={config.model.name} has no blocks",
            "take optimizer=adamw, or model.n_layer of at least 1",
        )
    if isinstance(optimizer, MuonConfig):
        _check_muon(config, optimizer)

    # Groups that the model leaves empty, as far as its keys tell.
    if config.model.tie_head:
        _check_unused(config, "head", "model.tie_head=true: its table is that of the embedding", "embedding")
    if config.model.n_layer == 0:
        _check_unused(config, "matrices", "model.n_layer=0", "embedding")


def _check_betas(key: str, betas: list[float] | None) -> None:
    """Check that betas are two. Raises InputError."""
    if betas is not None and len(betas) != 2:
        raise InputError(
            f"{key}={betas} are not Adam's",
            "allowed: two numbers of 0 up to, not including, 1",
        )


def _check_muon(config: "Config", optimizer: MuonConfig) -> None:
    """Check that Muon's matrices have no betas, and that its momentum warms up to more. Raises InputError."""
    betas = optimizer.groups.matrices.betas
    if betas is not None:
        raise InputError(
            f"optimizer.groups.matrices.betas={betas}: with optimizer=muon matrices have a momentum",
            "give optimizer.momentum",
        )
    warmup = optimizer.momentum_warmup
    if warmup is not None and optimizer.momentum_start > optimizer.momentum:
        raise InputError(
            f"optimizer.momentum_start={optimizer.momentum_start} is above optimizer.momentum={optimizer.momentum}",
            f"allowed with optimizer.momentum_warmup: up to {optimizer.momentum}",
        )


def _check_unused(config: "Config", group: str, reason: str, other: str) -> None:
    """Check that a group without parameters has no keys. Raises InputError."""
    for key, value in config.optimizer.group(group).given.items():
        raise InputError(
            f"optimizer.groups.{group}.{key}={value} has nothing to work on with {reason}",
            f"give optimizer.groups.{other}.{key}, or leave it out",
        )


def check_averages(config: "Config") -> None:
    """Check that a schedule-free optimizer keeps its learning rate, and averages by itself. Raises InputError."""
    if not config.optimizer.is_schedule_free:
        return
    if falls(config.schedule):
        raise schedule_falls(f"optimizer={config.optimizer.name}", config.schedule)
    # An average of weights that already lie beside their average would be neither.
    for key in ("ema", "average_from"):
        value = getattr(config.trainer, key)
        if value is not None:
            raise averages_itself(f"optimizer={config.optimizer.name}", f"trainer.{key}={value}")


def falls(schedule: "ScheduleConfig") -> bool:
    """Return whether a schedule lets the learning rate fall after its warm-up."""
    decays = schedule.decay_fraction > 0 and schedule.min_lr_ratio < 1
    return decays or schedule.name == "inverse_sqrt"


def schedule_falls(optimizer: str, schedule: "ScheduleConfig") -> InputError:
    """Return the refusal of a schedule that falls, for an optimizer that averages its weights in place of that."""
    what = f"schedule={schedule.name}"
    cure = "take schedule=constant, whose warm-up stays"
    if schedule.name == "constant":
        what = f"schedule.decay_fraction={schedule.decay_fraction}"
        cure = "give schedule.decay_fraction=0"
    return InputError(f"{optimizer} averages weights in place of a learning rate that falls, and {what} falls", cure)


def averages_itself(optimizer: str, key: str) -> InputError:
    """Return the refusal of another average of the weights of an optimizer that averages them itself."""
    return InputError(f"{optimizer} averages its weights itself, and {key} asks for another average", "leave it out")
