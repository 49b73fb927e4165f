"""A token file as a torch Dataset."""

import operator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt.errors import InputError
from gpt.tokens import tokenfile
from gpt.tokens.loader import unpack
from gpt.tokens.windows import Windows


class TokenWindows(Dataset):
    """All tokens of a file in windows of ``seq_len``, one after the other.

    Item i is (inputs, targets), int64 and (seq_len,) both; targets are the inputs one token further. A target that
    does not count is -100, which torch's cross-entropy leaves out: one that the file masks, or beyond its end.
    ``file`` holds its description: n_tokens, tokenizer, vocab_size.
    """

    def __init__(self, file: tokenfile.TokenFile, seq_len: int):
        self.file = file
        self.seq_len = seq_len
        self._windows = Windows(file, seq_len, read="mmap")

    def __len__(self) -> int:
        return self._windows.n_windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        try:
            number = operator.index(index)
        except TypeError:
            raise TypeError(f"a window is named by an int, not by a {type(index).__name__}") from None
        # Negative numbers count from the end, and the IndexError ends a loop over the dataset.
        if not -len(self) <= number < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        number %= len(self)

        # One window as the training reads it: ids, with bits for what does not count.
        row = np.empty(self.seq_len + 1, np.int64)
        begin = number * self.seq_len
        self._windows.fill(row, begin)
        rows = torch.from_numpy(row)[None]  # (1, seq_len + 1)
        inputs, targets, _ = unpack(rows, masked=False)  # (1, seq_len) both
        return inputs[0], targets[0]


def open_tokens(path: str | Path, seq_len: int = 1024) -> TokenWindows:
    """A token file (.h5) as a Dataset.

    Raises InputError where it is missing, cut short or foreign, or has not the tokens of one window.
    """
    if seq_len < 1:
        raise InputError(f"seq_len={seq_len} makes no sense", "allowed: at least 1")
    file = tokenfile.open_tokens(Path(path).expanduser())
    if seq_len >= file.n_tokens:
        raise InputError(
            f"seq_len={seq_len:,} is more than {path} has: {file.n_tokens:,} tokens",
            f"allowed: up to {file.n_tokens - 1:,}; the last input needs a target",
        )
    return TokenWindows(file, seq_len)
