"""Safetensors files: the names and shapes in them, without torch, and the tensors themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from gpt.errors import InputError
from gpt.interop.pretrained import Shape

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("F32", "F16", "BF16")  # float16 is read as float32, which holds all its numbers


@contextmanager
def _open(source: str, path: Path, framework: str) -> Iterator[Any]:
    """Open a file. Raises InputError where it cannot be read."""
    try:
        with safe_open(path, framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{source}: {path.name} cannot be read: {error}", "copy or fetch it again") from error


def read_shapes(source: str, paths: list[Path]) -> dict[str, Shape]:
    """Return the shapes of all tensors in files by name. Raises InputError, also for tensors that are no floats."""
    shapes: dict[str, Shape] = {}
    for path in paths:
        with _open(source, path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                about = file.get_slice(name)
                shapes[name] = tuple(about.get_shape())
    return shapes


def read_files(source: str, paths: list[Path], names: "set[str] | None" = None) -> "dict[str, Tensor]":
    """Return the tensors in files by name, or those with some ``names``. Raises InputError."""
    tensors = {}
    for path in paths:
        with _open(source, path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                if names is not None and name not in names:
                    continue
                kind = file.get_slice(name).get_dtype()
                if kind not in KINDS:
                    raise InputError(f"{source}: {name} is of type {kind}", f"read are {', '.join(KINDS)}")
                tensor = file.get_tensor(name)
                tensors[name] = tensor.float() if kind == "F16" else tensor
    return tensors
