"""The learning rate at exact values."""

import pytest

from gpt.config import ScheduleConfig
from gpt.schedule import lr_multiplier


def cosine(warmup_tokens):
    return ScheduleConfig(name="cosine", warmup_tokens=warmup_tokens, min_lr_ratio=0.1)


@pytest.mark.parametrize(
    "tokens, expected",
    [(50, 0.5), (100, 1.0), (600, 0.55), (350, 0.1 + 0.9 * (2 + 2**0.5) / 4), (1100, 0.1), (5000, 0.1)],
)
def test_cosine(tokens, expected):
    assert lr_multiplier(cosine(100), tokens, 1100) == pytest.approx(expected, rel=1e-12)


def test_warmup_defaults_to_two_percent_of_the_run():
    assert lr_multiplier(cosine(None), 10, 1000) == pytest.approx(0.5)
    assert lr_multiplier(cosine(None), 20, 1000) == 1.0


def test_constant_stays_at_the_peak():
    constant = ScheduleConfig(name="constant", warmup_tokens=0, min_lr_ratio=1.0)
    assert [lr_multiplier(constant, tokens, 100) for tokens in (1, 50, 100)] == [1.0, 1.0, 1.0]
