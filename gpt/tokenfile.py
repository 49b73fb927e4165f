"""The token file: HDF5 with one dataset ``tokens``, read at memmap speed.

``tokens`` (uint16 or uint32) is contiguous. Beside it lie ``doc_offsets`` (int64: where documents start), where losses
are masked ``loss_mask`` (uint8: 0 where a token is no target), and for a chars tokenizer ``chars`` (uint8: its alphabet
in UTF-8). Attributes: layout, tokenizer, vocab_size, sha256 (of the tokens), mask_sha256, max_id, source, revision,
split. No times and no paths: equal input gives equal bytes.

Several files, shards, appear as one: an index whose ``tokens`` is a virtual dataset over those beside it.
"""

import bisect
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gpt.errors import InputError

LAYOUT = 1
BLOCK = 1 << 24  # tokens moved at once where a whole file is
SPOOLED = {"tokens": None, "doc_offsets": np.dtype("<i8"), "loss_mask": np.dtype("u1")}
Read = Callable[[int, int], np.ndarray]  # (start, stop) -> values


class TokenWriter:
    """Appends tokens to raw files beside ``path`` and, when it is finished, writes ``path`` in one go.

    ``held`` are the (tokens, documents) that an interrupted writer had synced: what it wrote after them is cut off.
    In a ``with``, it finishes, or leaves nothing. Raises InputError for an id that the vocabulary does not hold.
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
        held: tuple[int, int] = (0, 0),
    ):
        self.path, self.chars, self.vocab_size = Path(path), chars, vocab_size
        about = {"tokenizer": tokenizer, "vocab_size": vocab_size, "source": source, "split": split}
        self.attributes = {"layout": LAYOUT} | about | ({"revision": revision} if revision else {})
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.n_tokens, self.n_documents = held
        lengths = {"tokens": self.n_tokens * self.dtype.itemsize, "doc_offsets": self.n_documents * 8}
        if has_mask:
            lengths["loss_mask"] = self.n_tokens
        self.spools = {name: self._spool(name, length) for name, length in lengths.items()}

    def _spool_path(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{name}")

    def _spool(self, name: str, length: int):
        file = open(self._spool_path(name), "a+b")
        file.truncate(length)
        return file

    def add_document(self, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append the ids of one document."""
        self.add(ids, np.zeros(1, np.int64), mask)

    def add(self, ids: np.ndarray, starts: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append ids, among which documents start at ``starts``."""
        highest = int(ids.max(initial=0))
        if highest >= self.vocab_size:
            raise InputError(
                f"token id {highest} in {self.attributes['source']} is not in the vocabulary of {self.vocab_size}",
                "prepare the data with the tokenizer that made its ids",
            )
        self.spools["tokens"].write(ids.astype(self.dtype, copy=False).tobytes())
        self.spools["doc_offsets"].write((starts + self.n_tokens).astype("<i8").tobytes())
        if "loss_mask" in self.spools:
            self.spools["loss_mask"].write(mask.astype("u1", copy=False).tobytes())
        self.n_tokens += len(ids)
        self.n_documents += len(starts)

    def sync(self) -> tuple[int, int]:
        """Bring all to the disk; returns the tokens and documents there."""
        for spool in self.spools.values():
            spool.flush()
            os.fsync(spool.fileno())
        return self.n_tokens, self.n_documents

    def finish(self) -> dict[str, Any]:
        """Write the file; returns its number of tokens and their hash. The raw files stay, until they are dropped."""
        part = self._spool_path("part")
        dtypes = SPOOLED | {"tokens": self.dtype}
        digests, max_id = {name: hashlib.sha256() for name in self.spools}, 0
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
                    digests[name].update(raw)
                    if name == "tokens":
                        max_id = max(max_id, int(values.max()))
            if self.chars is not None:
                file.create_dataset("chars", data=np.frombuffer(self.chars.encode(), np.uint8), track_times=False)
            sha256 = digests["tokens"].hexdigest()
            file.attrs.update(self.attributes | {"sha256": sha256, "max_id": max_id})
            if "loss_mask" in digests:
                file.attrs["mask_sha256"] = digests["loss_mask"].hexdigest()
        replace_synced(part, self.path)
        return {"tokens": self.n_tokens, "documents": self.n_documents, "sha256": sha256}

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
    digest, max_ids = hashlib.sha256(), []
    # By hand, because h5py's create_virtual_dataset would store the time.
    plan, whole = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple((sum(sizes),))
    plan.set_obj_track_times(False)
    with h5py.File(part, "w") as index:
        for shard, begin, size in zip(shards, itertools.accumulate([0, *sizes[:-1]]), sizes, strict=True):
            whole.select_hyperslab((begin,), (size,))
            plan.set_virtual(whole, shard.name.encode(), b"tokens", h5py.h5s.create_simple((size,)))
            with h5py.File(shard) as file:
                for block in _blocks(file["tokens"]):
                    digest.update(block.tobytes())
                max_ids.append(int(file.attrs["max_id"]))
                attributes = dict(file.attrs)
        whole.select_all()
        h5py.h5d.create(index.id, b"tokens", h5py.h5t.py_create(np.dtype(files[0].dtype)), whole, plan)
        if files[0].chars is not None:
            index.create_dataset("chars", data=np.frombuffer(files[0].chars.encode(), np.uint8), track_times=False)
        attributes.pop("mask_sha256", None)
        index.attrs.update(attributes | {"sha256": digest.hexdigest(), "max_id": max(max_ids)})
    replace_synced(part, path)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Shard:
    """Tokens that lie together: in which file, how many, and where; None where they are chunked or compressed."""

    path: str
    n_tokens: int
    offset: int | None
    mask_offset: int | None

    def reader(self, name: str, dtype: str, read: str) -> Read:
        """Values of ``tokens`` or ``loss_mask``: by memory map, by ``pread``, or through h5py for chunked files."""
        offset = self.offset if name == "tokens" else self.mask_offset
        if offset is None:
            values = h5py.File(self.path)[name]
            return lambda start, stop: values[start:stop]
        if read == "mmap":
            # A plain view: slicing np.memmap's own class costs a microsecond more each time.
            values = np.memmap(self.path, dtype, "r", offset, (self.n_tokens,)).view(np.ndarray)
            return lambda start, stop: values[start:stop]
        file, itemsize = open(self.path, "rb", buffering=0), np.dtype(dtype).itemsize

        def pread(start: int, stop: int) -> np.ndarray:
            held = os.pread(file.fileno(), (stop - start) * itemsize, offset + start * itemsize)
            return np.frombuffer(held, dtype)

        return pread


@dataclass(frozen=True, slots=True)
class TokenFile:
    """What a token file says of itself, and the shards that hold its tokens."""

    path: str
    dtype: str
    n_tokens: int
    shards: tuple[Shard, ...]
    tokenizer: str
    vocab_size: int
    chars: str | None
    sha256: str
    has_mask: bool
    has_documents: bool

    @property
    def vocabulary(self) -> dict[str, Any]:
        """What must agree for a model to read this file: tokenizer, its size, its alphabet if it has one."""
        return {"name": self.tokenizer, "vocab_size": self.vocab_size, "chars": self.chars}

    def reader(self, read: str = "mmap", name: str = "tokens") -> Read:
        """A function (start, stop) -> ids, or values of ``loss_mask``, across all shards."""
        dtype = self.dtype if name == "tokens" else "u1"

        @functools.cache  # a shard is opened when it is first read
        def shard(number: int) -> Read:
            return self.shards[number].reader(name, dtype, read)

        if len(self.shards) == 1:
            return shard(0)
        begins = list(itertools.accumulate((s.n_tokens for s in self.shards), initial=0))

        def across(start: int, stop: int) -> np.ndarray:
            number = bisect.bisect_right(begins, start) - 1
            if stop <= begins[number + 1]:
                return shard(number)(start - begins[number], stop - begins[number])
            parts = []
            while start < stop:
                end = min(stop, begins[number + 1])
                parts.append(shard(number)(start - begins[number], end - begins[number]))
                start, number = end, number + 1
            return np.concatenate(parts)

        return across

    def doc_offsets(self) -> np.ndarray:
        """Where documents start (int64), across all shards; empty where no file says it."""
        if not self.has_documents:
            return np.empty(0, np.int64)
        begins = itertools.accumulate((s.n_tokens for s in self.shards), initial=0)
        offsets = []
        for shard, begin in zip(self.shards, begins, strict=False):
            with h5py.File(shard.path) as file:
                offsets.append(file["doc_offsets"][()] + begin)
        return np.concatenate(offsets)

    def doc_lengths(self) -> np.ndarray:
        """Tokens of each document."""
        offsets = self.doc_offsets()
        return np.diff(offsets, append=self.n_tokens) if len(offsets) else offsets


def open_tokens(path: Path) -> TokenFile:
    """Read and check a token file's description. Raises InputError when it is missing, cut short or foreign."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"no token file at {path}", "prepare the data (python -m data.prepare data=…) or correct data.dir"
        )
    try:
        with h5py.File(path) as file:
            return _describe(path, file)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is no whole HDF5 file: {reason}", AGAIN) from error


