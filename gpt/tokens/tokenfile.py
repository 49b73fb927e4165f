"""The token file: HDF5 with one dataset ``tokens``, read at memmap speed.

``tokens`` (uint16 or uint32) is contiguous. Beside it are ``doc_offsets`` (int64: where documents start), where losses
are masked ``loss_mask`` (uint8: 0 where a token is no target), and for a chars tokenizer ``chars`` (uint8: its alphabet
in UTF-8). Attributes: layout, tokenizer, vocab_size, sha256 (of the tokens), mask_sha256, max_id, source, revision,
split. No times and no paths: equal input gives equal bytes.

Several files, shards, appear as one: an index whose ``tokens`` is a virtual dataset over those beside it.
"""

import bisect
import functools
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gpt.errors import InputError
from gpt.tokens.shard import AGAIN, DAMAGED, Contents, Read, Shard, open_hdf5, read_shards

LAYOUT = 1
SUFFIX = ".h5"
MOST_NAMED = 4  # files in a message


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
        return {
            "name": self.tokenizer,
            "vocab_size": self.vocab_size,
            "chars": self.chars,
        }

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
            begin = begins[number]
            if stop <= begins[number + 1]:
                return shard(number)(start - begin, stop - begin)
            parts = []
            while start < stop:
                begin = begins[number]
                end = min(stop, begins[number + 1])
                part = shard(number)(start - begin, end - begin)
                parts.append(part)
                start = end
                number += 1
            return np.concatenate(parts)

        return across

    def doc_offsets(self) -> np.ndarray:
        """Return the tokens at which documents start (int64), across all shards; empty if no file says it."""
        if not self.has_documents:
            return np.empty(0, np.int64)
        # Each shard counts from its own beginning.
        offsets = []
        for shard, begin in zip(self.shards, self._shard_begins(), strict=False):
            with h5py.File(shard.path) as file:
                within_shard = file["doc_offsets"][()]
            offsets.append(within_shard + begin)
        return np.concatenate(offsets)

    def doc_lengths(self) -> np.ndarray:
        """Return the number of tokens of each document."""
        offsets = self.doc_offsets()
        if not len(offsets):
            return offsets
        return np.diff(offsets, append=self.n_tokens)

    def _shard_begins(self) -> list[int]:
        """Return the first token of each shard and, at the end, the number of all."""
        sizes = [shard.n_tokens for shard in self.shards]
        return list(itertools.accumulate(sizes, initial=0))


def open_tokens(path: Path, read: Callable[[tuple[Shard, ...]], Contents] | None = None) -> TokenFile:
    """Read and check a token file's description. Raises InputError when it is missing, cut short or foreign.

    Where its attributes do not have the hash and range of its tokens, ``read`` computes them (:func:`read_shards`).
    """
    path = Path(path)
    # A path without a file: a user's mistake, or a part of prepared data that is lost.
    if path.is_dir():
        raise InputError(f"{path} is a directory, and no token file", _cure_of_directory(path))
    if not path.is_file():
        raise InputError(
            f"no token file at {path}",
            "prepare the data (python -m data.prepare data=…) or correct data.dir",
        )
    if path.suffix != SUFFIX and not h5py.is_hdf5(path):
        raise InputError(
            f"{path} is no token file: it is not in HDF5",
            f"text is prepared first: python -m data.prepare data=text data.files='{path}' writes token files",
        )
    with open_hdf5(path) as file:
        return _describe(path, file, read or read_shards)


