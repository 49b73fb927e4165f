"""Draws from logits: temperature, top-k, top-p, and the generator of each row."""

import pytest
import torch

from gpt.errors import NotFinite
from gpt.generate.sampling import Sampler

PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])


def drawn(temperature=1.0, top_k=None, top_p=None, n=4000, probabilities=PROBABILITIES):
    """How often each token is drawn, by n rows of a batch."""
    sampler = Sampler(temperature, top_k, top_p, list(range(n)))
    ids = sampler.draw(probabilities.log().expand(n, -1))
    assert ids.shape == (n, 1)
    return ids.flatten().bincount(minlength=len(probabilities)) / n


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probabilities_say(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    torch.testing.assert_close(drawn(temperature), expected / expected.sum(), atol=0.03, rtol=0)


# The likeliest tokens have 0.4, 0.7, 0.85, 0.95 and 1.
@pytest.mark.parametrize(
    "top_p, kept", [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 3, 4]), (0.94, [1, 2, 3, 4]),
                    (1.0, [0, 1, 2, 3, 4]), (None, [0, 1, 2, 3, 4])]
)  # fmt: skip
def test_top_p_keeps_the_fewest_likeliest_tokens_with_that_probability(top_p, kept):
    shares = drawn(top_p=top_p)
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    assert shares.nonzero().flatten().tolist() == kept
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_top_p_is_of_the_tokens_that_temperature_and_top_k_leave():
    # Of 0.4 and 0.3 alone, the first has 0.57.
    assert drawn(top_k=2, top_p=0.56).nonzero().flatten().tolist() == [1]
    assert drawn(top_k=2, top_p=0.58).nonzero().flatten().tolist() == [1, 3]
    # Squared, 0.4 has 0.561 of all.
    assert drawn(temperature=0.5, top_p=0.55).nonzero().flatten().tolist() == [1]
    assert drawn(temperature=0.5, top_p=0.57).nonzero().flatten().tolist() == [1, 3]


def test_equally_likely_tokens_are_a_nucleus_of_as_many_as_needed():
    kept = drawn(top_p=0.5, probabilities=torch.full((4,), 0.25)).nonzero().flatten().tolist()
    assert kept == [0, 1]


def test_top_k_keeps_the_likeliest():
    assert drawn(top_k=3).nonzero().flatten().tolist() == [1, 3, 4]
    assert drawn(top_k=99).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_top_p_agrees_with_hugging_face():
    transformers = pytest.importorskip("transformers")
    from gpt.generate.sampling import _top_p

    logits = 3 * torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    for p in (0.1, 0.5, 0.9, 0.99):
        theirs = transformers.TopPLogitsWarper(p)(None, logits.clone())
        assert torch.equal(_top_p(logits, p).isinf(), theirs.isinf())


def test_logits_that_are_not_finite_are_told():
    logits = torch.zeros(2, 5)
    logits[1, 3] = torch.nan
    with pytest.raises(NotFinite, match="logits are not finite"):
        Sampler(1.0, None, None, [1, 2]).draw(logits)


def test_each_row_has_the_draws_of_its_own_seed():
    logits = torch.randn(3, 99, generator=torch.Generator().manual_seed(0))
    together = Sampler(1.0, 40, 0.9, [1, 2, 3])
    alone = [Sampler(1.0, 40, 0.9, [seed]) for seed in (1, 2, 3)]
    for _ in range(20):
        ids = together.draw(logits)
        assert ids.tolist() == [sampler.draw(logits[i : i + 1])[0].tolist() for i, sampler in enumerate(alone)]
