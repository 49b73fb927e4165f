"""Text to ids: piece by piece, in a pool of processes, in order, with bounded memory."""

import base64
import functools
import hashlib
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tiktoken

from gpt.tokenizer import encode, end_of_text, get_tokenizer

BATCH_CHARS = 1 << 19  # of text for a worker at a time
AHEAD = 3  # batches per worker that may be under way
INLINE_CHARS = 1 << 23  # below this, starting workers would take longer than the work

Cursor = dict[str, Any]  # where a source goes on; JSON


class Piece(NamedTuple):
    """A document, or a part of one: whether it begins there, and its split where that is not for the hash to say."""

    text: str
    starts: bool
    split: str | None


class Tokens(NamedTuple):
    """Ids of one split, and where among them documents start."""

    ids: np.ndarray
    starts: np.ndarray


@functools.cache
def gigatoken_gpt2() -> Any:
    """GPT-2's tokens by gigatoken, some ten times as fast as tiktoken, from tiktoken's vocabulary."""
    import gigatoken

    ranks = get_tokenizer("gpt2")
    lines = (b"%b %d\n" % (base64.b64encode(ranks.decode_single_token_bytes(i)), i) for i in range(ranks.eot_token))
    with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
        file.writelines(lines)
        file.flush()
        return gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer="gpt2").backend


@functools.cache
def _unassigned() -> np.ndarray:
    """By code point, whether Python's Unicode does not know it."""
    categories = "".join(map(unicodedata.category, map(chr, range(sys.maxunicode + 1))))
    return np.frombuffer(categories.encode(), "S2") == b"Cn"


def has_newer_characters(text: str) -> bool:
    """Whether there are characters of a newer Unicode, which may be letters to one library and not to another."""
    return not text.isascii() and bool(_unassigned()[np.frombuffer(text.encode("utf-32-le"), "<u4")].any())


def encode_all(tokenizer: tiktoken.Encoding, texts: list[str]) -> list[np.ndarray]:
    """The ids of each text, equal to tiktoken's ``encode_ordinary``."""
    if tokenizer.name == "bytes":
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]
    if tokenizer.name != "gpt2":
        return [encode(tokenizer, text) for text in texts]
    is_known = [not has_newer_characters(text) for text in texts]
    rows = gigatoken_gpt2().encode_batch(list(itertools.compress(texts, is_known)), parallel=False).layout
    ids, offsets = rows.content.data, rows.offsets.data
    fast = (ids[begin:end] for begin, end in itertools.pairwise(offsets.tolist()))
    return [next(fast) if known else encode(tokenizer, text) for text, known in zip(texts, is_known, strict=True)]


@functools.cache
def _vocabulary(name: str, chars: str | None) -> tuple[tiktoken.Encoding, np.ndarray]:
    tokenizer = get_tokenizer(name, chars)
    separator = end_of_text(tokenizer)
    return tokenizer, np.array([] if separator is None else [separator], np.uint32)


def tokenize(batch: list[Piece], tokenizer: str, chars: str | None, val_fraction: float) -> dict[str, Tokens]:
    """The tokens of some pieces by split; end-of-text goes in front of each document, if the vocabulary has one.

    Raises InputError for a character that the alphabet of a chars tokenizer does not have.
    """
    encoding, separator = _vocabulary(tokenizer, chars)
    parts: dict[str, list[np.ndarray]] = {}
    starts: dict[str, list[int]] = {}
    lengths: dict[str, int] = {}
    for piece, ids in zip(batch, encode_all(encoding, [piece.text for piece in batch]), strict=True):
        split = piece.split or split_of(hashlib.sha256(piece.text.encode()).digest(), val_fraction)
        length = lengths.setdefault(split, 0)
        if piece.starts:
            starts.setdefault(split, []).append(length)
            ids = np.concatenate([separator, ids])
        parts.setdefault(split, []).append(ids)
        lengths[split] = length + len(ids)
    return {
        split: Tokens(np.concatenate(ids), np.array(starts.get(split, []), np.int64)) for split, ids in parts.items()
    }


def split_of(digest: bytes, val_fraction: float) -> str:
    """The split of a document whose text has this sha256: the same however the data is sharded or worked on."""
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < val_fraction else "train"


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


def _worker() -> None:
    """Workers leave signals to who started them, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def in_order(
    groups: Iterable[tuple[list[Piece], Cursor]], work: functools.partial, processes: int
) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
    """``work`` of each group in the order of the groups, in ``processes`` once there is enough of it."""
    groups, done = iter(groups), 0
    for batch, cursor in groups:
        yield work(batch), cursor
        done += sum(len(piece.text) for piece in batch)
        if processes > 1 and done >= INLINE_CHARS:
            break
    else:
        return
    pending: deque[tuple[Future, Cursor]] = deque()
    context = multiprocessing.get_context("spawn")  # not fork, which does not go with threads
    with ProcessPoolExecutor(processes, context, initializer=_worker) as pool:
        try:
            for batch, cursor in groups:
                pending.append((pool.submit(work, batch), cursor))
                if len(pending) == AHEAD * processes:
                    future, cursor = pending.popleft()
                    yield future.result(), cursor
            for future, cursor in pending:
                yield future.result(), cursor
        finally:
            pool.shutdown(cancel_futures=True)
