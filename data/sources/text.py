"""Text files: each is a document."""

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import files
from data.sources.base import Documents
from data.sources.pieces import BLOCK, Cursor, Piece, blocks, clean, split_of
from gpt.config.schema import DataConfig, TextConfig
from gpt.errors import InputError

MIN_DOCUMENTS_TO_HASH = 100  # with fewer, documents are not split by their hash but the text by position
# Tests are not prose, installed packages are not the library, and build settings differ between machines.
EXCLUDED_DIRS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
EXCLUDED_FILES = "_sysconfigdata*"


class TextFiles(Documents):
    """The files of ``data.files``, or the one that ``data.url`` gives.

    Many documents are split by their hash. Of few, the last ``val_fraction`` of all characters is for validation,
    cut inside a document.
    """

    def __init__(self, data: TextConfig, cache_dir: Path):
        super().__init__(data, cache_dir)
        if not (data.files or data.url):
            raise InputError(
                f"data={data.name} has no text to read", "give files or globs: data.files=[a.txt,'books/*.txt']"
            )
        self.invalid = data.invalid_utf8
        self._paths = files.found(data.files)

    @property
    def paths(self) -> list[Path]:
        """The files, fetched now if need be."""
        if not self._paths:
            self._paths = [files.fetch(self.data.url, self.data.sha256, self.fetched)]
        return self._paths

    @property
    def fetched(self) -> Path:
        """Where what ``data.url`` gives lies once it is fetched."""
        return self.cache_dir / f"{self.data.name}-{hashlib.sha256(self.data.url.encode()).hexdigest()[:12]}.txt"

    def inputs(self) -> Any:
        """See :class:`data.sources.base.Source`."""
        return [files.identity(self.paths), self.invalid]

    def describe(self) -> str:
        """See :class:`data.sources.base.Source`."""
        return files.count(self.paths)

    def share(self, cursor: Cursor) -> float:
        """See :class:`data.sources.base.Source`."""
        return self.extent.share(cursor["file"], cursor["byte"])

    @functools.cached_property
    def extent(self) -> files.Extent:
        """The sizes of the files."""
        return files.Extent(self.paths)

    @property
    def alphabet(self) -> str | None:
        """See :class:`data.sources.base.Source`."""
        return self.read_alphabet() if self._paths or self.fetched.exists() else None

    def blocks(self, path: Path, byte: int = 0) -> Iterator[tuple[str, int, bool]]:
        """See :func:`data.sources.pieces.blocks`."""
        with files.opened(path, byte) as file:
            yield from blocks(file, self.invalid, str(path), byte)

    def pieces(self, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
        """See :class:`data.sources.base.Documents`."""
        by_hash = len(self.paths) >= MIN_DOCUMENTS_TO_HASH
        if cursor is None:
            characters = 0 if by_hash else sum(len(text) for path in self.paths for text, *_ in self.blocks(path))
            cursor = {"file": 0, "byte": 0, "left": int(characters * (1 - self.data.val_fraction))}
        byte, left = cursor["byte"], cursor["left"]
        for number in range(cursor["file"], len(self.paths)):
            path, begins, split = self.paths[number], byte == 0, None
            if by_hash and path.stat().st_size > BLOCK:  # of which no piece has the text that is hashed
                split = self._split(path)
            for text, end, is_last in self.blocks(path, byte):
                parts = [(text, split, end)]
                if not by_hash:
                    head, tail = text[:left], text[left:]
                    left -= len(head)
                    parts = [(head, "train", end - len(tail.encode(errors="surrogateescape"))), (tail, "val", end)]
                for part, where, stop in parts:
                    if part or by_hash:
                        at_end = is_last and stop == end
                        after = {"file": number + 1, "byte": 0} if at_end else {"file": number, "byte": stop}
                        yield Piece(clean(part), begins, where), after | {"left": left}
                        begins = False
            byte = 0

    def _split(self, path: Path) -> str:
        digest = hashlib.sha256()
        for text, *_ in self.blocks(path):
            digest.update(clean(text).encode())
        return split_of(digest.digest(), self.data.val_fraction)


class StandardLibrary(TextFiles):
    """The source text of the running Python's standard library: real text on every machine."""

    def __init__(self, data: DataConfig, cache_dir: Path):
        Documents.__init__(self, data, cache_dir)
        self.invalid, self._paths = "refuse", library()


@functools.cache
def library() -> list[Path]:
    """All Python files of the standard library in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not EXCLUDED_DIRS & set(path.relative_to(root).parts) and not path.match(EXCLUDED_FILES)
    ]
