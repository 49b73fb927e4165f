"""Tokens made elsewhere: nanoGPT's .bin, build-nanogpt's .npy and llm.c's .bin."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.pieces import Cursor
from data.sources import files
from data.sources.base import Source
from data.tokenize import Tokens
from gpt.config.schema import DataConfig
from gpt.console import say
from gpt.errors import InputError
from gpt.tokens.tokenizer import VOCAB_SIZES, end_of_text, get_tokenizer

# llm.c, llmc/dataloader.h: int32 numbers in front of its uint16 tokens; the first three are magic, version and count.
HEADER = 256
MAGIC = 20240520
VERSION = 1
BLOCK = 1 << 20  # tokens at a time


class TokenBin(Source):
    """The files of ``data.files``: those with val in their name are for validation, or all of them.

    Documents start at end-of-text where the first token is one (build-nanogpt, llm.c), else after it (nanoGPT).
    """

    def __init__(self, data: DataConfig, cache_dir: Path):
        super().__init__(data, cache_dir)
        self.paths = files.require_files(data)
        if data.tokenizer == "chars":
            raise InputError(
                "data=bin holds ids, and says nothing of the characters that data.tokenizer=chars needs",
                "give the text itself: data=text data.files=[…] data.tokenizer=chars",
            )
        self.separator = end_of_text(get_tokenizer(data.tokenizer))

        # All files for training come first, then those for validation.
        by_split: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        for path in self.paths:
            is_val = "val" in path.stem or data.val_fraction == 1
            by_split["val" if is_val else "train"].append(_map_tokens(path))
        if not all(by_split.values()) and data.val_fraction < 1:
            raise InputError(
                f"data.files: {files.count_files(self.paths)}, of which {len(by_split['val'])} for validation",
                "files with val in their name are for validation, all others for training: give both",
            )
        self.parts: list[tuple[str, np.ndarray]] = []
        self.n_tokens = 0
        for split, arrays in by_split.items():
            for ids in arrays:
                self.parts.append((split, ids))
                self.n_tokens += len(ids)

    def inputs(self) -> Any:
        return files.file_versions(self.paths)

    def describe(self) -> str:
        return files.count_files(self.paths)

    def share(self, cursor: Cursor) -> float:
        n_tokens = cursor["token"]
        for _, ids in self.parts[: cursor["part"]]:
            n_tokens += len(ids)
        return n_tokens / self.n_tokens

    def tokens(self, cursor: Cursor | None, chars: str | None) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
        # Block by block, from the token in the part where the cursor is.
        cursor = cursor or {"part": 0, "token": 0}
        begin = cursor["token"]
        highest = 0
        for number in range(cursor["part"], len(self.parts)):
            split, ids = self.parts[number]
            for start in range(begin, len(ids), BLOCK):
                block = np.array(ids[start : start + BLOCK])
                highest = max(highest, int(block.max()))
                starts = self._starts(number, start, block)
                tokens = Tokens(block, starts)
                end = start + len(block)
                yield {split: tokens}, {"part": number, "token": end}
            begin = 0

        # The files do not say what made their ids. No text of some length has only the first of GPT-2's.
        n_bytes = VOCAB_SIZES["bytes"]
        if self.data.tokenizer != "bytes" and highest < n_bytes:
            say(
                f"warning: all ids are below {n_bytes}, and are read as {self.data.tokenizer}; "
                "if they are bytes, give data.tokenizer=bytes"
            )

    def _starts(self, number: int, start: int, block: np.ndarray) -> np.ndarray:
        """Return the positions in a block of a part at which documents start."""
        # Documents begin with end-of-text.
        split, ids = self.parts[number]
        if self._first_token(split) == self.separator:
            return np.flatnonzero(block == self.separator)

        # Documents end with it: they start where it is the token before.
        before = self.separator  # in front of the split's first token
        if start:
            before = ids[start - 1]
        elif number:
            split_before, ids_before = self.parts[number - 1]
            if split_before == split:
                before = ids_before[-1]
        previous = np.concatenate([[before], block[:-1]])
        return np.flatnonzero(previous == self.separator)

    def _first_token(self, split: str) -> int:
        """Return the first token of a split."""
        for name, ids in self.parts:
            if name == split:
                return ids[0]
        raise KeyError(split)


def _map_tokens(path: Path) -> np.ndarray:
    """Map the ids of a file into memory. Raises InputError when it is in no known format."""
    if path.suffix == ".npy":
        return _map_npy(path)

    # llm.c's files have a header, nanoGPT's are tokens alone.
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", HEADER)
    if len(header) == HEADER and header[0] == MAGIC:
        _, version, n_tokens = header[:3].tolist()
        expected = header.nbytes + n_tokens * 2
        if version != VERSION or size != expected:
            raise InputError(
                f"{path} is llm.c's version {version} with {n_tokens:,} tokens, and has {size:,} bytes",
                f"expected: version {VERSION} and {expected:,} bytes; {files.FETCH_AGAIN}",
            )
        return np.memmap(path, "<u2", "r", header.nbytes)

    # nanoGPT's: one token at least, of two bytes each.
    is_whole = size % 2 == 0
    if size == 0 or not is_whole:
        raise InputError(
            f"{path} has {size:,} bytes",
            "expected: nanoGPT's tokens of two bytes, or llm.c's header",
        )
    return np.memmap(path, "<u2", "r")


def _map_npy(path: Path) -> np.ndarray:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path} is no array of numpy: {error}",
            files.FETCH_AGAIN,
        ) from error
    is_integer = ids.dtype.kind in "iu"
    if ids.ndim != 1 or not is_integer:
        raise InputError(
            f"{path} holds {ids.dtype} of shape {ids.shape}",
            "expected: a row of whole numbers",
        )
    return ids
