"""The token file: HDF5 with one dataset ``tokens``, read at memmap speed.

``tokens`` (uint16 or uint32) is contiguous. Beside it are ``doc_offsets`` (int64: where documents start), where losses
are masked ``loss_mask`` (uint8: 0 where a token is no target), and for a chars tokenizer ``chars`` (uint8: its alphabet
in UTF-8). Attributes: layout, tokenizer, vocab_size, sha256 (of the tokens), mask_sha256, max_id, source, revision,
split. No times and no paths: equal input gives equal bytes.

Several files, shards, appear as one: an index whose ``tokens`` is a virtual dataset over those beside it.
"""

import bisect
import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from gpt.errors import InputError

LAYOUT = 1
BLOCK = 1 << 24  # tokens moved at once where a whole file is
AGAIN = "truncated or foreign: delete it and prepare it again"
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
            values = np.memmap(self.path, dtype, "r", offset, (self.n_tokens,)).view(np.ndarray)
            return lambda start, stop: values[start:stop]
        file = open(self.path, "rb", buffering=0)
        itemsize = np.dtype(dtype).itemsize

        def pread(start: int, stop: int) -> np.ndarray:
            n_bytes = (stop - start) * itemsize
            position = offset + start * itemsize
            return np.frombuffer(os.pread(file.fileno(), n_bytes, position), dtype)

        return pread


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The description of a token file, and the shards that hold its tokens."""

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
        """All that must agree for a model to read this file: tokenizer, its size, its alphabet if it has one."""
        return {"name": self.tokenizer, "vocab_size": self.vocab_size, "chars": self.chars}

    def reader(self, read: str = "mmap", name: str = "tokens") -> Read:
        """Return a function (start, stop) -> ids, or values of ``loss_mask``, across all shards."""
        dtype = self.dtype if name == "tokens" else "u1"

        @functools.cache  # a shard is opened when it is first read
        def shard(number: int) -> Read:
            return self.shards[number].reader(name, dtype, read)

        if len(self.shards) == 1:
            return shard(0)

        # Several shards: most windows are within one, and the others are put together.
        begins = self._shard_begins()

        def across(start: int, stop: int) -> np.ndarray:
            number = bisect.bisect_right(begins, start) - 1
            if stop <= begins[number + 1]:
                return shard(number)(start - begins[number], stop - begins[number])
            parts = []
            while start < stop:
                end = min(stop, begins[number + 1])
                parts.append(shard(number)(start - begins[number], end - begins[number]))
                start = end
                number += 1
            return np.concatenate(parts)

        return across

    def doc_offsets(self) -> np.ndarray:
        """Return the tokens at which documents start (int64), across all shards; empty if no file says it."""
        if not self.has_documents:
            return np.empty(0, np.int64)
        offsets = []
        for shard, begin in zip(self.shards, self._shard_begins(), strict=False):
            with h5py.File(shard.path) as file:
                offsets.append(file["doc_offsets"][()] + begin)
        return np.concatenate(offsets)

    def doc_lengths(self) -> np.ndarray:
        """Return the number of tokens of each document."""
        offsets = self.doc_offsets()
        return np.diff(offsets, append=self.n_tokens) if len(offsets) else offsets

    def _shard_begins(self) -> list[int]:
        """Return the first token of each shard and, at the end, the number of all."""
        sizes = [shard.n_tokens for shard in self.shards]
        return list(itertools.accumulate(sizes, initial=0))


class Contents(NamedTuple):
    """The hash of all tokens of a file, and their range."""

    sha256: str
    min_id: int
    max_id: int


def open_tokens(path: Path, read: Callable[[tuple[Shard, ...]], Contents] | None = None) -> TokenFile:
    """Read and check a token file's description. Raises InputError when it is missing, cut short or foreign.

    Where its attributes do not have the hash and range of its tokens, ``read`` computes them (:func:`read_shards`).
    """
    path = Path(path)
    # A path without a file: a user's mistake, or a part of prepared data that is lost.
    if not path.is_file():
        if path.is_dir():
            raise InputError(f"{path} is a directory, and no token file", DAMAGED)
        raise InputError(
            f"no token file at {path}", "prepare the data (python -m data.prepare data=…) or correct data.dir"
        )
    with _opened(path) as file:
        return _describe(path, file, read or read_shards)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to read from it. Raises InputError for whatever is wrong with it."""
    try:
        with h5py.File(path) as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # h5py raises nearly anything where a header is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is no whole HDF5 file: {reason}", AGAIN) from error


