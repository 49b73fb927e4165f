"""Optimizers of others, by the name of their class."""

import importlib
import inspect
import sys
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gpt.config.optimizer import GROUPS, CustomConfig
from gpt.errors import InputError
from gpt.optimizer.groups import parameter_groups

LIBRARY = "pytorch_optimizer"  # of the options that come with the project


def build_custom(config: CustomConfig, model: nn.Module) -> Optimizer:
    """Return an object of a class, built with the options that its signature takes. Raises InputError for others."""
    optimizer_class = _import_optimizer(config)
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, **config.options}
    if config.betas is not None:
        options["betas"] = tuple(config.betas)

    # A class without weight decay may be used with a weight decay of 0.
    allowed = list(inspect.signature(optimizer_class).parameters)[1:]  # the first are the groups
    if config.weight_decay == 0 and "weight_decay" not in allowed:
        del options["weight_decay"]

    # All that is asked for, by the optimizer's keys or by those of a group, must be in the signature.
    asked = list(options)
    for name in GROUPS:
        asked += [key for key in config.group(name).given if key not in asked]
    unknown = [key for key in asked if key not in allowed]
    if unknown:
        raise InputError(f"{config._target_} takes no {', '.join(unknown)}", f"it takes: {', '.join(allowed)}")

    groups = parameter_groups(config, model, model.parameters(), options.get("weight_decay", 0.0))
    return optimizer_class(groups, **options)


def _import_optimizer(config: CustomConfig) -> type[Optimizer]:
    """Return the class called ``package.Class``. Raises InputError where there is none, or it is no optimizer."""
    target = config._target_
    module, _, name = target.rpartition(".")
    if "" not in sys.path:  # where the command runs; last, so that it hides no package
        sys.path.append("")
    try:
        imported = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != LIBRARY:
            raise _not_importable(target, error) from error
        raise InputError(
            f"optimizer={config.name} is a class of the package {LIBRARY}, which is not installed",
            "pip install -r requirements.txt",
        ) from error
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise _not_importable(target, error) from error
    if not (isinstance(imported, type) and issubclass(imported, Optimizer)):
        raise InputError(f"optimizer._target_={target} is no torch.optim.Optimizer", "give a class that is one")
    return imported


def _not_importable(target: str, error: Exception) -> InputError:
    """Return the refusal of a class that cannot be imported."""
    return InputError(
        f"optimizer._target_={target} cannot be imported: {error}",
        "give package.Class, importable from where the command runs",
    )
