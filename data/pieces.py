"""Documents in pieces that a tokenizer can take, however long they are."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from gpt.errors import InputError

BLOCK = 1 << 20  # bytes that are read, and given to a tokenizer, at once
MAX_BLOCK = 1 << 24  # where no shorter piece can be cut off
NEAR_END = 1 << 12  # bytes at the end of a block in which a cut is looked for first
MAX_DOCUMENT = 1 << 28  # of a line of JSON or of rows put together, which are held in memory several times
BATCH_CHARS = 1 << 19  # of text for a worker at a time
# Between a character that is no white space and a space or newline, every tokenizer here ends a word (of GPT-2's
# pattern, no alternative goes on there, and none looks back), so that pieces have the tokens of the whole.
CUT_ASCII = re.compile(rb"[!-~](?=[ \n])")
CUT = re.compile(r"\S(?=[ \n])")
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACE = "convert it, leave it out, or take U+FFFD for every such byte: data.invalid_utf8=replace"

Cursor = dict[str, Any]  # where a source goes on; JSON


class Piece(NamedTuple):
    """A document, or a part of one: whether it begins there, and its split where that does not follow from the hash.

    ``question`` comes before the text, and is no target of the loss.
    """

    text: str
    starts: bool
    split: str | None
    question: str | None = None


def split_of(digest: bytes, val_fraction: float) -> str:
    """Return the split of a document whose text has this sha256: the same however the data is sharded or worked on."""
    number = int.from_bytes(digest[:8], "big")
    position = number / 2**64
    return "val" if position < val_fraction else "train"


def decode(raw: bytes, invalid: str, where: str, byte: int = 0) -> str:
    """Decode UTF-8. Invalid bytes raise InputError, or become lone surrogates, see :func:`clean`."""
    errors = "surrogateescape" if invalid == "replace" else "strict"
    try:
        return raw.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8: {error.reason} at byte {byte + error.start}",
            REPLACE,
        ) from error


def clean(text: str) -> str:
    """Replace each lone surrogate by U+FFFD."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def blocks(
    file: BinaryIO,
    invalid: str,
    where: str,
    byte: int = 0,
) -> Iterator[tuple[str, int, bool]]:
    """Yield the text of a file, which is open at ``byte``, in pieces cut between words.

    Each comes with the byte where it ends, and True for the last. Raises InputError as :func:`decode` does.
    """
    # What follows the last cut stays in the buffer until there is more, or the file ends.
    begin = byte
    buffer = b""
    is_last = False
    while not is_last:
        read = file.read(BLOCK)
        buffer += read
        is_last = len(read) < BLOCK

        # The last piece ends with the file.
        cut = len(buffer) if is_last else _find_cut(buffer)
        is_empty_file = is_last and begin == 0  # it is a document too
        if cut or is_empty_file:
            text = decode(buffer[:cut], invalid, where, byte)
            yield text, byte + cut, is_last
        byte += cut
        buffer = buffer[cut:]


def _find_cut(raw: bytes) -> int:
    """Return the number of bytes up to a boundary between words, or 0 to read on first."""
    # Mostly there is one after an ASCII character, near the end.
    near_end = max(0, len(raw) - NEAR_END)
    for begin in (near_end, 0):
        ends = [match.end() for match in CUT_ASCII.finditer(raw, begin)]
        if ends:
            return ends[-1]

    # Otherwise after any other character; the last may not be whole.
    whole = len(raw)
    earliest = len(raw) - 4  # a character has four bytes at most
    while whole > earliest and raw[whole - 1] & 0xC0 == 0x80:
        whole -= 1
    text = raw[: whole - 1].decode(errors="surrogateescape")
    ends = [match.end() for match in CUT.finditer(text)]
    if ends:
        last = ends[-1]
        head = text[:last]
        return len(head.encode(errors="surrogateescape"))

    # Nowhere: a longer block may have one, up to a limit.
    return 0 if len(raw) < MAX_BLOCK else whole - 1


class Row(NamedTuple):
    """A text in memory, its split where that does not follow from the hash, and the cursors around it."""

    text: str
    split: str | None
    before: Cursor
    after: Cursor


def join_rows(rows: Iterable[Row], document_start: str) -> Iterator[Row]:
    """Put rows that are lines together to documents; a row that matches the pattern begins one."""
    # Lines are collected until the next document begins; rows of two splits are never joined.
    lines: list[Row] = []
    size = 0
    for row in rows:
        if lines:
            is_other_split = row.split != lines[0].split
            if is_other_split or re.match(document_start, row.text):
                yield _joined(lines)
                lines = []
                size = 0
        lines.append(row)
        size += len(row.text)
        if size > MAX_DOCUMENT:
            raise InputError(
                f"data.document_start={document_start} begins no document in {size:,} characters",
                "correct the pattern, or give null where each row is a document",
            )
    if lines:
        yield _joined(lines)


def _joined(lines: list[Row]) -> Row:
    """Return the document of some rows, which are in one split."""
    text = "".join(row.text for row in lines)
    first = lines[0]
    last = lines[-1]
    return Row(text, first.split, first.before, last.after)


def pieces_of(document: Row, val_fraction: float) -> Iterator[tuple[Piece, Cursor]]:
    """Yield a document from where the cursor before it is, each piece with the cursor after it."""
    # Most documents are one piece.
    text, split, before, after = document
    if len(text) <= BLOCK:
        yield Piece(text, True, split), after
        return

    # A long one is cut; of an interrupted one, the first pieces are there already.
    raw = text.encode()
    if split is None:  # no piece has the text that is hashed
        digest = hashlib.sha256(raw).digest()
        split = split_of(digest, val_fraction)
    n_done = before.get("skip", 0)
    parts = blocks(io.BytesIO(raw), "refuse", "")
    for number, (part, _, is_last) in enumerate(parts):
        if number < n_done:
            continue
        cursor = after if is_last else before | {"skip": number + 1}
        is_first = number == 0
        yield Piece(part, is_first, split), cursor


def batches(pieces: Iterable[tuple[Piece, Cursor]]) -> Iterator[tuple[list[Piece], Cursor]]:
    """Yield pieces in groups for a worker, each with the cursor after it."""
    batch: list[Piece] = []
    size = 0
    for piece, cursor in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARS:
            yield batch, cursor
            batch = []
            size = 0
    if batch:
        yield batch, cursor
