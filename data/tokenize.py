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

from data.pieces import Cursor, Piece, split_of
from gpt.errors import TrainingError
from gpt.tokens.tokenizer import encode, end_of_text, get_tokenizer

AHEAD = 3  # batches per worker that may be under way
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INLINE_CHARS = 1 << 23  # below this, starting workers would take longer than the work


class Tokens(NamedTuple):
    """Ids of one split, the positions at which documents start, and for each id if it is a target (None: all are)."""

    ids: np.ndarray
    starts: np.ndarray
    mask: np.ndarray | None = None

    def split_at(self, n: int) -> tuple["Tokens", "Tokens"]:
        """Return the first n ids, and the others."""
        first_mask = None
        other_mask = None
        if self.mask is not None:
            first_mask = self.mask[:n]
            other_mask = self.mask[n:]
        is_first = self.starts < n
        first_starts = self.starts[is_first]
        other_starts = self.starts[~is_first] - n
        first = Tokens(self.ids[:n], first_starts, first_mask)
        others = Tokens(self.ids[n:], other_starts, other_mask)
        return first, others


@functools.cache
def _gigatoken_gpt2() -> Any:
    """Return GPT-2's tokenizer in gigatoken, some ten times as fast as tiktoken, from tiktoken's vocabulary."""
    import gigatoken

    # A line for each token: its bytes, and its rank.
    ranks = get_tokenizer("gpt2")
    with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
        for i in range(ranks.eot_token):
            token = ranks.decode_single_token_bytes(i)
            encoded = base64.b64encode(token)
            file.write(b"%b %d\n" % (encoded, i))
        file.flush()
        return gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer="gpt2").backend


@functools.cache
def _unassigned() -> np.ndarray:
    """Return for each code point whether Python's Unicode lacks it."""
    characters = map(chr, range(sys.maxunicode + 1))
    categories = "".join(map(unicodedata.category, characters))
    two_letters = np.frombuffer(categories.encode(), "S2")
    return two_letters == b"Cn"


def _has_newer_characters(text: str) -> bool:
    """Return whether there are characters of a newer Unicode, which may be letters to one library alone."""
    if text.isascii():
        return False
    points = _code_points(text)
    return bool(_unassigned()[points].any())


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def encode_all(tokenizer: tiktoken.Encoding, texts: list[str]) -> list[np.ndarray]:
    """Return the ids of each text, equal to tiktoken's ``encode_ordinary``."""
    if tokenizer.name == "bytes":
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]
    if tokenizer.name == "chars":
        return _encode_chars(tokenizer, texts)
    return _encode_gpt2(tokenizer, texts)


def _encode_gpt2(tokenizer: tiktoken.Encoding, texts: list[str]) -> list[np.ndarray]:
    """Encode by gigatoken what both libraries split alike, and the rest by tiktoken."""
    # Texts that gigatoken may split otherwise are left out of its batch.
    is_known = [not _has_newer_characters(text) for text in texts]
    known = list(itertools.compress(texts, is_known))
    batch = _gigatoken_gpt2().encode_batch(known, parallel=False)
    rows = batch.layout
    ids = rows.content.data
    offsets = rows.offsets.data.tolist()
    bounds = itertools.pairwise(offsets)

    # Both kinds in the order of the texts.
    encoded = []
    for text, is_fast in zip(texts, is_known, strict=True):
        if is_fast:
            begin, end = next(bounds)
            encoded.append(ids[begin:end])
        else:
            encoded.append(encode(tokenizer, text))
    return encoded


def _encode_chars(tokenizer: tiktoken.Encoding, texts: list[str]) -> list[np.ndarray]:
    """Encode by a table; tiktoken's way names a character that is not in it."""
    # The id of each code point, -1 for those that are not in the alphabet.
    alphabet = []
    for i in range(tokenizer.n_vocab):
        character = tokenizer.decode([i])
        alphabet.append(ord(character))
    highest = max(alphabet)
    table = np.full(highest + 1, -1, np.int32)
    table[alphabet] = np.arange(len(alphabet))

    # All texts at once; a point beyond the table takes its last entry, and is then found to be too large.
    points = _code_points("".join(texts))
    ids = table[np.minimum(points, highest)]
    is_known = points.max(initial=0) <= highest and ids.min(initial=0) >= 0
    if not is_known:
        return [encode(tokenizer, text) for text in texts]

    # Cut where each text ends.
    lengths = map(len, texts)
    ends = itertools.accumulate(lengths, initial=0)
    encoded = []
    for begin, end in itertools.pairwise(ends):
        encoded.append(ids[begin:end])
    return encoded


@functools.cache
def _vocabulary(name: str, chars: str | None) -> tuple[tiktoken.Encoding, np.ndarray]:
    """Return a tokenizer, and the ids in front of each document."""
    tokenizer = get_tokenizer(name, chars)
    separator = end_of_text(tokenizer)
    in_front = [] if separator is None else [separator]
    return tokenizer, np.array(in_front, np.uint32)


