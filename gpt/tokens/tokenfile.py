"""The token file: HDF5 with one dataset ``tokens``, read at memmap speed.

``tokens`` (uint16 or uint32) is contiguous. Beside it lie ``doc_offsets`` (int64: where documents start), where losses
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
DAMAGED = "delete it and give the command again, which makes it again, or restore it from a copy"
Read = Callable[[int, int], np.ndarray]  # (start, stop) -> values


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


class Contents(NamedTuple):
    """What all tokens of a file are."""

    sha256: str
    min_id: int
    max_id: int


def open_tokens(path: Path, read: "Callable[[tuple[Shard, ...]], Contents] | None" = None) -> TokenFile:
    """Read and check a token file's description. Raises InputError when it is missing, cut short or foreign.

    What its attributes do not say of its tokens, ``read`` finds out (:func:`read_contents`).
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise InputError(f"{path} is a directory, and no token file", DAMAGED)
        raise InputError(
            f"no token file at {path}", "prepare the data (python -m data.prepare data=…) or correct data.dir"
        )
    with _opened(path) as file:
        return _describe(path, file, read or read_contents)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read from. Raises InputError for whatever is wrong with it."""
    try:
        with h5py.File(path) as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # h5py raises nearly anything where a header is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is no whole HDF5 file: {reason}", AGAIN) from error


def _describe(path: Path, file: h5py.File, read: Callable[[tuple[Shard, ...]], Contents]) -> TokenFile:
    tokens, attributes = file.get("tokens"), dict(file.attrs)
    missing = [f"attribute {name}" for name in ("tokenizer", "vocab_size") if name not in attributes]
    if not (isinstance(tokens, h5py.Dataset) and tokens.ndim == 1 and tokens.dtype.kind in "iu"):
        missing.insert(0, "one-dimensional integer dataset tokens")
    if attributes.get("tokenizer") == "chars" and "chars" not in file:
        missing.append("dataset chars")
    if missing:
        raise InputError(f"{path} is not a token file: no {', no '.join(missing)}", AGAIN)
    layout = _number(path, attributes, "layout") if "layout" in attributes else LAYOUT
    if layout != LAYOUT:
        raise InputError(f"{path} has layout {layout}, and this version reads {LAYOUT}", AGAIN)
    for name, kinds, length in (("loss_mask", "biu", tokens.size), ("doc_offsets", "iu", None)):
        _check_beside(path, file, name, kinds, length)
    shards = _shards(path, file)
    vocab_size = _number(path, attributes, "vocab_size")
    if not tokens.size:
        raise InputError(f"{path} holds no tokens", "prepare it again, from more text")
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
        has_mask=all(_has(shard, "loss_mask") for shard in shards),
        has_documents=all(_has(shard, "doc_offsets") for shard in shards),
    )


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
    """The characters of a chars tokenizer, one for each id. Raises InputError."""
    held = file["chars"]
    chars = ""
    if isinstance(held, h5py.Dataset) and held.ndim == 1 and held.dtype == np.uint8:
        chars = held[()].tobytes().decode(errors="ignore")
    if len(chars) != vocab_size or len(set(chars)) != vocab_size:
        raise InputError(f"{path}: its dataset chars is no alphabet of {vocab_size} different characters", AGAIN)
    return chars


def _check_beside(path: Path, file: h5py.File, name: str, kinds: str, length: int | None) -> None:
    """Refuse a dataset beside the tokens that is of another kind or length. Raises InputError."""
    held = file.get(name)
    if held is None:
        return
    is_row = isinstance(held, h5py.Dataset) and held.ndim == 1 and held.dtype.kind in kinds
    if not is_row or (length is not None and (len(held), held.dtype.itemsize) != (length, 1)):
        said = "as many bytes as there are tokens" if length is not None else "a row of whole numbers"
        raise InputError(f"{path}: its dataset {name} is not {said}", AGAIN)


def check_ids(path: Path | str, contents: Contents, vocab_size: int) -> None:
    """Refuse ids that no embedding has. Raises InputError."""
    if contents.min_id < 0 or contents.max_id >= vocab_size:
        wrong = contents.min_id if contents.min_id < 0 else contents.max_id
        raise InputError(
            f"{path} holds token id {wrong}, and its vocabulary ends at {vocab_size - 1}",
            "delete it and prepare it again with the tokenizer that made its ids, or correct its attribute vocab_size",
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
    files = [open_tokens(path.parent / source.file_name) for source in sources]
    if sum(file.n_tokens for file in files) != tokens.size:
        raise InputError(f"the shards of {path} do not hold its {tokens.size} tokens", AGAIN)
    for shard in files:
        if (shard.dtype, shard.tokenizer) != (tokens.dtype.str, file.attrs["tokenizer"]):
            raise InputError(f"{shard.path} is no shard of {path}: its tokens are of another kind", AGAIN)
    return tuple(shard for file in files for shard in file.shards)


def _has(shard: Shard, name: str) -> bool:
    with _opened(Path(shard.path)) as file:
        return name in file


def data_fingerprint(train: TokenFile, val: TokenFile) -> str:
    """What a run was trained and validated on."""
    return f"{train.sha256}-{val.sha256}"


def read_contents(shards: tuple[Shard, ...]) -> Contents:
    """All tokens of some shards, which must be what their attributes say. Raises InputError."""
    return read_shards(shards, {})


def read_shards(shards: tuple[Shard, ...], recorded: dict[str, dict[str, Any]]) -> Contents:
    """All tokens of some shards, which must be what their attributes and the manifest say. Raises InputError."""
    whole, read = hashlib.sha256(), []
    for shard in shards:
        path = Path(shard.path)
        contents, damage = read_shard(path, recorded.get(path.name, {}), whole if len(shards) > 1 else None)
        if damage:
            raise InputError(f"{path} is damaged: {damage}", DAMAGED)
        read.append(contents)
    sha256 = whole.hexdigest() if len(shards) > 1 else read[0].sha256
    return Contents(sha256, min(c.min_id for c in read), max(c.max_id for c in read))


def read_shard(path: Path, recorded: dict[str, Any], whole: Any = None) -> tuple[Contents, str | None]:
    """All tokens of a file, and in words what is not as it was written.

    ``recorded`` is what the manifest says of it; ``whole`` is a hash that goes on over the tokens.
    """
    with _opened(path) as file:
        digest, lowest, highest, damage = hashlib.sha256(), 0, 0, None
        for block in _blocks(file["tokens"]):
            raw = block.tobytes()
            digest.update(raw)
            if whole is not None:
                whole.update(raw)
            lowest, highest = min(lowest, int(block.min())), max(highest, int(block.max()))
        found = digest.hexdigest()
        if recorded.get("sha256", found) != found:
            damage = "its tokens are not those that manifest.json says (sha256)"
        if file.attrs.get("sha256", found) != found:
            damage = "its tokens are not those that were written (sha256)"
        if "mask_sha256" in file.attrs and file.attrs["mask_sha256"] != _hash(file["loss_mask"]):
            damage = "its loss_mask is not what was written (sha256)"
        if "doc_offsets" in file:
            offsets, n_tokens = file["doc_offsets"][()].astype(np.int64), file["tokens"].size
            expected = recorded.get("doc_offsets_sha256")
            if expected and expected != _hash(file["doc_offsets"]):
                damage = "its doc_offsets are not those that manifest.json says (sha256)"
            if (np.diff(offsets) < 0).any() or offsets.min(initial=0) < 0 or offsets.max(initial=0) > n_tokens:
                damage = "its doc_offsets do not ascend from 0 to the number of its tokens"
    return Contents(found, lowest, highest), damage


def _hash(values: h5py.Dataset) -> str:
    digest = hashlib.sha256()
    for block in _blocks(values):
        digest.update(block.tobytes())
    return digest.hexdigest()


def _blocks(values: h5py.Dataset) -> Iterator[np.ndarray]:
    return (values[start : start + BLOCK] for start in range(0, values.size, BLOCK))
