"""Writing token files: raw first, then HDF5 in one go. :mod:`gpt.tokens.tokenfile` reads them."""

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gpt.errors import InputError
from gpt.tokens.tokenfile import BLOCK, DAMAGED, LAYOUT, open_tokens, read_contents

SPOOLED = {"tokens": None, "doc_offsets": np.dtype("<i8"), "loss_mask": np.dtype("u1")}


class LostProgress(InputError):
    """What an interrupted preparation has left is damaged, so that it cannot go on."""


class TokenWriter:
    """Appends tokens to raw files beside ``path`` and, when it is finished, writes ``path`` in one go.

    ``held`` is what :meth:`sync` of an interrupted writer returned: what that one wrote afterwards is cut off.
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
        held: dict[str, Any] | None = None,
    ):
        self.path, self.chars, self.vocab_size = Path(path), chars, vocab_size
        about = {"tokenizer": tokenizer, "vocab_size": vocab_size, "source": source, "split": split}
        self.attributes = {"layout": LAYOUT} | about | ({"revision": revision} if revision else {})
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        held = held or {"tokens": 0, "documents": 0, "hashes": {}}
        self.n_tokens, self.n_documents = held["tokens"], held["documents"]
        lengths = {"tokens": self.n_tokens * self.dtype.itemsize, "doc_offsets": self.n_documents * 8}
        if has_mask:
            lengths["loss_mask"] = self.n_tokens
        self.digests = {name: hashlib.sha256() for name in lengths}
        self.spools = {name: self._spool(name, length, held["hashes"].get(name)) for name, length in lengths.items()}

    def _spool_path(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{name}")

    def _spool(self, name: str, length: int, sha256: str | None):
        """A raw file of ``length`` bytes that have this hash, to append to."""
        path, digest, left = self._spool_path(name), self.digests[name], length
        try:
            file = open(path, "a+b")
        except IsADirectoryError as error:
            raise LostProgress(f"{path} is a directory", DAMAGED) from error
        file.seek(0)
        while left and (raw := file.read(min(left, BLOCK))):
            digest.update(raw)
            left -= len(raw)
        if length and digest.hexdigest() != sha256:
            file.close()
            raise LostProgress(f"{path} is not what was written", DAMAGED)
        file.truncate(length)
        return file

    def _append(self, name: str, values: np.ndarray) -> None:
        raw = values.tobytes()
        self.spools[name].write(raw)
        self.digests[name].update(raw)

    def add_document(self, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append the ids of one document."""
        self.add(ids, np.zeros(1, np.int64), mask)

    def add(self, ids: np.ndarray, starts: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append ids, among which documents start at ``starts``."""
        lowest, highest = int(ids.min(initial=0)), int(ids.max(initial=0))
        if lowest < 0 or highest >= self.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InputError(
                f"token id {wrong} in {self.attributes['source']} is not in the vocabulary of {self.vocab_size}",
                "prepare the data with the tokenizer that made its ids",
            )
        self._append("tokens", ids.astype(self.dtype, copy=False))
        self._append("doc_offsets", (starts + self.n_tokens).astype("<i8"))
        if "loss_mask" in self.spools:
            self._append("loss_mask", mask.astype("u1", copy=False))
        self.n_tokens += len(ids)
        self.n_documents += len(starts)

    def sync(self) -> dict[str, Any]:
        """Bring all to the disk; returns how many tokens and documents are there, and the hash of each raw file."""
        for spool in self.spools.values():
            spool.flush()
            os.fsync(spool.fileno())
        hashes = {name: digest.hexdigest() for name, digest in self.digests.items()}
        return {"tokens": self.n_tokens, "documents": self.n_documents, "hashes": hashes}

    def finish(self) -> dict[str, Any]:
        """Write the file; returns its counts and hashes. The raw files are closed, and stay until they are dropped."""
        part = self._spool_path("part")
        dtypes = SPOOLED | {"tokens": self.dtype}
        max_id = 0
        with h5py.File(part, "w") as file:
            for name, spool in self.spools.items():
                length = self.n_documents if name == "doc_offsets" else self.n_tokens
                dataset = file.create_dataset(name, (length,), dtypes[name], track_times=False)
                spool.flush()
                spool.seek(0)
                start = 0
                while raw := spool.read(BLOCK * dtypes[name].itemsize):
                    values = np.frombuffer(raw, dtypes[name])
                    dataset[start : start + len(values)] = values
                    start += len(values)
                    if name == "tokens":
                        max_id = max(max_id, int(values.max()))
                spool.close()  # there may be thousands of shards
            if self.chars is not None:
                file.create_dataset("chars", data=np.frombuffer(self.chars.encode(), np.uint8), track_times=False)
            sha256 = self.digests["tokens"].hexdigest()
            file.attrs.update(self.attributes | {"sha256": sha256, "max_id": max_id})
            if "loss_mask" in self.digests:
                file.attrs["mask_sha256"] = self.digests["loss_mask"].hexdigest()
        replace_synced(part, self.path)
        return {
            "tokens": self.n_tokens,
            "documents": self.n_documents,
            "sha256": sha256,
            "doc_offsets_sha256": self.digests["doc_offsets"].hexdigest(),
        }

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


def replace_synced(part: Path, path: Path) -> None:
    """Give a written file its name once it is on the disk."""
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def write_index(path: Path, shards: list[Path]) -> str:
    """Make shards, in one directory with ``path``, appear as one token file; returns the hash of all tokens."""
    files = [open_tokens(shard) for shard in shards]
    sizes, part = [file.n_tokens for file in files], path.with_name(f".{path.name}.part")
    contents = read_contents(tuple(shard for file in files for shard in file.shards))
    # By hand, because h5py's create_virtual_dataset would store the time.
    plan, whole = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple((sum(sizes),))
    plan.set_obj_track_times(False)
    with h5py.File(part, "w") as index:
        for shard, begin, size in zip(shards, itertools.accumulate([0, *sizes[:-1]]), sizes, strict=True):
            whole.select_hyperslab((begin,), (size,))
            plan.set_virtual(whole, shard.name.encode(), b"tokens", h5py.h5s.create_simple((size,)))
            with h5py.File(shard) as file:
                attributes = dict(file.attrs)
        whole.select_all()
        h5py.h5d.create(index.id, b"tokens", h5py.h5t.py_create(np.dtype(files[0].dtype)), whole, plan)
        if files[0].chars is not None:
            index.create_dataset("chars", data=np.frombuffer(files[0].chars.encode(), np.uint8), track_times=False)
        attributes.pop("mask_sha256", None)
        index.attrs.update(attributes | {"sha256": contents.sha256, "max_id": contents.max_id})
    replace_synced(part, path)
    return contents.sha256
