"""Tokens that others have made: nanoGPT's .bin, build-nanogpt's .npy and llm.c's .bin."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data import files
from data.sources.base import Source
from data.sources.pieces import Cursor
from data.tokenize import Tokens
from gpt.config.schema import DataConfig
from gpt.errors import InputError
from gpt.tokens.tokenizer import end_of_text, get_tokenizer

MAGIC, VERSION, HEADER = 20240520, 1, 256  # llm.c, llmc/dataloader.h: int32 numbers in front of its uint16 tokens
BLOCK = 1 << 20  # tokens at a time


class TokenBin(Source):
    """The files of ``data.files``: those with val in their name are for validation.

    Documents start at end-of-text where the first token is one (build-nanogpt, llm.c), else after it (nanoGPT).
    """

    def __init__(self, data: DataConfig, cache_dir: Path):
        super().__init__(data, cache_dir)
        self.paths = files.some(data)
        if data.tokenizer == "chars":
            raise InputError(
                "data=bin holds ids, and says nothing of the characters that data.tokenizer=chars needs",
                "give the text itself: data=text data.files=[…] data.tokenizer=chars",
            )
        self.separator = end_of_text(get_tokenizer(data.tokenizer))
        by_split = {"train": [], "val": []}
        for path in self.paths:
            by_split["val" if "val" in path.stem else "train"].append(tokens_in(path))
        if not all(by_split.values()):
            raise InputError(
                f"data.files: {files.count(self.paths)}, of which {len(by_split['val'])} for validation",
                "files with val in their name are for validation, all others for training: give both",
            )
        self.parts = [(split, ids) for split, arrays in by_split.items() for ids in arrays]
        self.n_tokens = sum(len(ids) for _, ids in self.parts)

    def inputs(self) -> Any:
        """See :class:`data.sources.base.Source`."""
        return files.identity(self.paths)

    def describe(self) -> str:
        """See :class:`data.sources.base.Source`."""
        return files.count(self.paths)

    def share(self, cursor: Cursor) -> float:
        """See :class:`data.sources.base.Source`."""
        return (sum(len(ids) for _, ids in self.parts[: cursor["part"]]) + cursor["token"]) / self.n_tokens

    def tokens(self, cursor: Cursor | None, chars: str | None) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
        """See :class:`data.sources.base.Source`."""
        cursor = cursor or {"part": 0, "token": 0}
        begin = cursor["token"]
        for number in range(cursor["part"], len(self.parts)):
            split, ids = self.parts[number]
            for start in range(begin, len(ids), BLOCK):
                block = np.array(ids[start : start + BLOCK])
                yield (
                    {split: Tokens(block, self.starts(number, start, block))},
                    {"part": number, "token": start + len(block)},
                )
            begin = 0

    def starts(self, number: int, start: int, block: np.ndarray) -> np.ndarray:
        """Where documents start in a block of a part."""
        split, ids = self.parts[number]
        first = next(part for name, part in self.parts if name == split)
        if first[0] == self.separator:
            return np.flatnonzero(block == self.separator)
        before = self.separator  # of the split's first token
        if start or (self.parts[number - 1][0] == split and number):
            before = ids[start - 1] if start else self.parts[number - 1][1][-1]
        return np.flatnonzero(np.concatenate([[before], block[:-1]]) == self.separator)


def tokens_in(path: Path) -> np.ndarray:
    """The ids of a file, mapped into memory. Raises InputError when it is in no known format."""
    size = path.stat().st_size
    if path.suffix == ".npy":
        try:
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path} is no array of numpy: {error}", files.FETCH_AGAIN) from error
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"{path} holds {ids.dtype} of shape {ids.shape}", "expected: a row of whole numbers")
        return ids
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
