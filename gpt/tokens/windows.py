"""Windows of a token file: which there are, and what a model is to make of each."""

import functools

import numpy as np

from gpt.tokens.tokenfile import Read, TokenFile
from gpt.tokens.tokenizer import end_of_text, get_tokenizer

# A number of a window (int64) is an id and these bits: the loss leaves it out; a document starts here.
NO_TARGET, STARTS = 1 << 40, 1 << 41
ID = NO_TARGET - 1
IGNORE = -100  # a target that does not count, to torch too


class Windows:
    """Windows of ``seq_len`` inputs and their targets, packed or each within a document (``data.documents``).

    ``packed``: documents follow each other, as in GPT-2. ``masked``: so they do, and attention stays within them.
    ``separate``: a window begins with a document, or goes on with it, and what is after it is no target.
    """

    def __init__(self, file: TokenFile, seq_len: int, documents: str, read: str):
        self.file, self.seq_len, self.documents, self.read = file, seq_len, documents, read

    @property
    def all_count(self) -> bool:
        """Whether every target counts."""
        return self.documents == "packed" and not self.file.has_mask

    @functools.cached_property
    def _ids(self) -> Read:
        return self.file.reader(self.read)

    @functools.cached_property
    def _mask(self) -> Read:
        return self.file.reader(self.read, "loss_mask")

    @functools.cached_property
    def _ends_count(self) -> bool:
        """Whether a document starts with end-of-text, which is a target of the document before it."""
        return int(self._ids(0, 1)[0]) == end_of_text(get_tokenizer(self.file.tokenizer, self.file.chars))

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        return self.file.doc_offsets()

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Of ``separate``: the number of the first window of each document, and of all windows."""
        targets = self.file.doc_lengths() - 1 + self._ends_count
        targets[-1] -= self._ends_count
        return np.concatenate([[0], np.cumsum(-(-targets // self.seq_len))])

    def __len__(self) -> int:
        """Of ``separate``: how many windows there are."""
        return int(self._table[-1])

    def starts(self, windows: np.ndarray) -> np.ndarray:
        """Of ``separate``: the token offsets at which windows start."""
        document = np.searchsorted(self._table, windows, side="right") - 1
        return self._offsets[document] + (windows - self._table[document]) * self.seq_len

    def fill(self, row: np.ndarray, start: int) -> None:
        """Put the window from a token on into ``row`` (seq_len + 1, int64), filled up where the file ends."""
        stop = start + len(row)
        if stop > self.file.n_tokens:
            stop = self.file.n_tokens
            row[stop - start :] = NO_TARGET
            row = row[: stop - start]
        row[:] = self._ids(start, stop)
        if self.file.has_mask:
            row[self._mask(start, stop) == 0] |= NO_TARGET
        if self.documents != "packed":
            self._mark(row, start, stop)

    def _mark(self, row: np.ndarray, start: int, stop: int) -> None:
        first, last = np.searchsorted(self._offsets, [start, stop])
        begins = self._offsets[first:last] - start
        if self.documents == "masked":
            row[begins] |= STARTS if self._ends_count else STARTS | NO_TARGET
        elif (begins := begins[begins > 0]).size:
            row[begins[0] + self._ends_count :] |= NO_TARGET

    def __getstate__(self) -> dict:
        """Without what is open or read: workers are sent the path."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def documents_within(self, length: int) -> np.ndarray:
        """First token and end of all documents of 2 to ``length`` tokens, (N, 2)."""
        lengths = self.file.doc_lengths()
        ends = self._offsets + lengths
        return np.stack([self._offsets, ends], 1)[(lengths >= 2) & (lengths <= length)]
