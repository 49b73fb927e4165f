"""The state of optimizers in flat dictionaries: its tensors, and all else as JSON holds it."""

from typing import Any

from torch import Tensor

from gpt.errors import InputError

TENSOR = "tensor"  # key of a reference to a tensor, in JSON
TRANSPOSED = "transposed"  # key that says that the tensor is stored transposed


def pack(values: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a state by name, and its other values; a list has references to the tensors in it.

    Raises InputError for a value that neither holds.
    """
    tensors: dict[str, Tensor] = {}
    others = {}
    for name, value in values.items():
        packed = _packed(name, value, tensors)
        if packed != {TENSOR: name}:  # a tensor by itself needs no reference
            others[name] = packed
    return tensors, others


def _packed(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON holds it, and put the tensors in it into ``tensors``."""
    if isinstance(value, Tensor):
        # Another order in memory would be another rounding of later products, so that it is kept.
        is_transposed = value.dim() == 2 and not value.is_contiguous() and value.t().is_contiguous()
        tensors[name] = value.t() if is_transposed else value.contiguous()
        return {TENSOR: name, TRANSPOSED: True} if is_transposed else {TENSOR: name}
    if isinstance(value, list | tuple):
        return [_packed(f"{name}.{i}", element, tensors) for i, element in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"the optimizer keeps {name} as a {type(value).__name__}, which a checkpoint cannot hold",
        "take one whose state has tensors, numbers, texts and lists of these",
    )


def unpack(tensors: dict[str, Tensor], others: dict[str, Any]) -> dict[str, Any]:
    """Return the values that :func:`pack` has packed."""
    left = dict(tensors)
    values = {name: _unpacked(value, left) for name, value in others.items()}
    return values | left


def _unpacked(value: Any, left: dict[str, Tensor]) -> Any:
    """Return a value of which JSON holds this, with its tensors, which it takes out of ``left``."""
    if isinstance(value, list):
        return [_unpacked(element, left) for element in value]
    if not isinstance(value, dict):
        return value
    tensor = left.pop(value[TENSOR])
    tensor = tensor.t() if TRANSPOSED in value else tensor
    return tensor.clone()  # to where in memory products round as they did