def _cure_of_directory(path: Path) -> str:
    """Return what to do where a directory is given as a token file, or stands in its place."""
    files = sorted(file.name for file in path.glob(f"*{SUFFIX}"))
    if files:
        return f"its token files are {' and '.join(files[:MOST_NAMED])}"
    if path.suffix == SUFFIX:
        return DAMAGED
    return f"a token file ends in {SUFFIX}; python -m data.prepare writes them"


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
    sha256 = _text(path, attributes, "sha256") if "sha256" in attributes else None
    if "max_id" in attributes and sha256 is not None:
        max_id = _number(path, attributes, "max_id")
        contents = Contents(sha256, 0, max_id)
    else:
        contents = read(shards)
    check_ids(path, contents, vocab_size)

    # What only some files have.
    chars = _alphabet(path, file, vocab_size) if "chars" in file else None
    return TokenFile(
        path=str(path.resolve()),
        dtype=tokens.dtype.str,
        n_tokens=tokens.size,
        shards=shards,
        tokenizer=_text(path, attributes, "tokenizer"),
        vocab_size=vocab_size,
        chars=chars,
        sha256=contents.sha256 if sha256 is None else sha256,
        has_mask=all(_has_dataset(shard, "loss_mask") for shard in shards),
        has_documents=all(_has_dataset(shard, "doc_offsets") for shard in shards),
    )


def _check_layout(path: Path, file: h5py.File) -> None:
    """Refuse a file without the datasets and attributes that every token file has. Raises InputError."""
    # All that is missing is named at once.
    tokens = file.get("tokens")
    attributes = dict(file.attrs)
    missing = []
    if not _is_row(tokens, "iu"):
        missing.append("one-dimensional integer dataset tokens")
    for name in ("tokenizer", "vocab_size"):
        if name not in attributes:
            missing.append(f"attribute {name}")
    if attributes.get("tokenizer") == "chars" and "chars" not in file:
        missing.append("dataset chars")
    if missing:
        raise InputError(f"{path} is not a token file: no {', no '.join(missing)}", AGAIN)

    # Files of one's own need no layout.
    layout = LAYOUT
    if "layout" in attributes:
        layout = _number(path, attributes, "layout")
    if layout != LAYOUT:
        raise InputError(
            f"{path} has layout {layout}, and this version reads {LAYOUT}",
            AGAIN,
        )
    _check_dataset(path, file, "loss_mask", "biu", tokens.size)
    _check_dataset(path, file, "doc_offsets", "iu", None)


def _number(path: Path, attributes: dict[str, Any], name: str) -> int:
    value = attributes[name]
    is_whole = isinstance(value, (int, np.integer))
    if not is_whole or value < 0:
        raise InputError(
            f"{path}: its attribute {name} is {value!r:.40}, no whole number of 0 or more",
            AGAIN,
        )
    return int(value)


def _text(path: Path, attributes: dict[str, Any], name: str) -> str:
    value = attributes[name]
    if not isinstance(value, str) or not value.isprintable():
        raise InputError(
            f"{path}: its attribute {name} is {ascii(value)[:40]}, no text",
            AGAIN,
        )
    return value


def _alphabet(path: Path, file: h5py.File, vocab_size: int) -> str:
    """Return the characters of a chars tokenizer, one for each id. Raises InputError."""
    dataset = file["chars"]
    chars = ""
    if _is_row(dataset, "u") and dataset.dtype.itemsize == 1:
        raw = dataset[()].tobytes()
        chars = raw.decode(errors="ignore")
    n_different = len(set(chars))
    if len(chars) != vocab_size or n_different != vocab_size:
        raise InputError(
            f"{path}: its dataset chars is no alphabet of {vocab_size} different characters",
            AGAIN,
        )
    return chars


def _check_dataset(
    path: Path,
    file: h5py.File,
    name: str,
    kinds: str,
    length: int | None,
) -> None:
    """Refuse a dataset beside the tokens that is of another kind or length. Raises InputError."""
    dataset = file.get(name)
    if dataset is None:
        return
    is_right = _is_row(dataset, kinds)
    expected = "a row of whole numbers"
    if length is not None:
        is_right = is_right and len(dataset) == length and dataset.dtype.itemsize == 1
        expected = "as many bytes as there are tokens"
    if not is_right:
        raise InputError(f"{path}: its dataset {name} is not {expected}", AGAIN)


def _is_row(dataset: Any, kinds: str) -> bool:
    """True for a one-dimensional dataset of these kinds of numbers (numpy's letters)."""
    return isinstance(dataset, h5py.Dataset) and dataset.ndim == 1 and dataset.dtype.kind in kinds


