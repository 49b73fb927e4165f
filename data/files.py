"""Files on this machine: which ones a pattern names, their content whether compressed or not, one from a URL."""

import glob
import gzip
import hashlib
import http.client
import io
import itertools
import os
import re
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from gpt.config.schema import DataConfig
from gpt.console import say
from gpt.errors import InputError

TIMEOUT_SECONDS = 30
FETCH_AGAIN = "fetch it again, or leave it out"
STEP = 1 << 11  # compressed bytes taken at once, which become 64 MB at most: a block of 4 bytes can be 128 KB


class Zstandard(io.RawIOBase):
    """The content of a .zst file of any number of frames.

    Raises EOFError where the last frame is cut, which zstandard's own reader takes for the end.
    """

    def __init__(self, path: Path):
        self.file, self.frame, self.held, self.ahead = open(path, "rb"), None, memoryview(b""), b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:
        while not self.held:
            raw = self.ahead or self.file.read(STEP)
            if not raw and self.frame is not None:
                raise EOFError("it ends within a frame")
            if not raw:
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.held, self.ahead = memoryview(self.frame.decompress(raw)), b""
            if self.frame.eof:
                self.ahead, self.frame = self.frame.unused_data, None
        n = min(len(buffer), len(self.held))
        buffer[:n], self.held = self.held[:n], self.held[n:]
        return n


COMPRESSED = {".gz": gzip.open, ".zst": Zstandard}


def make_directory(path: Path) -> None:
    """Make a directory for what is prepared. Raises InputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data.cache_dir cannot be made: {error}", "choose another: data.cache_dir=DIR") from error


def found(patterns: list[str]) -> list[Path]:
    """The files that ``data.files`` names, in its order, globs sorted. Raises InputError where there is none."""
    paths: list[Path] = []
    for pattern in patterns:
        matches = sorted(
            path for path in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(path)
        )
        if not matches:
            raise InputError(
                f"data.files: no file matches {pattern} (from {Path.cwd()})",
                "correct the path; data that is prepared already can be given by its directory: data.dir=…",
            )
        if unreadable := [path for path in matches if not os.access(path, os.R_OK, effective_ids=True)]:
            raise InputError(
                f"data.files: {unreadable[0]} may not be read by you", "get the permission, or leave the file out"
            )
        paths += [Path(match).resolve() for match in matches]
    return paths


def some(data: DataConfig) -> list[Path]:
    """The files of ``data.files``. Raises InputError when none are given."""
    if not data.files:
        raise InputError(
            f"data={data.name} has nothing to read", f"give files or globs: data.files=['*.{data.source}']"
        )
    return found(data.files)


def count(paths: list[Path]) -> str:
    """How many files, in words."""
    return f"{len(paths):,} file{'s' * (len(paths) > 1)}"


def identity(paths: list[Path]) -> list[Any]:
    """What changes when a file does."""
    return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]


@contextmanager
def opened(path: Path, byte: int = 0) -> Iterator[BinaryIO]:
    """A file's content from a byte on, decompressed where it ends in .gz or .zst.

    Raises InputError when it is not what its name says, or cut short.
    """
    if path.suffix not in COMPRESSED:
        with open(path, "rb") as file:
            file.seek(byte)
            yield file
        return
    try:
        with io.BufferedReader(COMPRESSED[path.suffix](path)) as file:
            while skipped := file.read(min(byte, 1 << 20)):
                byte -= len(skipped)
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
        raise InputError(f"{path} is no whole {path.suffix} file: {error}", FETCH_AGAIN) from error


class Extent:
    """How much of some files lies before a place in them."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.begins = list(itertools.accumulate((path.stat().st_size for path in paths), initial=0))

    def share(self, number: int, byte: int) -> float:
        """The share of all bytes before a byte of a file, from 0 to 1; in a compressed one, before its first."""
        is_plain = number < len(self.paths) and self.paths[number].suffix not in COMPRESSED
        return (self.begins[number] + (byte if is_plain else 0)) / max(1, self.begins[-1])


def fetch(url: str, sha256: str | None, path: Path) -> Path:
    """Download a file once. Raises InputError when it cannot be reached or is not the expected one."""
    if path.exists():
        if not path.is_file() or (sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256):
            raise InputError(f"{path} is not the text that was fetched", f"delete it: {url} is fetched again")
        return path
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
        raise InputError(
            f"data.url={url} is no address", "allowed: http://… and https://…; a file of yours is data.files=[FILE]"
        )
    say(f"fetching {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            content = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"{url} cannot be reached: {error}", "give a local copy instead: data.files=[path/to/input.txt]"
        ) from error
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{url} is not the text it was (sha256 differs)", "give a local copy: data.files=[…]")
    make_directory(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
