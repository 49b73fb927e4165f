"""Text to ids: piece by piece, in a pool of processes, in order, with bounded memory."""

import base64
import contextlib
import ctypes
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
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import tiktoken

from data.sources.pieces import Cursor, Piece, split_of
from gpt.errors import TrainingError
from gpt.tokens.tokenizer import encode, end_of_text, get_tokenizer

AHEAD = 3  # batches per worker that may be under way
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INLINE_CHARS = 1 << 23  # below this, starting workers would take longer than the work


class Tokens(NamedTuple):
    """Ids of one split, where among them documents start, and for each id whether it is a target (None: all are)."""

    ids: np.ndarray
    starts: np.ndarray
    mask: np.ndarray | None = None

    def split_at(self, n: int) -> tuple["Tokens", "Tokens"]:
        """The first n ids, and the others."""
        first = self.starts < n
        masks = (None, None) if self.mask is None else (self.mask[:n], self.mask[n:])
        return Tokens(self.ids[:n], self.starts[first], masks[0]), Tokens(
            self.ids[n:], self.starts[~first] - n, masks[1]
        )


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
    if tokenizer.name == "chars":
        return _encode_chars(tokenizer, texts)
    is_known = [not has_newer_characters(text) for text in texts]
    rows = gigatoken_gpt2().encode_batch(list(itertools.compress(texts, is_known)), parallel=False).layout
    ids, offsets = rows.content.data, rows.offsets.data
    fast = (ids[begin:end] for begin, end in itertools.pairwise(offsets.tolist()))
    return [next(fast) if known else encode(tokenizer, text) for text, known in zip(texts, is_known, strict=True)]


def _encode_chars(tokenizer: tiktoken.Encoding, texts: list[str]) -> list[np.ndarray]:
    """By a table; a character that is not in it is for tiktoken's way to name."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    alphabet = [ord(tokenizer.decode([i])) for i in range(tokenizer.n_vocab)]
    table = np.full(max(alphabet) + 1, -1, np.int32)
    table[alphabet] = np.arange(len(alphabet))
    ids = table[np.minimum(points, len(table) - 1)]
    if points.max(initial=0) >= len(table) or ids.min(initial=0) < 0:
        return [encode(tokenizer, text) for text in texts]
    ends = list(itertools.accumulate(map(len, texts)))
    return [ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@functools.cache
def _vocabulary(name: str, chars: str | None) -> tuple[tiktoken.Encoding, np.ndarray]:
    tokenizer = get_tokenizer(name, chars)
    separator = end_of_text(tokenizer)
    return tokenizer, np.array([] if separator is None else [separator], np.uint32)


def tokenize(
    batch: list[Piece], tokenizer: str, chars: str | None, val_fraction: float, has_mask: bool
) -> dict[str, Tokens]:
    """The tokens of some pieces by split; end-of-text goes in front of each document, if the vocabulary has one.

    With ``has_mask``, questions are no targets of the loss. Raises InputError for a character that the alphabet of a
    chars tokenizer does not have.
    """
    release_memory()
    encoding, separator = _vocabulary(tokenizer, chars)
    gathered: dict[str, list[tuple[bool, np.ndarray, int]]] = {}
    texts = encode_all(encoding, [piece.text for piece in batch])
    questions = encode_all(encoding, [piece.question or "" for piece in batch]) if has_mask else [None] * len(batch)
    for piece, ids, question in zip(batch, texts, questions, strict=True):
        split = piece.split or split_of(hashlib.sha256(piece.text.encode()).digest(), val_fraction)
        if has_mask:
            ids = np.concatenate([question, ids])
        if piece.starts:
            ids = np.concatenate([separator, ids])
        gathered.setdefault(split, []).append((piece.starts, ids, len(question) if has_mask else 0))
    return {split: _joined(parts, len(separator), has_mask) for split, parts in gathered.items()}


def _joined(parts: list[tuple[bool, np.ndarray, int]], lead: int, has_mask: bool) -> Tokens:
    """Pieces of one split as one: whether each starts a document, its ids, and the length of its question."""
    ends = np.cumsum([len(ids) for _, ids, _ in parts])
    begins = np.concatenate([[0], ends[:-1]])
    mask = None
    if has_mask:
        mask = np.ones(ends[-1], np.uint8)
        for begin, (_, _, n_question) in zip(begins.tolist(), parts, strict=True):
            mask[begin + lead : begin + lead + n_question] = 0
    starts = begins[[is_start for is_start, _, _ in parts]]
    return Tokens(np.concatenate([ids for _, ids, _ in parts]), starts.astype(np.int64), mask)


def release_memory() -> None:
    """Give freed memory back to the system: glibc, with blocks of a megabyte and many sizes, keeps ever more of it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _worker() -> None:
    """Workers leave signals to who started them, and end when that is gone; the pool ends them by SIGTERM."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Signals wait here, and in processes that are started meanwhile until :func:`_worker` has its say."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    groups: Iterable[tuple[list[Piece], Cursor]], work: functools.partial, processes: int
) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
    """``work`` of each group in the order of the groups, in ``processes`` once there is enough of it.

    Raises TrainingError where one of them is killed.
    """
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
                with _signals_blocked():  # a worker is started while there are too few
                    pending.append((pool.submit(work, batch), cursor))
                if len(pending) == AHEAD * processes:
                    future, cursor = pending.popleft()
                    yield future.result(), cursor
            for future, cursor in pending:
                yield future.result(), cursor
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process that tokenizes was killed, as the system does where memory is short\n"
                "  give the command again, which goes on where it was; fewer need less: data.processes=N"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
