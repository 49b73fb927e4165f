"""Writing token files: raw first, then HDF5 in one go. :mod:`gpt.tokens.tokenfile` reads them."""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from gpt.errors import InputError
from gpt.tokens.shard import BLOCK, DAMAGED, read_shards
from gpt.tokens.tokenfile import LAYOUT, TokenFile, open_tokens

OFFSET = np.dtype("<i8")
MASK = np.dtype("u1")


class LostProgress(InputError):
    """The remains of an interrupted preparation are damaged, so that it cannot go on."""


class TokenWriter:
    """Appends tokens to raw files beside ``path`` and, when it is finished, writes ``path`` in one go.

    ``state`` is what :meth:`sync` of an interrupted writer returned: what that one wrote afterwards is cut off.
    In a ``with``, it finishes, or leaves nothing. Raises InputError for an id that the vocabulary does not hold, and
    LostProgress where the raw files do not hold what was synced.
    """

    def __init__(
        self,
        path: Path,
        *,
        tokenizer: str,
        vocab_size: int,
        chars: str | None,
        source: str,
        split: str,
        revision: str | None = None,
        has_mask: bool = False,
        state: dict[str, Any] | None = None,
    ):
        self.path = Path(path)
        self.chars = chars
        self.vocab_size = vocab_size
        self.attributes = {
            "layout": LAYOUT,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "source": source,
            "split": split,
        }
        if revision:
            self.attributes["revision"] = revision

        # One raw file for each dataset, each with a hash that goes on as it grows.
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.dtypes = {"tokens": self.dtype, "doc_offsets": OFFSET}
        if has_mask:
            self.dtypes["loss_mask"] = MASK
        state = state or {"tokens": 0, "documents": 0, "hashes": {}}
        self.n_tokens = state["tokens"]
        self.n_documents = state["documents"]
        self.digests: dict[str, Any] = {}
        self.spools: dict[str, BinaryIO] = {}
        for name, dtype in self.dtypes.items():
            self.digests[name] = hashlib.sha256()
            n_bytes = self._length(name) * dtype.itemsize
            self.spools[name] = self._open_spool(name, n_bytes, state["hashes"].get(name))

    def _length(self, name: str) -> int:
        return self.n_documents if name == "doc_offsets" else self.n_tokens

    def _spool_path(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{name}")

    def _open_spool(self, name: str, n_bytes: int, sha256: str | None) -> BinaryIO:
        """Open a raw file to append to after the bytes that have this hash. Raises LostProgress."""
        # An interrupted writer's bytes are hashed again, and what it wrote after the last sync is cut off.
        path = self._spool_path(name)
        digest = self.digests[name]
        try:
            file = open(path, "a+b")
        except IsADirectoryError as error:
            raise LostProgress(f"{path} is a directory", DAMAGED) from error
        file.seek(0)
        left = n_bytes
        while left:
            raw = file.read(min(left, BLOCK))
            if not raw:
                break
            digest.update(raw)
            left -= len(raw)
        if n_bytes and digest.hexdigest() != sha256:
            file.close()
            raise LostProgress(f"{path} is not what was written", DAMAGED)
        file.truncate(n_bytes)
        return file

    def _append(self, name: str, values: np.ndarray) -> None:
        """Append values to a raw file, and to its hash."""
        dtype = self.dtypes[name]
        raw = values.astype(dtype, copy=False).tobytes()
        self.spools[name].write(raw)
        self.digests[name].update(raw)

    def add_document(self, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append the ids of one document."""
        start = np.zeros(1, np.int64)
        self.add(ids, start, mask)

    def add(self, ids: np.ndarray, starts: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append ids, among which documents start at ``starts``."""
        # Ids are checked before anything is written.
        lowest = int(ids.min(initial=0))
        highest = int(ids.max(initial=0))
        if lowest < 0 or highest >= self.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InputError(
                f"token id {wrong} in {self.attributes['source']} is not in the vocabulary of {self.vocab_size}",
                "prepare the data with the tokenizer that made its ids",
            )

        # Every raw file grows; documents are counted from the beginning of this file.
        self._append("tokens", ids)
        self._append("doc_offsets", starts + self.n_tokens)
        if "loss_mask" in self.dtypes:
            self._append("loss_mask", mask)
        self.n_tokens += len(ids)
        self.n_documents += len(starts)

    def sync(self) -> dict[str, Any]:
        """Bring all to the disk; returns the numbers of tokens and documents, and the hash of each raw file."""
        for spool in self.spools.values():
            spool.flush()
            os.fsync(spool.fileno())
        return {
            "tokens": self.n_tokens,
            "documents": self.n_documents,
            "hashes": self._hashes(),
        }

    def _hashes(self) -> dict[str, str]:
        """Return the hash of each raw file."""
        return {name: digest.hexdigest() for name, digest in self.digests.items()}

    def finish(self) -> dict[str, Any]:
        """Write the file; returns its counts and hashes. The raw files are closed, and stay until they are dropped."""
        # Under another name first: a file is there whole or not at all.
        part = self._spool_path("part")
        hashes = self._hashes()
        with h5py.File(part, "w") as file:
            max_id = 0
            for name in self.spools:
                highest = self._copy_spool(name, file)
                if name == "tokens":
                    max_id = highest
            if self.chars is not None:
                _write_alphabet(file, self.chars)
            file.attrs.update(
                self.attributes
                | {
                    "sha256": hashes["tokens"],
                    "max_id": max_id,
                }
            )
            if "loss_mask" in hashes:
                file.attrs["mask_sha256"] = hashes["loss_mask"]
        _replace_synced(part, self.path)
        return {
            "tokens": self.n_tokens,
            "documents": self.n_documents,
            "sha256": hashes["tokens"],
            "doc_offsets_sha256": hashes["doc_offsets"],
        }

    def _copy_spool(self, name: str, file: h5py.File) -> int:
        """Copy a raw file into a dataset, and close it; returns the largest value."""
        # Block by block, so that memory stays small.
        dtype = self.dtypes[name]
        dataset = file.create_dataset(name, (self._length(name),), dtype, track_times=False)
        spool = self.spools[name]
        spool.flush()
        spool.seek(0)
        begin = 0
        highest = 0
        while raw := spool.read(BLOCK * dtype.itemsize):
            values = np.frombuffer(raw, dtype)
            end = begin + len(values)
            dataset[begin:end] = values
            highest = max(highest, int(values.max()))
            begin = end
        spool.close()  # there may be thousands of shards
        return highest

    def drop(self) -> None:
        """Delete the raw files."""
        for name, spool in self.spools.items():
            spool.close()
            self._spool_path(name).unlink(missing_ok=True)
        self._spool_path("part").unlink(missing_ok=True)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, error_type, error, trace) -> None:
        try:
            if error_type is None:
                self.finish()
        finally:
            self.drop()


def write_index(path: Path, shards: list[Path]) -> str:
    """Make shards, in one directory with ``path``, appear as one token file; returns the hash of all tokens."""
    # All tokens are read once more, as one sequence.
    files = [open_tokens(shard) for shard in shards]
    n_tokens = sum(file.n_tokens for file in files)
    contents = read_shards(tuple(file.shards[0] for file in files))

    # Its attributes are those of its shards, but for what the tokens of all of them are.
    with h5py.File(shards[-1]) as file:
        attributes = dict(file.attrs)
    attributes.pop("mask_sha256", None)
    attributes["sha256"] = contents.sha256
    attributes["max_id"] = contents.max_id

    part = path.with_name(f".{path.name}.part")
    chars = files[0].chars
    with h5py.File(part, "w") as index:
        _write_virtual_tokens(index, shards, files, n_tokens)
        if chars is not None:
            _write_alphabet(index, chars)
        index.attrs.update(attributes)
    _replace_synced(part, path)
    return contents.sha256


def _write_virtual_tokens(
    index: h5py.File,
    shards: list[Path],
    files: list[TokenFile],
    n_tokens: int,
) -> None:
    """Write a dataset that maps to those of the shards, by hand: h5py's create_virtual_dataset stores the time."""
    # Each shard's tokens are a range of the whole.
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_obj_track_times(False)
    space = h5py.h5s.create_simple((n_tokens,))
    begin = 0
    for shard, file in zip(shards, files, strict=True):
        shape = (file.n_tokens,)
        space.select_hyperslab((begin,), shape)
        shard_space = h5py.h5s.create_simple(shape)
        plan.set_virtual(space, shard.name.encode(), b"tokens", shard_space)
        begin += file.n_tokens
    space.select_all()
    dtype = h5py.h5t.py_create(np.dtype(files[0].dtype))
    h5py.h5d.create(index.id, b"tokens", dtype, space, plan)


def _write_alphabet(file: h5py.File, chars: str) -> None:
    raw = np.frombuffer(chars.encode(), np.uint8)
    file.create_dataset("chars", data=raw, track_times=False)


def _replace_synced(part: Path, path: Path) -> None:
    """Rename a written file once it is on the disk."""
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
