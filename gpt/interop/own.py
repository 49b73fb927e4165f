"""Checkpoints of our own runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from gpt.checkpoint.files import MODEL, STATE, check_whole, find_checkpoint
from gpt.config.load import read
from gpt.interop.pretrained import Header, check_tensors
from gpt.interop.tensorfiles import read_files, read_shapes
from gpt.rundir import INDEX

if TYPE_CHECKING:
    from torch import Tensor

NAME = "gptlab"


def matches(path: Path) -> bool:
    """Return whether a directory is that of a run, one of its checkpoints, or a sweep, which is refused by its jobs."""
    names = ("config.yaml", "checkpoints", STATE, INDEX)
    return path.is_dir() and any((path / name).exists() for name in names)


def read_header(source: str, path: Path) -> Header:
    """Read the header, and check that the checkpoint is whole. Raises InputError, for a newer layout too."""
    checkpoint = find_checkpoint(path)
    vocabulary = check_whole(checkpoint)["tokenizer"]
    header = Header(
        source=source,
        format=NAME,
        model=read(checkpoint.parents[1] / "config.yaml").model,
        vocab_size=vocabulary["vocab_size"],
        tokenizer=vocabulary["name"],
        chars=vocabulary["chars"],
        checkpoint=checkpoint,
    )
    check_tensors(header, read_shapes(source, [checkpoint / MODEL]))
    return header


def read_tensors(path: Path, header: Header) -> "dict[str, Tensor]":
    """Read the tensors of a checkpoint."""
    return read_files(header.source, [header.checkpoint / MODEL])
