"""Files on this machine: those that a pattern names, their content whether compressed or not."""

import glob
import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from gpt.config.schema import DataConfig
from gpt.errors import InputError

FETCH_AGAIN = "fetch it again, or leave it out"
STEP = 1 << 11  # compressed bytes taken at once, which become 64 MB at most: a block of 4 bytes can be 128 KB


class Zstandard(io.RawIOBase):
    """The content of a .zst file of any number of frames.

    Raises EOFError where the last frame is cut, which zstandard's own reader takes for the end.
    """

    def __init__(self, path: Path):
        self.file = open(path, "rb")
        self.frame = None  # the decompressor of the frame that is being read
        self.content = memoryview(b"")  # decompressed, and not yet read
        self.compressed = b""  # the beginning of the next frame

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:
        # A chunk of compressed bytes may give no content yet.
        while not self.content:
            raw = self.compressed or self.file.read(STEP)
            if not raw:
                if self.frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._decompress(raw)
        n_bytes = min(len(buffer), len(self.content))
        buffer[:n_bytes] = self.content[:n_bytes]
        self.content = self.content[n_bytes:]
        return n_bytes

    def _decompress(self, raw: bytes) -> None:
        if self.frame is None:
            self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.content = memoryview(self.frame.decompress(raw))
        self.compressed = b""
        if self.frame.eof:
            self.compressed = self.frame.unused_data
            self.frame = None


COMPRESSED = {".gz": gzip.open, ".zst": Zstandard}


def make_directory(path: Path) -> None:
    """Make a directory for prepared data. Raises InputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"data.cache_dir cannot be made: {error}",
            "choose another: data.cache_dir=DIR",
        ) from error


def match_files(patterns: list[str]) -> list[Path]:
    """Return the files that ``data.files`` names, in its order, globs sorted. Raises InputError if there is none."""
    # Each pattern must match, and all that it matches must be readable.
    paths: list[Path] = []
    for pattern in patterns:
        matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        names = [name for name in matches if os.path.isfile(name)]
        if not names and matches and os.path.isdir(matches[0]):
            raise InputError(
                f"data.files: {pattern} is a directory, and files are named",
                f"all of a kind: data.files='{matches[0].rstrip('/')}/*.txt' (below it too: **/*.txt); data that is "
                "prepared already: data.dir=…",
            )
        if not names:
            raise InputError(
                f"data.files: no file matches {pattern} (from {Path.cwd()})",
                "correct the path; data that is prepared already can be given by its directory: data.dir=…",
            )
        for name in names:
            if not os.access(name, os.R_OK, effective_ids=True):
                raise InputError(
                    f"data.files: {name} may not be read by you",
                    "get the permission, or leave the file out",
                )
            paths.append(Path(name).resolve())
    return paths


def require_files(data: DataConfig) -> list[Path]:
    """Return the files of ``data.files``. Raises InputError when none are given."""
    if not data.files:
        raise InputError(
            f"data={data.name} has nothing to read",
            f"give files or globs: data.files=['*.{data.source}']",
        )
    return match_files(data.files)


def count_files(paths: list[Path]) -> str:
    """Return the number of files, in words."""
    return f"{len(paths):,} file{'s' * (len(paths) > 1)}"


def file_versions(paths: list[Path]) -> list[Any]:
    """Return path, size and time of each file: they change when its content does."""
    versions = []
    for path in paths:
        stat = path.stat()
        versions.append((str(path), stat.st_size, stat.st_mtime_ns))
    return versions


@contextmanager
def open_file(path: Path, byte: int = 0) -> Iterator[BinaryIO]:
    """Open a file's content at a byte, decompressed where its name ends in .gz or .zst.

    Raises InputError when it is not what its name says, or cut short.
    """
    # Plain files have a seek.
    if path.suffix not in COMPRESSED:
        with open(path, "rb") as file:
            file.seek(byte)
            yield file
        return

    # Compressed ones are read up to the byte.
    try:
        with io.BufferedReader(COMPRESSED[path.suffix](path)) as file:
            while skipped := file.read(min(byte, 1 << 20)):
                byte -= len(skipped)
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
        raise InputError(
            f"{path} is no whole {path.suffix} file: {error}",
            FETCH_AGAIN,
        ) from error


class Extent:
    """The sizes of some files, to tell how far they have been read."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        sizes = [path.stat().st_size for path in paths]
        self.begins = list(itertools.accumulate(sizes, initial=0))

    def share(self, number: int, byte: int) -> float:
        """Return the share of all bytes before a byte of a file, from 0 to 1; in a compressed one, before its first."""
        is_plain = number < len(self.paths) and self.paths[number].suffix not in COMPRESSED
        before = self.begins[number] + (byte if is_plain else 0)
        return before / max(1, self.begins[-1])