AGAIN = "truncated or foreign: delete it and prepare it again"


def _describe(path: Path, file: h5py.File) -> TokenFile:
    tokens, attributes = file.get("tokens"), dict(file.attrs)
    missing = [f"attribute {name}" for name in ("tokenizer", "vocab_size") if name not in attributes]
    if not (isinstance(tokens, h5py.Dataset) and tokens.ndim == 1 and tokens.dtype.kind in "iu"):
        missing.insert(0, "one-dimensional integer dataset tokens")
    if attributes.get("tokenizer") == "chars" and "chars" not in file:
        missing.append("dataset chars")
    if missing:
        raise InputError(f"{path} is not a token file: no {', no '.join(missing)}", AGAIN)
    layout = int(attributes.get("layout", LAYOUT))
    if layout != LAYOUT:
        raise InputError(f"{path} has layout {layout}, and this version reads {LAYOUT}", AGAIN)
    shards = _shards(path, file)
    vocab_size = int(attributes["vocab_size"])
    max_id = int(attributes["max_id"] if "max_id" in attributes else max(block.max() for block in _blocks(tokens)))
    if max_id >= vocab_size:
        raise InputError(
            f"{path} holds token id {max_id}, and its vocabulary ends at {vocab_size - 1}",
            "prepare it with the tokenizer that made its ids, or correct its attribute vocab_size",
        )
    return TokenFile(
        path=str(path.resolve()),
        dtype=tokens.dtype.str,
        n_tokens=tokens.size,
        shards=shards,
        tokenizer=str(attributes["tokenizer"]),
        vocab_size=vocab_size,
        chars=bytes(file["chars"][()]).decode() if "chars" in file else None,
        sha256=str(attributes.get("sha256") or hash_tokens(tokens)),
        has_mask=all(_has(shard, "loss_mask") for shard in shards),
        has_documents=all(_has(shard, "doc_offsets") for shard in shards),
    )


