"""Text files: each is a document."""

import functools
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.pieces import BLOCK, Cursor, Piece, blocks, clean, split_of
from data.sources import files
from data.sources.base import Documents
from gpt.config.schema import DataConfig, TextConfig
from gpt.errors import InputError
from gpt.fetch import fetch

MIN_DOCUMENTS_TO_HASH = 100  # with fewer, documents are not split by their hash but the text by position
# Tests are not prose, installed packages are not the library, and build settings differ between machines.
EXCLUDED_DIRS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
EXCLUDED_FILES = "_sysconfigdata*"
ADDRESS = r"https?://[^/\s]+(/\S*)?"


class TextFiles(Documents):
    """The files of ``data.files``, or the one at ``data.url``.

    Many documents are split by their hash. Of few, the last ``val_fraction`` of all characters is for validation,
    cut inside a document.
    """

    def __init__(self, data: TextConfig, cache_dir: Path):
        super().__init__(data, cache_dir)
        if not (data.files or data.url):
            raise InputError(
                f"data={data.name} has no text to read",
                "give files or globs: data.files=[a.txt,'books/*.txt']",
            )
        if data.url and not re.fullmatch(ADDRESS, data.url):
            raise InputError(
                f"data.url={data.url} is no address",
                "allowed: http://… and https://…; a file of yours is data.files=[FILE]",
            )
        self.invalid = data.invalid_utf8
        self._paths = files.match_files(data.files)

    @property
    def paths(self) -> list[Path]:
        """The files, fetched now if need be."""
        if not self._paths:
            cure = "give a local copy instead: data.files=[path/to/input.txt]"
            path = fetch(self.data.url, self.data.sha256, self.fetched, cure)
            self._paths = [path]
        return self._paths

    @property
    def fetched(self) -> Path:
        """The file to which ``data.url`` is fetched."""
        digest = hashlib.sha256(self.data.url.encode())
        key = digest.hexdigest()[:12]
        return self.cache_dir / f"{self.data.name}-{key}.txt"

    def inputs(self) -> Any:
        return [files.file_versions(self.paths), self.invalid]

    def describe(self) -> str:
        return files.count_files(self.paths)

    def share(self, cursor: Cursor) -> float:
        return self._extent.share(cursor["file"], cursor["byte"])

    @functools.cached_property
    def _extent(self) -> files.Extent:
        return files.Extent(self.paths)

    @property
    def alphabet(self) -> str | None:
        is_here = self._paths or self.fetched.exists()
        return self.read_alphabet() if is_here else None

    def pieces(self, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
        # To split by position, all characters have to be counted first.
        by_hash = len(self.paths) >= MIN_DOCUMENTS_TO_HASH
        if cursor is None:
            n_train = 0
            if not by_hash:
                n_characters = self._count_characters()
                n_train = int(n_characters * (1 - self.data.val_fraction))
            cursor = {"file": 0, "byte": 0, "left": n_train}
        byte = cursor["byte"]
        left = cursor["left"]  # characters for training that are still to come, where the text is split by position

        # File after file: each is a document.
        for number in range(cursor["file"], len(self.paths)):
            path = self.paths[number]
            begins = byte == 0
            split = None
            if by_hash and path.stat().st_size > BLOCK:  # no piece has the text that is hashed
                split = self._split(path)
            for text, end, is_last in self._blocks(path, byte):
                # A block is one piece, or two where the validation begins within it.
                parts = [(text, split, end)]
                if not by_hash:
                    parts = _cut_for_validation(text, left, end)
                    left -= min(left, len(text))
                for part, part_split, stop in parts:
                    if not part and not by_hash:
                        continue

                    # After the last piece of a file comes the next one.
                    after = {"file": number, "byte": stop, "left": left}
                    if is_last and stop == end:
                        after = {"file": number + 1, "byte": 0, "left": left}
                    piece = Piece(clean(part), begins, part_split)
                    yield piece, after
                    begins = False
            byte = 0

    def _blocks(self, path: Path, byte: int = 0) -> Iterator[tuple[str, int, bool]]:
        """Yield the text of a file as :func:`data.pieces.blocks` does."""
        where = str(path)
        with files.open_file(path, byte) as file:
            yield from blocks(file, self.invalid, where, byte)

    def _count_characters(self) -> int:
        n_characters = 0
        for path in self.paths:
            for text, *_ in self._blocks(path):
                n_characters += len(text)
        return n_characters

    def _split(self, path: Path) -> str:
        """Return the split of a file that is too long for one piece, by the hash of its text."""
        digest = hashlib.sha256()
        for text, *_ in self._blocks(path):
            digest.update(clean(text).encode())
        return split_of(digest.digest(), self.data.val_fraction)


def _cut_for_validation(text: str, left: int, end: int) -> list[tuple[str, str, int]]:
    """Return the first ``left`` characters for training, the others for validation, and the bytes where they end."""
    head = text[:left]
    tail = text[left:]
    n_bytes = len(tail.encode(errors="surrogateescape"))
    cut = end - n_bytes
    return [
        (head, "train", cut),
        (tail, "val", end),
    ]


class StandardLibrary(TextFiles):
    """The source text of the running Python's standard library: real text on every machine."""

    def __init__(self, data: DataConfig, cache_dir: Path):
        Documents.__init__(self, data, cache_dir)
        self.invalid = "refuse"
        self._paths = library()


@functools.cache
def library() -> list[Path]:
    """Return all Python files of the standard library in a fixed order."""
    paths = []
    for directory, subdirectories, _ in os.walk(sysconfig.get_path("stdlib")):
        subdirectories[:] = set(subdirectories) - EXCLUDED_DIRS  # not to walk through all installed packages
        for path in Path(directory).glob("*.py"):
            if not path.match(EXCLUDED_FILES):
                paths.append(path)
    return sorted(paths)
