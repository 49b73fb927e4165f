"""A shard: the HDF5 file that holds tokens, read at memmap speed, or whole to see that they are what was written."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from gpt.errors import InputError

BLOCK = 1 << 24  # tokens moved at once where a whole file is
AGAIN = "truncated or foreign: if gptlab wrote it, delete it and prepare it again"
DAMAGED = "restore it from a copy, or delete its directory and give the command again, which prepares all of it again"
Read = Callable[[int, int], np.ndarray]  # (start, stop) -> values


@dataclass(frozen=True, slots=True)
class Shard:
    """The tokens of one file, and the bytes where tokens and mask begin: None where they are chunked or compressed."""

    path: str
    n_tokens: int
    offset: int | None
    mask_offset: int | None

    def reader(self, name: str, dtype: str, read: str) -> Read:
        """Return a reader of ``tokens`` or ``loss_mask``: a memory map, ``pread``, or h5py for chunked files."""
        # Chunked or compressed: h5py finds the parts.
        offset = self.offset if name == "tokens" else self.mask_offset
        if offset is None:
            values = h5py.File(self.path)[name]
            return lambda start, stop: values[start:stop]

        # Contiguous: straight from the file, at the dataset's offset.
        if read == "mmap":
            # A plain view: slicing np.memmap's own class costs a microsecond more each time.
            mapped = np.memmap(self.path, dtype, "r", offset, (self.n_tokens,))
            values = mapped.view(np.ndarray)
            return lambda start, stop: values[start:stop]

        # Or by system calls, without a map of the file.
        file = open(self.path, "rb", buffering=0)
        itemsize = np.dtype(dtype).itemsize

        def pread(start: int, stop: int) -> np.ndarray:
            n_bytes = (stop - start) * itemsize
            position = offset + start * itemsize
            raw = os.pread(file.fileno(), n_bytes, position)
            return np.frombuffer(raw, dtype)

        return pread


class Contents(NamedTuple):
    """The hash of all tokens of a file, and their range."""

    sha256: str
    min_id: int
    max_id: int


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to read from it. Raises InputError for whatever is wrong with it."""
    try:
        with h5py.File(path) as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # h5py raises nearly anything where a header is damaged
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise InputError(f"{path} is no whole HDF5 file: {reason}", AGAIN) from error


def read_shards(
    shards: tuple[Shard, ...],
    recorded: dict[str, dict[str, Any]] | None = None,
) -> Contents:
    """Read all tokens of some shards, which must be what their attributes say. Raises InputError.

    ``recorded`` are the manifest's entries by file name, to which they are compared as well.
    """
    recorded = recorded or {}
    whole = hashlib.sha256() if len(shards) > 1 else None
    read = []
    for shard in shards:
        path = Path(shard.path)
        entry = recorded.get(path.name, {})
        contents, damage = read_shard(path, entry, whole)
        if damage:
            raise InputError(f"{path} is damaged: {damage}", DAMAGED)
        read.append(contents)

    # One shard is the whole.
    if whole is None:
        return read[0]
    return Contents(
        sha256=whole.hexdigest(),
        min_id=min(contents.min_id for contents in read),
        max_id=max(contents.max_id for contents in read),
    )


def read_shard(
    path: Path,
    recorded: dict[str, Any],
    whole: Any = None,
) -> tuple[Contents, str | None]:
    """Read all tokens of a file; returns what they are, and in words the damage, if there is any.

    ``recorded`` is the manifest's entry for it; ``whole`` is a hash that goes on over the tokens.
    """
    with open_hdf5(path) as file:
        # One pass over the tokens for the hashes and the range.
        digest = hashlib.sha256()
        lowest = 0
        highest = 0
        for block in _blocks(file["tokens"]):
            raw = block.tobytes()
            digest.update(raw)
            if whole is not None:
                whole.update(raw)
            lowest = min(lowest, int(block.min()))
            highest = max(highest, int(block.max()))
        contents = Contents(
            sha256=digest.hexdigest(),
            min_id=lowest,
            max_id=highest,
        )
        damage = _find_damage(file, contents.sha256, recorded)
        return contents, damage


def _find_damage(file: h5py.File, sha256: str, recorded: dict[str, Any]) -> str | None:
    """Compare what was read with the manifest, the attributes and each other; returns the last difference."""
    # The tokens.
    damage = None
    if recorded.get("sha256", sha256) != sha256:
        damage = "its tokens are not those that manifest.json says (sha256)"
    if file.attrs.get("sha256", sha256) != sha256:
        damage = "its tokens are not those that were written (sha256)"

    # The datasets beside them; the manifest alone has a hash of the documents.
    mask_sha256 = file.attrs.get("mask_sha256")
    if mask_sha256 is not None and mask_sha256 != _hash(file["loss_mask"]):
        damage = "its loss_mask is not what was written (sha256)"
    if "doc_offsets" in file:
        expected = recorded.get("doc_offsets_sha256")
        if expected and expected != _hash(file["doc_offsets"]):
            damage = "its doc_offsets are not those that manifest.json says (sha256)"
        n_tokens = file["tokens"].size
        offsets = file["doc_offsets"][()].astype(np.int64)
        is_outside = offsets.min(initial=0) < 0 or offsets.max(initial=0) > n_tokens
        is_descending = (np.diff(offsets) < 0).any()
        if is_outside or is_descending:
            damage = "its doc_offsets do not ascend from 0 to the number of its tokens"
    return damage


def _hash(values: h5py.Dataset) -> str:
    digest = hashlib.sha256()
    for block in _blocks(values):
        digest.update(block.tobytes())
    return digest.hexdigest()


def _blocks(values: h5py.Dataset) -> Iterator[np.ndarray]:
    for start in range(0, values.size, BLOCK):
        yield values[start : start + BLOCK]