def _describe(path: Path, file: h5py.File, read: Callable[[tuple[Shard, ...]], Contents]) -> TokenFile:
    """Return what an open file says of itself. Raises InputError."""
    _check_layout(path, file)
    tokens = file["tokens"]
    attributes = dict(file.attrs)
    shards = _shards(path, file)
    vocab_size = _number(path, attributes, "vocab_size")
    if not tokens.size:
        raise InputError(f"{path} holds no tokens", "prepare it again, from more text")

    # The hash and range of the tokens: as recorded, or by reading all of them.
    if "max_id" in attributes and "sha256" in attributes:
        contents = Contents(_text(path, attributes, "sha256"), 0, _number(path, attributes, "max_id"))
    else:
        contents = read(shards)
    check_ids(path, contents, vocab_size)
    return TokenFile(
        path=str(path.resolve()),
        dtype=tokens.dtype.str,
        n_tokens=tokens.size,
        shards=shards,
        tokenizer=_text(path, attributes, "tokenizer"),
        vocab_size=vocab_size,
        chars=_alphabet(path, file, vocab_size) if "chars" in file else None,
        sha256=_text(path, attributes, "sha256") if "sha256" in attributes else contents.sha256,
        has_mask=all(_has_dataset(shard, "loss_mask") for shard in shards),
        has_documents=all(_has_dataset(shard, "doc_offsets") for shard in shards),
    )


def _check_layout(path: Path, file: h5py.File) -> None:
    """Refuse a file without the datasets and attributes that every token file has. Raises InputError."""
    # All that is missing is named at once.
    tokens = file.get("tokens")
    attributes = dict(file.attrs)
    missing = []
    if not (isinstance(tokens, h5py.Dataset) and tokens.ndim == 1 and tokens.dtype.kind in "iu"):
        missing.append("one-dimensional integer dataset tokens")
    for name in ("tokenizer", "vocab_size"):
        if name not in attributes:
            missing.append(f"attribute {name}")
    if attributes.get("tokenizer") == "chars" and "chars" not in file:
        missing.append("dataset chars")
    if missing:
        raise InputError(f"{path} is not a token file: no {', no '.join(missing)}", AGAIN)

    # Files of one's own need no layout.
    layout = _number(path, attributes, "layout") if "layout" in attributes else LAYOUT
    if layout != LAYOUT:
        raise InputError(f"{path} has layout {layout}, and this version reads {LAYOUT}", AGAIN)
    _check_dataset(path, file, "loss_mask", "biu", tokens.size)
    _check_dataset(path, file, "doc_offsets", "iu", None)


def _number(path: Path, attributes: dict[str, Any], name: str) -> int:
    value = attributes[name]
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise InputError(f"{path}: its attribute {name} is {value!r:.40}, no whole number of 0 or more", AGAIN)
    return int(value)


def _text(path: Path, attributes: dict[str, Any], name: str) -> str:
    value = attributes[name]
    if not isinstance(value, str) or not value.isprintable():
        raise InputError(f"{path}: its attribute {name} is {ascii(value)[:40]}, no text", AGAIN)
    return value


def _alphabet(path: Path, file: h5py.File, vocab_size: int) -> str:
    """Return the characters of a chars tokenizer, one for each id. Raises InputError."""
    dataset = file["chars"]
    chars = ""
    if isinstance(dataset, h5py.Dataset) and dataset.ndim == 1 and dataset.dtype == np.uint8:
        chars = dataset[()].tobytes().decode(errors="ignore")
    if len(chars) != vocab_size or len(set(chars)) != vocab_size:
        raise InputError(f"{path}: its dataset chars is no alphabet of {vocab_size} different characters", AGAIN)
    return chars


def _check_dataset(path: Path, file: h5py.File, name: str, kinds: str, length: int | None) -> None:
    """Refuse a dataset beside the tokens that is of another kind or length. Raises InputError."""
    dataset = file.get(name)
    if dataset is None:
        return
    is_right = isinstance(dataset, h5py.Dataset) and dataset.ndim == 1 and dataset.dtype.kind in kinds
    expected = "a row of whole numbers"
    if length is not None:
        is_right = is_right and len(dataset) == length and dataset.dtype.itemsize == 1
        expected = "as many bytes as there are tokens"
    if not is_right:
        raise InputError(f"{path}: its dataset {name} is not {expected}", AGAIN)


def check_ids(path: Path | str, contents: Contents, vocab_size: int) -> None:
    """Refuse ids that no embedding has. Raises InputError."""
    if contents.min_id < 0 or contents.max_id >= vocab_size:
        wrong = contents.min_id if contents.min_id < 0 else contents.max_id
        raise InputError(
            f"{path} holds token id {wrong}, and its vocabulary ends at {vocab_size - 1}",
            "delete it and prepare it again with the tokenizer that made its ids, or correct its attribute vocab_size",
        )


