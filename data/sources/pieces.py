"""Documents in pieces that a tokenizer can take, however long they are."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from gpt.errors import InputError

BLOCK = 1 << 20  # bytes that are read, and given to a tokenizer, at once
MAX_BLOCK = 1 << 24  # where no shorter piece can be cut off
MAX_DOCUMENT = 1 << 28  # of a line of JSON or of rows put together, which are held in memory several times
BATCH_CHARS = 1 << 19  # of text for a worker at a time
# Between a character that is no white space and a space or newline, every tokenizer here ends a word (of GPT-2's
# pattern, no alternative goes on there, and none looks back), so that pieces have the tokens of the whole.
CUT_ASCII, CUT = re.compile(rb"[!-~](?=[ \n])"), re.compile(r"\S(?=[ \n])")
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACE = "convert it, leave it out, or take U+FFFD for every such byte: data.invalid_utf8=replace"

Cursor = dict[str, Any]  # where a source goes on; JSON


class Piece(NamedTuple):
    """A document, or a part of one: whether it begins there, and its split where that is not for the hash to say.

    ``question`` comes before the text, and is no target of the loss.
    """

    text: str
    starts: bool
    split: str | None
    question: str | None = None


def split_of(digest: bytes, val_fraction: float) -> str:
    """The split of a document whose text has this sha256: the same however the data is sharded or worked on."""
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < val_fraction else "train"


def decode(raw: bytes, invalid: str, where: str, byte: int = 0) -> str:
    """UTF-8 -> text. Bytes that are not raise InputError, or become lone surrogates, see :func:`clean`."""
    try:
        return raw.decode("utf-8", "surrogateescape" if invalid == "replace" else "strict")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8: {error.reason} at byte {byte + error.start}",
            REPLACE,
        ) from error


def clean(text: str) -> str:
    """The text with U+FFFD for each lone surrogate."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def blocks(file: BinaryIO, invalid: str, where: str, byte: int = 0) -> Iterator[tuple[str, int, bool]]:
    """The text of a file that stands at ``byte``, in pieces cut between words.

    Each comes with the byte where it ends, and whether it is the last. Raises InputError as :func:`decode` does.
    """
    held, is_last, begin = b"", False, byte
    while not is_last:
        read = file.read(BLOCK)
        held, is_last = held + read, len(read) < BLOCK
        cut = len(held) if is_last else _cut(held)
        if cut or (is_last and begin == 0):
            yield decode(held[:cut], invalid, where, byte), byte + cut, is_last
        byte, held = byte + cut, held[cut:]


def _cut(held: bytes) -> int:
    """How many bytes to take: up to a place between words, or 0 to read on first."""
    for begin in (max(0, len(held) - 4096), 0):
        if ends := [match.end() for match in CUT_ASCII.finditer(held, begin)]:
            return ends[-1]
    whole = len(held)
    while whole > len(held) - 4 and held[whole - 1] & 0xC0 == 0x80:  # not inside a character
        whole -= 1
    text = held[: whole - 1].decode(errors="surrogateescape")
    if ends := [match.end() for match in CUT.finditer(text)]:
        return len(text[: ends[-1]].encode(errors="surrogateescape"))
    return 0 if len(held) < MAX_BLOCK else whole - 1


class Row(NamedTuple):
    """A text that is at hand, its split where it is not for the hash to say, and the cursors around it."""

    text: str
    split: str | None
    before: Cursor
    after: Cursor


def joined(rows: Iterable[Row], document_start: str) -> Iterator[Row]:
    """Rows that are lines, put together to documents; a row that matches the pattern begins one."""
    held: list[Row] = []
    size = 0
    for row in rows:
        if held and (re.match(document_start, row.text) or row.split != held[0].split):
            yield Row("".join(r.text for r in held), held[0].split, held[0].before, held[-1].after)
            held, size = [], 0
        held.append(row)
        size += len(row.text)
        if size > MAX_DOCUMENT:
            raise InputError(
                f"data.document_start={document_start} begins no document in {size:,} characters",
                "correct the pattern, or give null where each row is a document",
            )
    if held:
        yield Row("".join(r.text for r in held), held[0].split, held[0].before, held[-1].after)


def pieces_of(document: Row, val_fraction: float) -> Iterator[tuple[Piece, Cursor]]:
    """A document from where the cursor before it stands, each piece with the cursor after it."""
    text, split, before, after = document
    if len(text) <= BLOCK:
        yield Piece(text, True, split), after
        return
    raw, skip = text.encode(), before.get("skip", 0)
    split = split or split_of(hashlib.sha256(raw).digest(), val_fraction)  # of which no piece has the whole
    for number, (part, _, is_last) in enumerate(blocks(io.BytesIO(raw), "refuse", "")):
        if number >= skip:
            yield Piece(part, number == 0, split), after if is_last else before | {"skip": number + 1}


def batches(pieces: Iterable[tuple[Piece, Cursor]]) -> Iterator[tuple[list[Piece], Cursor]]:
    """Pieces in groups for a worker, each with where the source goes on after it."""
    batch, size = [], 0
    for piece, cursor in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARS:
            yield batch, cursor
            batch, size = [], 0
    if batch:
        yield batch, cursor
