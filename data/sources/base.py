"""What every kind of source has in common, and which kind a config means."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from data import files
from data.sources.pieces import Cursor, Piece, Row, batches, joined, pieces_of
from data.tokenize import Tokens, cores, in_order, tokenize
from gpt.config.schema import DataConfig

KINDS = {
    "stdlib": ("data.sources.text", "StandardLibrary"),
    "text": ("data.sources.text", "TextFiles"),
    "jsonl": ("data.sources.jsonl", "JsonLines"),
    "parquet": ("data.sources.hub", "Parquet"),
    "hf": ("data.sources.hub", "Hub"),
    "bin": ("data.sources.tokenbin", "TokenBin"),
    "arithmetic": ("data.sources.arithmetic", "Arithmetic"),
}


class Source(ABC):
    """Where tokens come from, one after the other, from any cursor on.

    Raises InputError where what it is to read is missing or not what it should be.
    """

    has_mask = False  # whether some tokens are no targets of the loss

    def __init__(self, data: DataConfig, cache_dir: Path):
        self.data, self.cache_dir = data, cache_dir
        self.revision: str | None = None  # of the source, where it has any; one that is set is read

    def resolve(self) -> str | None:
        """The revision, found out now where none is set. Raises InputError."""
        return self.revision

    @abstractmethod
    def inputs(self) -> Any:
        """All that the tokens depend on beside the common keys, for JSON: when it changes, data is prepared anew."""

    @abstractmethod
    def describe(self) -> str:
        """What is read, in words."""

    @abstractmethod
    def tokens(self, cursor: Cursor | None, chars: str | None) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
        """The tokens from ``cursor`` on, by split, each time with the cursor after them."""

    @abstractmethod
    def share(self, cursor: Cursor) -> float:
        """How much of the source lies before ``cursor``, from 0 to 1, as far as can be known."""

    @property
    def alphabet(self) -> str | None:
        """All characters, sorted; None where only a long reading would tell."""
        return None

    def read_alphabet(self) -> str:
        """All characters, sorted."""
        return self.alphabet


class Documents(Source):
    """A source of text."""

    @abstractmethod
    def pieces(self, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
        """The documents from ``cursor`` on, in pieces, each with the cursor after it."""

    def tokens(self, cursor: Cursor | None, chars: str | None) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
        """See :class:`Source`."""
        work = functools.partial(
            tokenize,
            tokenizer=self.data.tokenizer,
            chars=chars,
            val_fraction=self.data.val_fraction,
            has_mask=self.has_mask,
        )
        return in_order(batches(self.pieces(cursor)), work, self.data.processes or cores())

    def read_alphabet(self) -> str:
        """See :class:`Source`."""
        return "".join(sorted(set().union(*(piece.text for piece, _ in self.pieces(None)))))


class Rows(Documents):
    """Texts in a table of some kind. Documents are split by their hash, unless the table has a split of its own."""

    @abstractmethod
    def rows(self, cursor: Cursor | None) -> Iterator[Row]:
        """The texts from ``cursor`` on."""

    @property
    def choices(self) -> list[Any]:
        """The keys that say what is taken of a row."""
        return [self.data.column, self.data.document_start, self.data.invalid_utf8]

    def pieces(self, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
        """See :class:`Documents`."""
        rows, pattern = self.rows(cursor), self.data.document_start
        for document in joined(rows, pattern) if pattern else rows:
            yield from pieces_of(document, self.data.val_fraction)


class FileRows(Rows):
    """Texts in the files of ``data.files``."""

    def __init__(self, data: DataConfig, cache_dir: Path):
        super().__init__(data, cache_dir)
        self.paths = files.some(data)

    def inputs(self) -> Any:
        """See :class:`Source`."""
        return [files.identity(self.paths), *self.choices]

    def describe(self) -> str:
        """See :class:`Source`."""
        return files.count(self.paths)


def source_of(data: DataConfig, cache_dir: Path) -> Source:
    """The source that a config means. Raises InputError when it is not complete."""
    kind = data.source
    if kind == "hf" and data.files:  # a local copy, read as the hub's own files are
        kind = "parquet" if all(name.endswith(".parquet") for name in data.files) else "jsonl"
    module, name = KINDS[kind]
    return getattr(import_module(module), name)(data, cache_dir)
