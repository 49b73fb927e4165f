"""Files on this machine: which ones a pattern names, their content whether compressed or not, one from a URL."""

import glob
import gzip
import hashlib
import io
import itertools
import os
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from gpt.errors import InputError
from gpt.schema import DataConfig

TIMEOUT_SECONDS = 30
FETCH_AGAIN = "fetch it again, or leave it out"
COMPRESSED = {".gz": gzip.open, ".zst": lambda path: zstandard.ZstdDecompressor().stream_reader(
    open(path, "rb"), read_across_frames=True
)}  # fmt: skip


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
        raise InputError(
            f"{path} is no whole {path.suffix} file: {error}", "fetch it again, or leave it out"
        ) from error


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
        return path
    print(f"fetching {url}", flush=True)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            content = response.read()
    except OSError as error:
        raise InputError(
            f"{url} cannot be reached: {error}", "give a local copy instead: data.files=[path/to/input.txt]"
        ) from error
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{url} is not the text it was (sha256 differs)", "give a local copy: data.files=[…]")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)
    return path
