"""The global sample order: which window of the data every sample of a run is, for any rank count.

Sample i is a pure function of (seed, data fingerprint, i), computed on demand in O(1) memory.
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gpt.errors import InputError

if TYPE_CHECKING:
    from gpt.tokens.windows import Windows

VERSION = 1  # goes into every key: a change of the order is a change of this number
ROUNDS = 8  # fewer fail a chi-square test at small n
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, splitmix64's increment
BLOCK = 4096  # samples computed at once


def derive(*parts) -> int:
    """64 bits from anything printable."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014; constants of Vigna's splitmix64.c)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a keyed permutation of 0 … n-1 sends each index (int64 in, int64 out).

    A balanced Feistel network over the smallest even number of bits that holds n (Luby & Rackoff 1988);
    results beyond n are walked on until they fall inside (Black & Rogaway 2002), under four passes on average.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = mix(np.uint64(key) + np.arange(1, ROUNDS + 1, dtype=np.uint64) * GOLDEN)

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for round_key in round_keys:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        return (left << half) | right

    out = encrypt(index.astype(np.uint64))
    while (outside := np.flatnonzero(out >= np.uint64(n))).size:
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


@dataclass(slots=True)
class Order:
    """The samples of a run over ``n_tokens`` tokens, in windows of ``seq_len`` tokens and their targets.

    ``permutation``: epoch e = i // n goes once through all n windows in an order of its own, shifted by a hash of
    (seed, e) mod ``seq_len`` so that boundaries move; there are as many windows as fit at any shift.
    ``sequential``: every epoch takes the windows one after the other (build-nanogpt's DataLoaderLite).
    ``random``: every sample starts at a random token, with repeats and gaps (nanoGPT's get_batch).
    With ``first``, only the first so many samples, again and again. With ``windows``, the windows are those, and do not
    move from epoch to epoch.
    Raises InputError when there is no window.
    """

    seed: int
    fingerprint: str
    n_tokens: int
    seq_len: int
    kind: str = "permutation"
    first: int | None = None
    windows: "Windows | None" = None
    _first: int = field(default=-1, init=False, repr=False)  # sample id at which the computed block starts
    _block: np.ndarray | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n_windows < 1:
            raise InputError(
                f"model.seq_len={self.seq_len} is too long for data of {self.n_tokens} tokens",
                f"allowed with this data: at most {self.n_tokens // 2}",
            )

    @property
    def n_windows(self) -> int:
        """Samples per epoch."""
        if self.windows is not None:
            return len(self.windows)
        return (self.n_tokens - self.seq_len) // self.seq_len

    def starts(self, first: int, count: int) -> np.ndarray:
        """Token offsets (int64) at which the windows of samples first … first + count - 1 start."""
        if count > BLOCK:
            return np.concatenate(
                [self.starts(i, min(BLOCK, first + count - i)) for i in range(first, first + count, BLOCK)]
            )
        if not (self._block is not None and self._first <= first and first + count <= self._first + len(self._block)):
            self._first, self._block = first, self._compute(np.arange(first, first + BLOCK))
        return self._block[first - self._first : first - self._first + count]

    def _compute(self, samples: np.ndarray) -> np.ndarray:
        if self.first is not None:
            samples = samples % self.first
        if self.kind == "sequential":
            return self._place(samples % self.n_windows, 0)
        if self.kind == "random":
            key = np.uint64(derive("random", VERSION, self.seed, self.fingerprint))
            drawn = mix(key + (samples.astype(np.uint64) + np.uint64(1)) * GOLDEN)
            return (drawn % np.uint64(self.n_tokens - self.seq_len)).astype(np.int64)
        starts = np.empty_like(samples)
        epochs = samples // self.n_windows
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            key = derive("order", VERSION, self.seed, self.fingerprint, epoch)
            shift = derive("shift", VERSION, self.seed, epoch) % self.seq_len
            starts[here] = self._place(permute(samples[here] % self.n_windows, self.n_windows, key), shift)
        return starts

    def _place(self, windows: np.ndarray, shift: int) -> np.ndarray:
        return windows * self.seq_len + shift if self.windows is None else self.windows.starts(windows)

    def empty_hash(self) -> str:
        """The order hash of a run that has taken no step."""
        return hashlib.sha256(f"{self.fingerprint}/{self.seq_len}".encode()).hexdigest()

    def chain_hash(self, previous: str, first: int, count: int) -> str:
        """h_i = sha256(h_{i-1} ‖ window start of sample i, int64 little-endian) over ``count`` samples, in hex.

        Sample by sample, so that it does not depend on how they are grouped into steps: a run with a batch ramp has
        the hash of a run without, after the same samples.
        """
        digest = bytes.fromhex(previous)
        for start in self.starts(first, count).astype("<i8"):
            digest = hashlib.sha256(digest + start.tobytes()).digest()
        return digest.hex()


def rank_samples(first: int, batch_size: int, micro_batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """Ids of the samples first … first + batch_size - 1 that fall to a rank, micro-batch after micro-batch."""
    ids = np.arange(first, first + batch_size).reshape(-1, world_size, micro_batch_size)
    return ids[:, rank].reshape(-1)
