"""Windows of a token file: where they start, and which of their targets count. Imports no torch.

A kind of windows (``data.documents``) is a class here and its line in ``KINDS``.
"""

import functools
import math
from pathlib import Path

import numpy as np

from gpt.errors import InputError
from gpt.tokens.shard import Read
from gpt.tokens.tokenfile import TokenFile
from gpt.tokens.tokenizer import end_of_text, get_tokenizer

# A number of a window (int64) is a token id and these flags.
NO_TARGET = 1 << 40  # the loss leaves it out
STARTS = 1 << 41  # a document starts here
ID = NO_TARGET - 1
IGNORE = -100  # a target that does not count, to torch too


class Windows:
    """Windows of ``seq_len`` inputs and their targets; documents follow each other, as in GPT-2."""

    documents = "packed"
    is_masked = False  # whether attention stays within a document

    def __init__(self, file: TokenFile, seq_len: int, read: str):
        self.file = file
        self.seq_len = seq_len
        self.read = read

    @property
    def all_count(self) -> bool:
        """True if every target counts."""
        return not self.file.has_mask

    @property
    def n_windows(self) -> int:
        """Number of windows that hold all targets once; the last may reach beyond the end of the file."""
        return math.ceil((self.file.n_tokens - 1) / self.seq_len)

    @property
    def n_per_epoch(self) -> int:
        """Number of windows in an epoch: as many as fit at any shift."""
        return (self.file.n_tokens - self.seq_len) // self.seq_len

    def starts(self, windows: np.ndarray, shift: int = 0) -> np.ndarray:
        """Return the token offsets at which windows start, all of them moved by ``shift`` tokens."""
        return windows * self.seq_len + shift

    def check_documents(self) -> None:
        """Refuse a file without the documents that these windows need. Raises InputError."""

    def fill(self, row: np.ndarray, start: int) -> None:
        """Write the window that starts at a token into ``row`` (seq_len + 1, int64), padded where the file ends."""
        # The last window of a file may be short: what is missing is no target.
        stop = start + len(row)
        if stop > self.file.n_tokens:
            stop = self.file.n_tokens
            n_left = stop - start
            row[n_left:] = NO_TARGET
            row = row[:n_left]

        # The ids, and the flags that follow from the mask.
        row[:] = self._ids(start, stop)
        if self.file.has_mask:
            is_no_target = self._mask(start, stop) == 0
            row[is_no_target] |= NO_TARGET

    def documents_within(self, length: int) -> np.ndarray:
        """Return first token and end of all documents of 2 to ``length`` tokens, (N, 2)."""
        lengths = self.file.doc_lengths()
        ends = self._offsets + lengths
        bounds = np.stack([self._offsets, ends], axis=1)
        fits = (lengths >= 2) & (lengths <= length)
        return bounds[fits]

    def __getstate__(self) -> dict:
        """Leave out what is open or cached: worker processes receive the path alone."""
        state = {}
        for name, value in self.__dict__.items():
            if not name.startswith("_"):
                state[name] = value
        return state

    def _document_starts(self, row: np.ndarray, start: int) -> np.ndarray:
        """Return the positions in a window at which documents start."""
        stop = min(start + len(row), self.file.n_tokens)
        first, last = np.searchsorted(self._offsets, [start, stop])
        return self._offsets[first:last] - start

    @functools.cached_property
    def _ids(self) -> Read:
        return self.file.reader(self.read)

    @functools.cached_property
    def _mask(self) -> Read:
        return self.file.reader(self.read, "loss_mask")

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        return self.file.doc_offsets()

    @functools.cached_property
    def _ends_count(self) -> bool:
        """True if documents start with end-of-text, which is then a target of the document before."""
        # The file itself may start within a document, where the text was split by position.
        separator = end_of_text(get_tokenizer(self.file.tokenizer, self.file.chars))
        if separator is None or not len(self._offsets):
            return False
        first_start = int(self._offsets[0])
        first_token = self._ids(first_start, first_start + 1)[0]
        return int(first_token) == separator


class MaskedWindows(Windows):
    """Windows in which documents follow each other, and attention stays within each."""

    documents = "masked"
    is_masked = True
    all_count = False  # the first token of a document may be no target

    def check_documents(self) -> None:
        _check_offsets(self)

    def fill(self, row: np.ndarray, start: int) -> None:
        super().fill(row, start)
        begins = self._document_starts(row, start)
        row[begins] |= STARTS if self._ends_count else STARTS | NO_TARGET


class SeparateWindows(Windows):
    """Windows that start with a document, or continue it; what comes after that document is no target.

    Where a file starts within a document, the rest of it is a document too.
    """

    documents = "separate"
    all_count = False

    @property
    def n_windows(self) -> int:
        return int(self._first_windows[-1])

    @property
    def n_per_epoch(self) -> int:
        return self.n_windows

    def starts(self, windows: np.ndarray, shift: int = 0) -> np.ndarray:
        """Return the token offsets at which windows start; they are tied to documents, and do not move."""
        # The document of each window, and the window's number within it.
        next_document = np.searchsorted(self._first_windows, windows, side="right")
        document = next_document - 1
        number = windows - self._first_windows[document]
        return self._begins[document] + number * self.seq_len

    def check_documents(self) -> None:
        _check_offsets(self)

    def fill(self, row: np.ndarray, start: int) -> None:
        super().fill(row, start)
        begins = self._document_starts(row, start)
        next_documents = begins[begins > 0]
        if next_documents.size:
            end = next_documents[0] + self._ends_count
            row[end:] |= NO_TARGET

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """The first token of each document that has any; the first document has the first token of the file."""
        begins = np.union1d([0], self._offsets)
        return begins[begins < self.file.n_tokens]

    @functools.cached_property
    def _first_windows(self) -> np.ndarray:
        """The number of each document's first window and, at the end, of all windows."""
        # A window holds seq_len targets of a document; the end-of-text after it may be one.
        lengths = np.diff(self._begins, append=self.file.n_tokens)
        targets = lengths - 1 + self._ends_count
        targets[-1] -= self._ends_count  # nothing follows the last document
        n_windows = -(-targets // self.seq_len)  # rounded up
        return np.concatenate([[0], np.cumsum(n_windows)])


KINDS = {kind.documents: kind for kind in (Windows, MaskedWindows, SeparateWindows)}


def open_windows(file: TokenFile, seq_len: int, documents: str, read: str) -> Windows:
    """Return the windows of a token file that ``data.documents`` names."""
    return KINDS[documents](file, seq_len, read)


def _check_offsets(windows: Windows) -> None:
    if not windows.file.has_documents:
        raise InputError(
            f"data.documents={windows.documents}, and {Path(windows.file.path).parent} does not say where documents "
            "start",
            "allowed without a dataset doc_offsets: data.documents=packed",
        )
