"""Groups of parameters: which each belongs to, and what an optimizer does with it."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from gpt.config.optimizer import GROUPS, OptimizerConfig
from gpt.errors import InputError


def group_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Return the group of every parameter, in the order of the model. A head that is tied belongs to the embedding."""
    # Tables are looked up, and known by their module: a tied head is the same parameter.
    tables = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            tables |= set(module.parameters(recurse=False))

    # Vectors and single numbers are scalars, wherever they are.
    names = {}
    for name, p in model.named_parameters():
        if p.dim() < 2:
            names[p] = "scalars"
        elif p in tables:
            names[p] = "embedding"
        else:
            names[p] = "head" if name.startswith("lm_head.") else "matrices"
    return names


def check_groups(config: OptimizerConfig, model: nn.Module) -> None:
    """Check that the groups that have keys have parameters too. Raises InputError."""
    present = set(group_names(model).values())
    for name in GROUPS:
        given = config.group(name).given
        if given and name not in present:
            key, value = next(iter(given.items()))
            raise InputError(
                f"optimizer.groups.{name}.{key}={value}: the model has no parameters in this group",
                f"it has {', '.join(group for group in GROUPS if group in present)}",
            )


def parameter_groups(
    config: OptimizerConfig,
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return parameters in as few groups as their options allow, matrices and tables first, as torch takes them.

    Matrices and tables decay by ``weight_decay`` (None: that of the config), scalars do not (nanoGPT's choice; GPT-3's
    is not known), unless the keys of their group say otherwise.
    """
    names = group_names(model)
    usual = config.weight_decay if weight_decay is None else weight_decay

    # Parameters with equal options share a group, whatever it is called.
    groups: dict[str, dict[str, Any]] = {}
    for p in parameters:
        name = names[p]
        options: dict[str, Any] = {"weight_decay": 0.0 if name == "scalars" else usual}
        options |= config.group(name).given | {"lr": config.group_lr(name)}
        if "betas" in options:
            options["betas"] = tuple(options["betas"])
        groups.setdefault(repr((name == "scalars", options)), {"params": [], **options})["params"].append(p)
    return sorted(groups.values(), key=lambda group: names[group["params"][0]] == "scalars")