def check_ids(path: Path | str, contents: Contents, vocab_size: int) -> None:
    """Refuse ids that no embedding has. Raises InputError."""
    lowest = contents.min_id
    highest = contents.max_id
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InputError(
            f"{path} holds token id {wrong}, and its vocabulary ends at {vocab_size - 1}",
            "delete it and prepare it again with the tokenizer that made its ids, or correct its attribute vocab_size",
        )


def _shards(path: Path, file: h5py.File) -> tuple[Shard, ...]:
    """Return the shards with the tokens: this file, or those that it is an index of. Raises InputError."""
    tokens = file["tokens"]
    if not tokens.is_virtual:
        only = Shard(
            path=str(path.resolve()),
            n_tokens=tokens.size,
            offset=_contiguous_offset(path, file, "tokens"),
            mask_offset=_contiguous_offset(path, file, "loss_mask"),
        )
        return (only,)

    # An index: each source of its virtual dataset is a token file beside it.
    sources = sorted(tokens.virtual_sources(), key=_first_token)
    files = []
    for source in sources:
        shard_path = path.parent / source.file_name
        if not shard_path.exists():
            raise InputError(f"{shard_path} is gone, and {path} is an index of it", DAMAGED)
        files.append(open_tokens(shard_path))

    # Together they must be the tokens of the index.
    n_tokens = sum(shard.n_tokens for shard in files)
    if n_tokens != tokens.size:
        raise InputError(f"the shards of {path} do not hold its {tokens.size} tokens", AGAIN)
    dtype = tokens.dtype.str
    tokenizer = file.attrs["tokenizer"]
    shards: list[Shard] = []
    for shard in files:
        if shard.dtype != dtype or shard.tokenizer != tokenizer:
            raise InputError(
                f"{shard.path} is no shard of {path}: its tokens are of another kind",
                AGAIN,
            )
        shards += shard.shards
    return tuple(shards)


def _first_token(source: Any) -> int:
    """Return the position in a virtual dataset at which a source of it begins."""
    starts, *_ = source.vspace.get_regular_hyperslab()
    return starts[0]


def _contiguous_offset(path: Path, file: h5py.File, name: str) -> int | None:
    """Return the byte at which a dataset begins; None unless it is there and contiguous. Raises InputError."""
    if name not in file:
        return None
    dataset = file[name]
    offset = dataset.id.get_offset()
    if offset is None:
        return None
    end = offset + dataset.size * dataset.dtype.itemsize
    size = path.stat().st_size
    if end > size:  # reading a memory map beyond the end of its file kills the process
        raise InputError(f"{path} has {size} bytes of {end}", AGAIN)
    return offset


def _has_dataset(shard: Shard, name: str) -> bool:
    with open_hdf5(Path(shard.path)) as file:
        return name in file


def data_fingerprint(train: TokenFile | None, val: TokenFile) -> str:
    """Return the identity of the data that a run was trained and validated on, or that only validates."""
    if train is None:
        return val.sha256
    return f"{train.sha256}-{val.sha256}"


def data_masks(train: TokenFile, val: TokenFile, documents: str) -> dict[str, str]:
    """Return the identity of what lies beside the tokens and decides which of them are targets, and of what.

    That is the loss mask and, unless documents are packed, where they start. Not part of :func:`data_fingerprint`,
    which runs have in their checkpoints.
    """
    masks = {"loss_mask": f"{_mask_sha256(train)}-{_mask_sha256(val)}"}
    if documents != "packed":
        masks["documents"] = f"{_documents_sha256(train)}-{_documents_sha256(val)}"
    return masks


def _mask_sha256(file: TokenFile) -> str | None:
    """Return the hash of a loss mask, or that of the hashes of its shards."""
    if not file.has_mask:
        return None
    hashes = []
    for shard in file.shards:
        with open_hdf5(Path(shard.path)) as held:
            recorded = held.attrs.get("mask_sha256")
        if recorded is None:
            mask = shard.reader("loss_mask", "u1", "mmap")(0, shard.n_tokens)
            recorded = hashlib.sha256(mask).hexdigest()
        hashes.append(recorded)
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _documents_sha256(file: TokenFile) -> str:
    return hashlib.sha256(file.doc_offsets()).hexdigest()
