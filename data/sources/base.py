"""The interface of every kind of source, and the kind that a config names.

A new kind is a module here with a class, its line in ``KINDS``, its keys in gpt/config and an option in conf/data.
"""

import functools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from data.pieces import Cursor, Piece, Row, batches, join_rows, pieces_of
from data.sources import files
from data.tokenize import Tokens, cores, in_order, tokenize
from gpt.config.schema import DataConfig
from gpt.errors import InputError

MAX_NAMED = 10  # characters that a refusal lists

KINDS = {  # data.source: module and class, imported when it is needed
    "stdlib": ("data.sources.text", "StandardLibrary"),
    "text": ("data.sources.text", "TextFiles"),
    "jsonl": ("data.sources.jsonl", "JsonLines"),
    "parquet": ("data.sources.hub", "Parquet"),
    "hf": ("data.sources.hub", "Hub"),
    "bin": ("data.sources.tokenbin", "TokenBin"),
    "arithmetic": ("data.sources.arithmetic", "Arithmetic"),
}


class Source(ABC):
    """A sequence of tokens that can be read on from any cursor.

    Raises InputError where what it is to read is missing or not what it should be.
    """

    has_mask = False  # whether some tokens are no targets of the loss

    def __init__(self, data: DataConfig, cache_dir: Path):
        self.data = data
        self.cache_dir = cache_dir
        self.revision: str | None = None  # of the source, where it has any; one that is set is read

    @classmethod
    def open(cls, data: DataConfig, cache_dir: Path) -> "Source":
        """Return the source for a config, which may be of another kind, such as a local copy."""
        return cls(data, cache_dir)

    def resolve(self) -> str | None:
        """Return the revision, looked up now where none is set. Raises InputError."""
        return self.revision

    @abstractmethod
    def inputs(self) -> Any:
        """Return all that the tokens depend on beside the common keys, for JSON: when it changes, all is made anew."""

    @abstractmethod
    def describe(self) -> str:
        """Return what is read, in words."""

    @abstractmethod
    def tokens(self, cursor: Cursor | None, chars: str | None) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
        """Yield the tokens from ``cursor`` on, by split, each time with the cursor after them."""

    @abstractmethod
    def share(self, cursor: Cursor) -> float:
        """Return how much of the source is before ``cursor``, from 0 to 1, as far as can be known."""

    @property
    def alphabet(self) -> str | None:
        """All characters, sorted; None if only reading everything would tell."""
        return None

    def read_alphabet(self) -> str:
        """Return all characters, sorted."""
        return self.alphabet


class Documents(Source):
    """A source of text."""

    @abstractmethod
    def pieces(self, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
        """Yield the documents from ``cursor`` on, in pieces, each with the cursor after it."""

    def tokens(self, cursor: Cursor | None, chars: str | None) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
        # Workers receive this with each batch of pieces.
        work = functools.partial(
            tokenize,
            tokenizer=self.data.tokenizer,
            chars=chars,
            val_fraction=self.data.val_fraction,
            has_mask=self.has_mask,
        )
        return in_order(batches(self.pieces(cursor)), work, self.data.processes or cores())

    def read_alphabet(self) -> str:
        characters: set[str] = set()
        for piece, _ in self.pieces(None):
            characters.update(piece.text)
        return "".join(sorted(characters))

    def check_alphabet(self, chars: str) -> None:
        """Check that an alphabet has all characters of the text. Raises InputError."""
        # How often each other character occurs; mostly there is none.
        alphabet = set(chars)
        n_characters = 0
        others: Counter[str] = Counter()
        for piece, _ in self.pieces(None):
            text = (piece.question or "") + piece.text
            n_characters += len(text)
            for character in set(text) - alphabet:
                others[character] += text.count(character)
        if not others:
            return

        # The most frequent ones by name.
        named = []
        for character, count in others.most_common(MAX_NAMED):
            named.append(f"{character!r} {count:,} times")
        if len(others) > MAX_NAMED:
            named.append("…")
        raise InputError(
            f"data={self.data.name}: {len(others):,} characters, {others.total() / n_characters:.2%} of the text, are "
            f"none of the model's alphabet: {', '.join(named)}",
            f"replace them, or take another text; the model reads {len(chars):,} characters: {chars!r}",
        )


class Rows(Documents):
    """Texts in a table of some kind. Documents are split by their hash, unless the table has a split of its own."""

    @abstractmethod
    def rows(self, cursor: Cursor | None) -> Iterator[Row]:
        """Yield the texts from ``cursor`` on."""

    @property
    def choices(self) -> list[Any]:
        """The keys that say what is read of a row."""
        return [self.data.column, self.data.document_start, self.data.invalid_utf8]

    def pieces(self, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
        # A row is a document, or where a pattern begins documents, a line of one.
        documents = self.rows(cursor)
        if self.data.document_start:
            documents = join_rows(documents, self.data.document_start)
        for document in documents:
            yield from pieces_of(document, self.data.val_fraction)


class FileRows(Rows):
    """Texts in the files of ``data.files``."""

    def __init__(self, data: DataConfig, cache_dir: Path):
        super().__init__(data, cache_dir)
        self.paths = files.require_files(data)

    def inputs(self) -> Any:
        return [files.file_versions(self.paths), *self.choices]

    def describe(self) -> str:
        return files.count_files(self.paths)


def source_of(data: DataConfig, cache_dir: Path) -> Source:
    """Return the source that a config means. Raises InputError when it is not complete."""
    module, name = KINDS[data.source]
    kind: type[Source] = getattr(import_module(module), name)
    return kind.open(data, cache_dir)
