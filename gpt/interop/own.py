"""Checkpoints of our own runs, and the averages of the weights in them."""

from pathlib import Path
from typing import TYPE_CHECKING

from gpt.checkpoint.files import AVERAGES, MODEL, STATE, check_whole, find_checkpoint, weights_file
from gpt.config.load import read
from gpt.interop.pretrained import Header, check_tensors
from gpt.interop.tensorfiles import read_files, read_shapes
from gpt.rundir import INDEX

if TYPE_CHECKING:
    from torch import Tensor

NAME = "gptlab"


def matches(path: Path) -> bool:
    """Return whether a path is that of a run, one of its checkpoints, an average of the weights in one, or a sweep.

    A sweep is refused by its jobs.
    """
    if path.is_file():
        return path.suffix == ".safetensors" and path.stem in AVERAGES and (path.parent / STATE).exists()
    names = ("config.yaml", "checkpoints", STATE, INDEX)
    return path.is_dir() and any((path / name).exists() for name in names)


def read_header(source: str, path: Path) -> Header:
    """Read the header, and check that the checkpoint is whole. Raises InputError, for a newer layout too."""
    average = path.stem if path.is_file() else None
    checkpoint = find_checkpoint(path.parent if average else path)
    vocabulary = check_whole(checkpoint)["tokenizer"]
    header = Header(
        source=source,
        format=NAME,
        model=read(checkpoint.parents[1] / "config.yaml").model,
        vocab_size=vocabulary["vocab_size"],
        tokenizer=vocabulary["name"],
        chars=vocabulary["chars"],
        checkpoint=checkpoint,
        average=average,
    )
    check_tensors(header, read_shapes(source, [_file(header)]))
    return header


def read_tensors(path: Path, header: Header) -> "dict[str, Tensor]":
    """Read the tensors of a checkpoint."""
    return read_files(header.source, [_file(header)])


def _file(header: Header) -> Path:
    """Return the file with the weights."""
    return header.checkpoint / (weights_file(header.average) if header.average else MODEL)
