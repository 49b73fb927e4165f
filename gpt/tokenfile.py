"""The token file: one HDF5 file with one contiguous dataset ``tokens``, read at memmap speed.

Beside ``tokens`` (uint16 or uint32) lie ``doc_offsets`` (int64: the first token of every document) and, for
a chars tokenizer, ``chars`` (uint8: its alphabet in UTF-8). Attributes: layout, tokenizer, vocab_size, sha256
(of the tokens), max_id, source, split. No times and no paths: equal input gives equal bytes.
"""

import hashlib
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


class TokenWriter:
    """Spools tokens to a raw file beside ``path`` and, on leaving the ``with``, writes ``path`` in one go.

    Raises InputError for an id that the vocabulary does not hold.
    """

    def __init__(self, path: Path, *, tokenizer: str, vocab_size: int, chars: str | None, source: str, split: str):
        self.path = Path(path)
        self.attributes = {
            "layout": LAYOUT,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "source": source,
            "split": split,
        }
        self.chars = chars
        self.vocab_size = vocab_size
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.n_tokens, self.max_id, self.doc_offsets = 0, 0, []
        self.sha256 = hashlib.sha256()
        self.part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.spool_path = self.part.with_suffix(".spool")
        self.spool = open(self.spool_path, "w+b")

    def add_document(self, ids: np.ndarray) -> None:
        """Append the ids of one document."""
        highest = int(ids.max(initial=0))
        if highest >= self.vocab_size:
            raise InputError(
                f"token id {highest} in {self.attributes['source']} is not in the vocabulary of {self.vocab_size}",
                "prepare the data with the tokenizer that made its ids",
            )
        self.max_id = max(self.max_id, highest)
        self.doc_offsets.append(self.n_tokens)
        tokens = ids.astype(self.dtype).tobytes()
        self.sha256.update(tokens)
        self.spool.write(tokens)
        self.n_tokens += len(ids)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, error_type, error, trace) -> None:
        try:
            if error_type is None:
                self._finish()
        finally:
            self.spool.close()
            self.spool_path.unlink()
            self.part.unlink(missing_ok=True)

    def _finish(self) -> None:
        self.spool.seek(0)
        with h5py.File(self.part, "w") as file:
            file.attrs.update(self.attributes)
            file.attrs.update({"sha256": self.sha256.hexdigest(), "max_id": self.max_id})
            tokens = file.create_dataset("tokens", (self.n_tokens,), self.dtype, track_times=False)
            start = 0
            while spooled := self.spool.read(BLOCK * self.dtype.itemsize):
                ids = np.frombuffer(spooled, self.dtype)
                tokens[start : start + len(ids)] = ids
                start += len(ids)
            if self.chars is not None:
                file.create_dataset("chars", data=np.frombuffer(self.chars.encode(), np.uint8), track_times=False)
            file.create_dataset("doc_offsets", data=np.array(self.doc_offsets, "<i8"), track_times=False)
        with open(self.part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.path)


@dataclass(frozen=True, slots=True)
class TokenFile:
    """What a token file says of itself. ``offset`` is None where the dataset is chunked or compressed."""

    path: str
    dtype: str
    n_tokens: int
    offset: int | None
    tokenizer: str
    vocab_size: int
    chars: str | None
    sha256: str

    @property
    def vocabulary(self) -> dict[str, Any]:
        """What must agree for a model to read this file: tokenizer, its size, its alphabet if it has one."""
        return {"name": self.tokenizer, "vocab_size": self.vocab_size, "chars": self.chars}

    def reader(self, read: str = "mmap") -> Callable[[int, int], np.ndarray]:
        """A function (start, stop) -> ids: by memory map, by ``pread``, or through h5py for chunked files."""
        if self.offset is None:
            tokens = h5py.File(self.path)["tokens"]
            return lambda start, stop: tokens[start:stop]
        if read == "mmap":
            # A plain view: slicing np.memmap's own class costs a microsecond more each time.
            tokens = np.memmap(self.path, self.dtype, "r", self.offset, (self.n_tokens,)).view(np.ndarray)
            return lambda start, stop: tokens[start:stop]
        file, itemsize = open(self.path, "rb", buffering=0), np.dtype(self.dtype).itemsize

        def pread(start: int, stop: int) -> np.ndarray:
            held = os.pread(file.fileno(), (stop - start) * itemsize, self.offset + start * itemsize)
            return np.frombuffer(held, self.dtype)

        return pread


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
    offset = tokens.id.get_offset()  # None unless contiguous
    end = 0 if offset is None else offset + tokens.size * tokens.dtype.itemsize
    if end > path.stat().st_size:  # reading a memory map beyond the end of its file kills the process
        raise InputError(f"{path} has {path.stat().st_size} bytes of {end}", AGAIN)
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
        offset=offset,
        tokenizer=str(attributes["tokenizer"]),
        vocab_size=vocab_size,
        chars=bytes(file["chars"][()]).decode() if "chars" in file else None,
        sha256=str(attributes.get("sha256") or hash_tokens(tokens)),
    )


def data_fingerprint(train: TokenFile, val: TokenFile) -> str:
    """What a run was trained and validated on."""
    return f"{train.sha256}-{val.sha256}"


def hash_tokens(tokens: h5py.Dataset) -> str:
    """sha256 of the stored ids, as the attribute ``sha256`` has it."""
    digest = hashlib.sha256()
    for block in _blocks(tokens):
        digest.update(block.tobytes())
    return digest.hexdigest()


def _blocks(tokens: h5py.Dataset) -> Iterator[np.ndarray]:
    return (tokens[start : start + BLOCK] for start in range(0, tokens.size, BLOCK))