class _Part(NamedTuple):
    """The ids of a piece, with all that comes before its text."""

    ids: np.ndarray
    starts: bool
    n_question: int


def tokenize(
    batch: list[Piece],
    tokenizer: str,
    chars: str | None,
    val_fraction: float,
    has_mask: bool,
) -> dict[str, Tokens]:
    """Return the tokens of some pieces by split; end-of-text precedes each document, if the vocabulary has one.

    With ``has_mask``, questions are no targets of the loss. Raises InputError for a character that the alphabet of a
    chars tokenizer does not have.
    """
    release_memory()
    encoding, separator = _vocabulary(tokenizer, chars)

    # All texts of the batch are encoded in one call.
    texts = [piece.text for piece in batch]
    ids_of_texts = encode_all(encoding, texts)
    if has_mask:
        questions = [piece.question or "" for piece in batch]
        ids_of_questions = encode_all(encoding, questions)
    else:
        no_question = separator[:0]
        ids_of_questions = [no_question] * len(batch)

    # The split of each piece; in front of its text come the separator and the question.
    parts: dict[str, list[_Part]] = {}
    for piece, ids, question in zip(batch, ids_of_texts, ids_of_questions, strict=True):
        split = piece.split
        if split is None:
            digest = hashlib.sha256(piece.text.encode()).digest()
            split = split_of(digest, val_fraction)
        if has_mask:
            ids = np.concatenate([question, ids])
        if piece.starts:
            ids = np.concatenate([separator, ids])
        part = _Part(
            ids=ids,
            starts=piece.starts,
            n_question=len(question),
        )
        parts.setdefault(split, []).append(part)

    # One array for each split.
    tokens = {}
    for split, parts_of_split in parts.items():
        tokens[split] = _join(parts_of_split, len(separator), has_mask)
    return tokens


def _join(parts: list[_Part], n_separator: int, has_mask: bool) -> Tokens:
    """Put the pieces of one split together."""
    # The pieces follow each other; those that start a document tell where documents start.
    lengths = [len(part.ids) for part in parts]
    ends = np.cumsum(lengths)
    begins = np.concatenate([[0], ends[:-1]])
    is_start = [part.starts for part in parts]
    starts = begins[is_start]

    # Questions, which follow the separator, are no targets.
    mask = None
    if has_mask:
        mask = np.ones(ends[-1], np.uint8)
        for begin, part in zip(begins.tolist(), parts, strict=True):
            question = begin + n_separator
            answer = question + part.n_question
            mask[question:answer] = 0
    ids = np.concatenate([part.ids for part in parts])
    return Tokens(ids, starts.astype(np.int64), mask)


def release_memory() -> None:
    """Return freed memory to the system: glibc, with blocks of a megabyte and many sizes, keeps ever more of it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _begin_worker() -> None:
    """Leave signals to the parent process, and end with it; the pool ends workers by SIGTERM."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Let signals wait, also in processes that are started meanwhile, until :func:`_begin_worker` handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        return len(allowed)
    return os.cpu_count() or 1


def in_order(
    groups: Iterable[tuple[list[Piece], Cursor]],
    work: functools.partial,
    processes: int,
) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
    """Yield ``work`` of each group in the order of the groups, in ``processes`` once there is enough of it.

    Raises TrainingError if one of them is killed.
    """
    # The first groups in this process: for little text, workers would take longer to start than the work takes.
    groups = iter(groups)
    n_chars = 0
    for batch, cursor in groups:
        yield work(batch), cursor
        n_chars += sum(len(piece.text) for piece in batch)
        if processes > 1 and n_chars >= INLINE_CHARS:
            break
    else:
        return

    # More than that: the others in a pool.
    yield from _in_pool(groups, work, processes)


def _in_pool(
    groups: Iterator[tuple[list[Piece], Cursor]],
    work: functools.partial,
    processes: int,
) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
    """Do the same in a pool of processes, a bounded number of batches ahead."""
    pending: deque[tuple[Future, Cursor]] = deque()
    context = multiprocessing.get_context("spawn")  # not fork, which does not go with threads
    with ProcessPoolExecutor(processes, context, initializer=_begin_worker) as pool:
        try:
            # The oldest result is awaited once enough batches are under way.
            for batch, cursor in groups:
                with _signals_blocked():  # a worker is started while there are too few
                    future = pool.submit(work, batch)
                pending.append((future, cursor))
                if len(pending) == AHEAD * processes:
                    future, cursor = pending.popleft()
                    yield future.result(), cursor

            # The rest, which is under way.
            for future, cursor in pending:
                yield future.result(), cursor
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process that tokenizes was killed, as the system does where memory is short\n"
                "  give the command again, which goes on where it was; fewer need less: data.processes=N"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