def _shards(path: Path, file: h5py.File) -> tuple[Shard, ...]:
    """Return the shards with the tokens: this file, or those that it is an index of. Raises InputError."""
    tokens = file["tokens"]
    if not tokens.is_virtual:
        offsets = {name: _contiguous_offset(path, file, name) for name in ("tokens", "loss_mask")}
        return (Shard(str(path.resolve()), tokens.size, offsets["tokens"], offsets["loss_mask"]),)

    # An index: each source of its virtual dataset is a token file beside it.
    sources = sorted(tokens.virtual_sources(), key=_first_token)
    files = []
    for source in sources:
        shard_path = path.parent / source.file_name
        if not shard_path.exists():
            raise InputError(f"{shard_path} is gone, and {path} is an index of it", DAMAGED)
        files.append(open_tokens(shard_path))

    # Together they must be the tokens of the index.
    if sum(file.n_tokens for file in files) != tokens.size:
        raise InputError(f"the shards of {path} do not hold its {tokens.size} tokens", AGAIN)
    shards: list[Shard] = []
    for shard in files:
        if (shard.dtype, shard.tokenizer) != (tokens.dtype.str, file.attrs["tokenizer"]):
            raise InputError(f"{shard.path} is no shard of {path}: its tokens are of another kind", AGAIN)
        shards += shard.shards
    return tuple(shards)


def _first_token(source: Any) -> int:
    """Return the position in a virtual dataset at which a source of it begins."""
    starts, *_ = source.vspace.get_regular_hyperslab()
    return starts[0]


def _contiguous_offset(path: Path, file: h5py.File, name: str) -> int | None:
    """Return the byte at which a dataset begins; None unless it is there and contiguous. Raises InputError."""
    offset = file[name].id.get_offset() if name in file else None
    if offset is None:
        return None
    end = offset + file[name].size * file[name].dtype.itemsize
    size = path.stat().st_size
    if end > size:  # reading a memory map beyond the end of its file kills the process
        raise InputError(f"{path} has {size} bytes of {end}", AGAIN)
    return offset


def _has_dataset(shard: Shard, name: str) -> bool:
    with _opened(Path(shard.path)) as file:
        return name in file


def data_fingerprint(train: TokenFile, val: TokenFile) -> str:
    """Return the identity of the data that a run was trained and validated on."""
    return f"{train.sha256}-{val.sha256}"


def read_shards(shards: tuple[Shard, ...], recorded: dict[str, dict[str, Any]] | None = None) -> Contents:
    """Read all tokens of some shards, which must be what their attributes say. Raises InputError.

    ``recorded`` are the manifest's entries by file name, to which they are compared as well.
    """
    recorded = recorded or {}
    whole = hashlib.sha256() if len(shards) > 1 else None
    read = []
    for shard in shards:
        path = Path(shard.path)
        contents, damage = read_shard(path, recorded.get(path.name, {}), whole)
        if damage:
            raise InputError(f"{path} is damaged: {damage}", DAMAGED)
        read.append(contents)
    sha256 = read[0].sha256 if whole is None else whole.hexdigest()
    min_id = min(contents.min_id for contents in read)
    max_id = max(contents.max_id for contents in read)
    return Contents(sha256, min_id, max_id)


def read_shard(path: Path, recorded: dict[str, Any], whole: Any = None) -> tuple[Contents, str | None]:
    """Read all tokens of a file; returns what they are, and in words the damage, if there is any.

    ``recorded`` is the manifest's entry for it; ``whole`` is a hash that goes on over the tokens.
    """
    with _opened(path) as file:
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
        contents = Contents(digest.hexdigest(), lowest, highest)
        return contents, _find_damage(file, contents.sha256, recorded)


def _find_damage(file: h5py.File, sha256: str, recorded: dict[str, Any]) -> str | None:
    """Compare what was read with the manifest, the attributes and each other; returns the last difference."""
    # The tokens.
    damage = None
    if recorded.get("sha256", sha256) != sha256:
        damage = "its tokens are not those that manifest.json says (sha256)"
    if file.attrs.get("sha256", sha256) != sha256:
        damage = "its tokens are not those that were written (sha256)"

    # The datasets beside them; the manifest alone has a hash of the documents.
    if "mask_sha256" in file.attrs and file.attrs["mask_sha256"] != _hash(file["loss_mask"]):
        damage = "its loss_mask is not what was written (sha256)"
    if "doc_offsets" in file:
        expected = recorded.get("doc_offsets_sha256")
        if expected and expected != _hash(file["doc_offsets"]):
            damage = "its doc_offsets are not those that manifest.json says (sha256)"
        offsets = file["doc_offsets"][()].astype(np.int64)
        is_outside = offsets.min(initial=0) < 0 or offsets.max(initial=0) > file["tokens"].size
        if is_outside or (np.diff(offsets) < 0).any():
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