def _shards(path: Path, file: h5py.File) -> tuple[Shard, ...]:
    """Where the tokens lie: in this file, or in those that it is an index of. Raises InputError."""
    tokens = file["tokens"]
    if not tokens.is_virtual:
        offsets = {}
        for name in ("tokens", "loss_mask"):
            offsets[name] = file[name].id.get_offset() if name in file else None  # None unless contiguous
            end = 0 if offsets[name] is None else offsets[name] + file[name].size * file[name].dtype.itemsize
            if end > path.stat().st_size:  # reading a memory map beyond the end of its file kills the process
                raise InputError(f"{path} has {path.stat().st_size} bytes of {end}", AGAIN)
        return (Shard(str(path.resolve()), tokens.size, offsets["tokens"], offsets["loss_mask"]),)
    sources = sorted(tokens.virtual_sources(), key=lambda source: source.vspace.get_regular_hyperslab()[0][0])
    shards = [shard for source in sources for shard in open_tokens(path.parent / source.file_name).shards]
    if sum(shard.n_tokens for shard in shards) != tokens.size:
        raise InputError(f"the shards of {path} do not hold its {tokens.size} tokens", AGAIN)
    return tuple(shards)


def _has(shard: Shard, name: str) -> bool:
    with h5py.File(shard.path) as file:
        return name in file


def data_fingerprint(train: TokenFile, val: TokenFile) -> str:
    """What a run was trained and validated on."""
    return f"{train.sha256}-{val.sha256}"


def hash_tokens(tokens: h5py.Dataset) -> str:
    """sha256 of the stored ids, as the attribute ``sha256`` has it."""
    digest = hashlib.sha256()
    for block in _blocks(tokens):
        digest.update(block.tobytes())
    return digest.hexdigest()


def is_as_written(path: Path) -> tuple[bool, str]:
    """Whether a token file holds what its attributes say, and the sha256 of its tokens."""
    with h5py.File(path) as file:
        found = hash_tokens(file["tokens"])
        if "mask_sha256" in file.attrs and file.attrs["mask_sha256"] != hash_tokens(file["loss_mask"]):
            return False, found
        return file.attrs.get("sha256", found) == found, found


def _blocks(tokens: h5py.Dataset) -> Iterator[np.ndarray]:
    return (tokens[start : start + BLOCK] for start in range(0, tokens.size, BLOCK))
