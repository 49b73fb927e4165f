"""The global sample order."""

import hashlib

import numpy as np
import pytest
from scipy.stats import chisquare

from gpt.errors import InputError
from gpt.tokens.order import SampleOrder, permute, rank_samples
from gpt.tokens.tokenfile import TokenFile
from gpt.tokens.windows import open_windows


def sample_order(seed: int, fingerprint: str, n_tokens: int, seq_len: int) -> SampleOrder:
    """The order over a file that only says how long it is."""
    file = TokenFile("", "<u2", n_tokens, (), "bytes", 257, None, fingerprint, has_mask=False, has_documents=False)
    return SampleOrder(seed, open_windows(file, seq_len, "packed", "mmap"))


def test_permutation_is_a_bijection_for_every_small_n():
    around_powers = [2**k + near for k in range(10, 13) for near in (-1, 0, 1)]
    for n in (*range(1, 1001), *around_powers):
        sent = permute(np.arange(n), n, key=n * 7919)
        assert np.array_equal(np.sort(sent), np.arange(n)), n


def test_permutation_golden_values():
    # These change only with order.VERSION, which makes every run's data order another.
    assert permute(np.arange(10), 10, key=42).tolist() == [2, 9, 1, 5, 3, 7, 0, 4, 8, 6]
    assert permute(np.arange(5), 10**9, key=42).tolist() == [908359092, 622492498, 263558825, 214040412, 607956071]
    order = sample_order(1337, "fingerprint", 1_000_000, 64)
    assert order.starts(15_000, 5).tolist() == [223478, 248630, 61366, 12406, 336246]


@pytest.mark.parametrize("n", [3, 5, 8, 17])
def test_permutation_is_uniform_at_small_n(n):
    """Where index 0 and the last index go over many keys: no place is favoured."""
    keys = 1000
    for index in (0, n - 1):
        places = [int(permute(np.array([index]), n, key)[0]) for key in range(keys)]
        assert chisquare(np.bincount(places, minlength=n)).pvalue > 1e-4


def test_first_two_places_are_independent():
    n, keys = 4, 3000
    pairs = [tuple(permute(np.arange(2), n, key)) for key in range(keys)]
    counts = [pairs.count((a, b)) for a in range(n) for b in range(n) if a != b]
    assert sum(counts) == keys
    assert chisquare(counts).pvalue > 1e-4


def test_an_epoch_covers_every_window_once_and_the_next_is_shifted():
    order = sample_order(seed=1, fingerprint="x", n_tokens=10_007, seq_len=16)
    n = order.n_windows
    epochs = [order.starts(e * n, n) for e in range(3)]
    for starts in epochs:
        shift = starts.min()
        assert 0 <= shift < 16
        assert np.array_equal(np.sort(starts), np.arange(n) * 16 + shift)
        assert starts.max() + 16 + 1 <= 10_007
    assert len({int(starts.min()) for starts in epochs}) > 1
    assert not np.array_equal(epochs[0] - epochs[0].min(), epochs[1] - epochs[1].min())


def test_any_slice_is_the_same_however_it_is_asked_for():
    whole = sample_order(seed=3, fingerprint="x", n_tokens=100_000, seq_len=8).starts(0, 20_000)
    order = sample_order(seed=3, fingerprint="x", n_tokens=100_000, seq_len=8)
    for first, count in [(19_000, 1000), (5, 1), (4000, 300), (0, 9000), (12_499, 3)]:
        assert np.array_equal(order.starts(first, count), whole[first : first + count])


def test_order_depends_on_seed_and_data():
    base = sample_order(1, "x", 100_000, 8).starts(0, 100)
    assert not np.array_equal(base, sample_order(2, "x", 100_000, 8).starts(0, 100))
    assert not np.array_equal(base, sample_order(1, "y", 100_000, 8).starts(0, 100))


@pytest.mark.parametrize("world_size, micro", [(1, 4), (2, 2), (4, 1), (2, 6), (3, 4)])
def test_ranks_share_every_batch_without_overlap(world_size, micro):
    shares = [rank_samples(120, 24, micro, rank, world_size) for rank in range(world_size)]
    assert all(len(share) == 24 // world_size for share in shares)
    assert sorted(np.concatenate(shares)) == list(range(120, 144))


def test_hash_chains_over_window_starts():
    order = sample_order(1, "x", 100_000, 8)
    h0 = order.empty_hash()
    h1 = order.chain_hash(h0, 0, 12)
    expected = bytes.fromhex(h0)
    for start in order.starts(0, 12).tolist():
        expected = hashlib.sha256(expected + start.to_bytes(8, "little")).digest()
    assert h1 == expected.hex()
    assert order.chain_hash(order.chain_hash(h0, 0, 5), 5, 7) == h1  # however samples are grouped into steps
    assert order.chain_hash(h1, 12, 12) != order.chain_hash(h0, 12, 12)


def test_data_without_a_window_is_refused():
    with pytest.raises(InputError, match=r"seq_len=64.*100 tokens\n.*at most 50"):
        sample_order(1, "x", 100, 64)
    assert sample_order(1, "x", 100, 50).n_windows == 1
