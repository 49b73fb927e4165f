"""Text files of the user's own, or one fetched from a URL: each file is a document."""

import glob
import hashlib
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from data.tokenize import Cursor, Piece, split_of
from gpt.errors import InputError
from gpt.schema import DataConfig

TIMEOUT_SECONDS = 30
BLOCK = 1 << 20  # bytes that are read, and given to a tokenizer, at once
MAX_BLOCK = 1 << 24  # where no shorter piece can be cut off
MIN_DOCUMENTS_TO_HASH = 100  # with fewer, documents are not split by their hash but the text by position
# Between a character that is no white space and a space or newline, every tokenizer here ends a word (of GPT-2's
# pattern, no alternative goes on there, and none looks back), so that pieces have the tokens of the whole.
CUT_ASCII, CUT = re.compile(rb"[!-~](?=[ \n])"), re.compile(r"\S(?=[ \n])")


def files(data: DataConfig, cache_dir: Path) -> list[Path]:
    """The files that ``data.files`` names, in its order (globs sorted), or the one that ``data.url`` gives.

    Raises InputError when a pattern matches nothing, or nothing can be fetched.
    """
    if not data.files:
        return [fetch(data, cache_dir)]
    found = []
    for pattern in data.files:
        matches = sorted(
            path for path in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(path)
        )
        if not matches:
            raise InputError(
                f"data.files: no file matches {pattern} (from {Path.cwd()})",
                "correct the path; data that is prepared already can be given by its directory: data.dir=…",
            )
        found += [Path(match).resolve() for match in matches]
    return found


def fetched(data: DataConfig, cache_dir: Path) -> Path:
    """Where what ``data.url`` gives lies once it is fetched."""
    return cache_dir / f"{data.name}.txt"


def fetch(data: DataConfig, cache_dir: Path) -> Path:
    """Download ``data.url`` once. Raises InputError when it cannot be reached or is not the expected text."""
    if data.url is None:
        raise InputError(
            f"data={data.name} has no text to read", "give files or globs: data.files=[a.txt,'books/*.txt']"
        )
    path = fetched(data, cache_dir)
    if path.exists():
        return path
    print(f"fetching {data.url}", flush=True)
    try:
        with urllib.request.urlopen(data.url, timeout=TIMEOUT_SECONDS) as response:
            content = response.read()
    except OSError as error:
        raise InputError(
            f"{data.url} cannot be reached: {error}",
            "give a local copy instead: data.files=[path/to/input.txt]",
        ) from error
    if data.sha256 and hashlib.sha256(content).hexdigest() != data.sha256:
        raise InputError(f"{data.url} is not the text it was (sha256 differs)", "give a local copy: data.files=[…]")
    cache_dir.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)
    return path


def blocks(path: Path, byte: int = 0) -> Iterator[tuple[str, int]]:
    """A file's text from a byte on, in pieces cut between words, each with the byte where it ends.

    Raises InputError where it is not UTF-8.
    """
    with open(path, "rb") as file:
        file.seek(byte)
        held, is_last = b"", False
        while not is_last:
            read = file.read(BLOCK)
            held, is_last = held + read, len(read) < BLOCK
            cut = len(held) if is_last else _cut(held)
            if cut or byte == 0:
                yield _decode(held[:cut], path, byte), byte + cut
            byte, held = byte + cut, held[cut:]


def _cut(held: bytes) -> int:
    """How many bytes to take: up to a place between words, or 0 to read on first."""
    for begin in (max(0, len(held) - 4096), 0):
        if ends := [match.end() for match in CUT_ASCII.finditer(held, begin)]:
            return ends[-1]
    whole = len(held)
    while held[whole - 1] & 0xC0 == 0x80:  # not inside a character
        whole -= 1
    text = held[: whole - 1].decode(errors="replace")
    if ends := [match.end() for match in CUT.finditer(text)]:
        return len(text[: ends[-1]].encode())
    return 0 if len(held) < MAX_BLOCK else whole - 1


def _decode(held: bytes, path: Path, byte: int) -> str:
    try:
        return held.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: {error.reason} at byte {byte + error.start}", "convert it, or leave it out"
        ) from error


def characters(path: Path) -> int:
    """How many characters a file has."""
    return sum(len(text) for text, _ in blocks(path))


def pieces(files: list[Path], val_fraction: float, cursor: Cursor | None) -> Iterator[tuple[Piece, Cursor]]:
    """The documents from where ``cursor`` stands, in pieces, each with the cursor after it.

    Many documents are split by their hash. Of few, the last ``val_fraction`` of all characters is for validation,
    cut inside a document.
    """
    by_hash = len(files) >= MIN_DOCUMENTS_TO_HASH
    if cursor is None:
        n_train = 0 if by_hash else int(sum(map(characters, files)) * (1 - val_fraction))
        cursor = {"file": 0, "byte": 0, "left": n_train}
    byte, left = cursor["byte"], cursor["left"]
    for number in range(cursor["file"], len(files)):
        path, begins = files[number], byte == 0
        size, split = path.stat().st_size, None
        if by_hash and size > BLOCK:  # of which no piece has the text that is hashed
            with open(path, "rb") as file:
                split = split_of(hashlib.file_digest(file, "sha256").digest(), val_fraction)
        for text, end in blocks(path, byte):
            parts = [(text, split, end)]
            if not by_hash:
                head, tail = text[:left], text[left:]
                left -= len(head)
                parts = [(head, "train", end - len(tail.encode())), (tail, "val", end)]
            for part, where, stop in parts:
                if part or by_hash:
                    after = {"file": number, "byte": stop} if stop < size else {"file": number + 1, "byte": 0}
                    yield Piece(part, begins, where), after | {"left": left}
                    begins = False
        byte = 0
