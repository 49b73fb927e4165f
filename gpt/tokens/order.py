"""The global sample order: which window of the data every sample of a run is, for any rank count.

Sample i is a pure function of (seed, data fingerprint, i), computed on demand in O(1) memory. A kind of order
(``data.order``) is a function here and its line in ``KINDS``.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gpt.errors import InputError
from gpt.tokens.windows import Windows

VERSION = 1  # goes into every key: a change of the order is a change of this number
# Four fail a chi-square test over all orders of 4 windows. Of 5 and 6 windows eight do too, over tens of thousands of
# keys: of the 120 orders of 5, some come a fifth more often than the mean. No data has so few windows.
ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, splitmix64's increment
BLOCK = 4096  # samples computed at once


def derive_seed(*parts) -> int:
    """Return 64 bits from anything printable."""
    text = "/".join(str(part) for part in parts)
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply the finalizer of splitmix64 (Steele et al. 2014; constants of Vigna's splitmix64.c)."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Send each index through a keyed permutation of 0 … n-1 (int64 in, int64 out).

    A balanced Feistel network over the smallest even number of bits that holds n (Luby & Rackoff 1988);
    results beyond n are walked on until they fall inside (Black & Rogaway 2002), under four passes on average.
    """
    # Indices are split into two halves of equally many bits.
    n_bits = (n - 1).bit_length()
    half_bits = max(1, (n_bits + 1) // 2)
    half = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    limit = np.uint64(n)

    # Each round has a key of its own, the next number of splitmix64.
    rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64)
    counters = np.uint64(key) + rounds * GOLDEN
    round_keys = _mix(counters)

    def encrypt(x: np.ndarray) -> np.ndarray:
        left = x >> half
        right = x & mask
        for round_key in round_keys:
            noise = _mix(right ^ round_key)
            mixed = left ^ (noise & mask)
            left = right
            right = mixed
        return (left << half) | right

    # What falls outside is encrypted until it is inside, which keeps the whole a permutation.
    out = encrypt(index.astype(np.uint64))
    outside = np.flatnonzero(out >= limit)
    while outside.size:
        out[outside] = encrypt(out[outside])
        outside = np.flatnonzero(out >= limit)
    return out.astype(np.int64)


@dataclass(slots=True)
class SampleOrder:
    """The order in which a run reads windows of the data.

    ``kind`` is one of ``KINDS``. With ``first``, only the first so many samples, again and again.
    Raises InputError when there is no window.
    """

    seed: int
    windows: Windows
    kind: str = "permutation"
    first: int | None = None
    # The block that was computed last, and the sample at which it starts.
    _first: int = field(default=-1, init=False, repr=False)
    _block: np.ndarray | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n_windows < 1:
            n_tokens = self.windows.file.n_tokens
            raise InputError(
                f"model.seq_len={self.seq_len} is too long for data of {n_tokens} tokens",
                f"allowed with this data: at most {n_tokens // 2}",
            )

    @property
    def fingerprint(self) -> str:
        """The sha256 of the tokens."""
        return self.windows.file.sha256

    @property
    def seq_len(self) -> int:
        """Inputs of a window."""
        return self.windows.seq_len

    @property
    def n_windows(self) -> int:
        """Samples per epoch."""
        return self.windows.n_per_epoch

    def starts(self, first: int, count: int) -> np.ndarray:
        """Return the token offsets (int64) at which the windows of samples first … first + count - 1 start."""
        # More than a block: in parts.
        if count > BLOCK:
            stop = first + count
            parts = []
            for begin in range(first, stop, BLOCK):
                size = min(BLOCK, stop - begin)
                part = self.starts(begin, size)
                parts.append(part)
            return np.concatenate(parts)

        # Samples are asked for in ascending order: a block is computed ahead, and serves the next batches too.
        block_end = self._first + BLOCK
        is_within = self._first <= first and first + count <= block_end
        if self._block is None or not is_within:
            samples = np.arange(first, first + BLOCK)
            self._block = self._compute(samples)
            self._first = first
        begin = first - self._first
        end = begin + count
        return self._block[begin:end]

    def _compute(self, samples: np.ndarray) -> np.ndarray:
        """Return the starts of any samples."""
        if self.first is not None:
            samples = samples % self.first
        starts_of = KINDS[self.kind]
        return starts_of(self, samples)

    def empty_hash(self) -> str:
        """Return the order hash of a run that has taken no step."""
        identity = f"{self.fingerprint}/{self.seq_len}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def chain_hash(self, previous: str, first: int, count: int) -> str:
        """Return h_i = sha256(h_{i-1} ‖ window start of sample i, int64 little-endian) over ``count`` samples, in hex.

        Sample by sample, so that it does not depend on how they are grouped into steps: a run with a batch ramp has
        the hash of a run without, after the same samples.
        """
        digest = bytes.fromhex(previous)
        for start in self.starts(first, count).astype("<i8"):
            digest = hashlib.sha256(digest + start.tobytes()).digest()
        return digest.hex()


def _permutation(order: SampleOrder, samples: np.ndarray) -> np.ndarray:
    """Return the starts where each epoch goes once through all windows in an order of its own.

    Windows are shifted by a hash of (seed, epoch) mod ``seq_len``, so that their boundaries move.
    """
    # A batch can cross from one epoch to the next, and each has a permutation and a shift of its own.
    n_windows = order.n_windows
    starts = np.empty_like(samples)
    positions = samples % n_windows
    epochs = samples // n_windows
    for epoch in np.unique(epochs).tolist():
        in_epoch = epochs == epoch
        key = derive_seed("order", VERSION, order.seed, order.fingerprint, epoch)
        shift = derive_seed("shift", VERSION, order.seed, epoch) % order.seq_len
        windows = permute(positions[in_epoch], n_windows, key)
        starts[in_epoch] = order.windows.starts(windows, shift)
    return starts


def _sequential(order: SampleOrder, samples: np.ndarray) -> np.ndarray:
    """Return the starts where every epoch takes the windows in turn (build-nanogpt's DataLoaderLite)."""
    windows = samples % order.n_windows
    return order.windows.starts(windows)


def _random(order: SampleOrder, samples: np.ndarray) -> np.ndarray:
    """Return the starts where every sample is at a random token, with repeats and gaps (nanoGPT's get_batch)."""
    # The numbers of splitmix64, which can start anywhere.
    key = derive_seed("random", VERSION, order.seed, order.fingerprint)
    counters = samples.astype(np.uint64) + np.uint64(1)
    states = np.uint64(key) + counters * GOLDEN
    numbers = _mix(states)

    # A window must end within the file.
    n_starts = order.windows.file.n_tokens - order.seq_len
    starts = numbers % np.uint64(n_starts)
    return starts.astype(np.int64)


KINDS: dict[str, Callable[[SampleOrder, np.ndarray], np.ndarray]] = {
    "permutation": _permutation,
    "random": _random,
    "sequential": _sequential,
}


def rank_samples(
    first: int,
    batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
) -> np.ndarray:
    """Return a rank's samples of first … first + batch_size - 1, micro-batch after micro-batch."""
    samples = np.arange(first, first + batch_size)
    by_micro_batch = samples.reshape(-1, world_size, micro_batch_size)
    of_rank = by_micro_batch[:, rank]
    return of_rank.reshape(-1)
