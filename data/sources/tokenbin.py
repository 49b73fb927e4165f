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
from gpt.errors import InputError
from gpt.tokens.tokenizer import end_of_text, get_tokenizer

# llm.c, llmc/dataloader.h: int32 numbers in front of its uint16 tokens; the first three are magic, version and count.
HEADER = 256
MAGIC = 20240520
VERSION = 1
BLOCK = 1 << 20  # tokens at a time


class TokenBin(Source):
    """The files of ``data.files``: those with val in their name are for validation.

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
        by_split = {"train": [], "val": []}
        for path in self.paths:
            split = "val" if "val" in path.stem else "train"
            by_split[split].append(_map_tokens(path))
        if not all(by_split.values()):
            raise InputError(
                f"data.files: {files.count_files(self.paths)}, of which {len(by_split['val'])} for validation",
                "files with val in their name are for validation, all others for training: give both",
            )
        self.parts: list[tuple[str, np.ndarray]] = []
        for split, arrays in by_split.items():
            self.parts += [(split, ids) for ids in arrays]
        self.n_tokens = sum(len(ids) for _, ids in self.parts)

    def inputs(self) -> Any:
        return files.file_versions(self.paths)

    def describe(self) -> str:
        return files.count_files(self.paths)

    def share(self, cursor: Cursor) -> float:
        before = sum(len(ids) for _, ids in self.parts[: cursor["part"]])
        return (before + cursor["token"]) / self.n_tokens

    def tokens(self, cursor: Cursor | None, chars: str | None) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
        # Block by block, from the token in the part where the cursor is.
        cursor = cursor or {"part": 0, "token": 0}
        begin = cursor["token"]
        for number in range(cursor["part"], len(self.parts)):
            split, ids = self.parts[number]
            for start in range(begin, len(ids), BLOCK):
                block = np.array(ids[start : start + BLOCK])
                tokens = Tokens(block, self._starts(number, start, block))
                yield {split: tokens}, {"part": number, "token": start + len(block)}
            begin = 0

    def _starts(self, number: int, start: int, block: np.ndarray) -> np.ndarray:
        """Return the positions in a block of a part at which documents start."""
        # Documents begin with end-of-text.
        split, ids = self.parts[number]
        first = next(part for name, part in self.parts if name == split)
        if first[0] == self.separator:
            return np.flatnonzero(block == self.separator)

        # Documents end with it: they start where it is the token before.
        before = self.separator  # in front of the split's first token
        if start:
            before = ids[start - 1]
        elif number and self.parts[number - 1][0] == split:
            before = self.parts[number - 1][1][-1]
        previous = np.concatenate([[before], block[:-1]])
        return np.flatnonzero(previous == self.separator)


def _map_tokens(path: Path) -> np.ndarray:
    """Map the ids of a file into memory. Raises InputError when it is in no known format."""
    if path.suffix == ".npy":
        return _map_npy(path)

    # llm.c's files have a header, nanoGPT's are tokens alone.
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", HEADER)
    if len(header) == HEADER and header[0] == MAGIC:
        expected = HEADER * 4 + int(header[2]) * 2
        if header[1] != VERSION or size != expected:
            raise InputError(
                f"{path} is llm.c's version {header[1]} with {header[2]:,} tokens, and has {size:,} bytes",
                f"expected: version {VERSION} and {expected:,} bytes; {files.FETCH_AGAIN}",
            )
        return np.memmap(path, "<u2", "r", HEADER * 4)
    if size == 0 or size % 2:
        raise InputError(f"{path} has {size:,} bytes", "expected: nanoGPT's tokens of two bytes, or llm.c's header")
    return np.memmap(path, "<u2", "r")


def _map_npy(path: Path) -> np.ndarray:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is no array of numpy: {error}", files.FETCH_AGAIN) from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"{path} holds {ids.dtype} of shape {ids.shape}", "expected: a row of whole numbers")
    return ids
