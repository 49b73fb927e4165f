"""Learning rate and batch size at exact values."""

import math

import pytest

from gpt.cli.compose import compose
from gpt.config.budget import linear_stages, run_length, step_tokens
from gpt.schedule import SHAPES, lr_multiplier

PLAIN = {"warmup_tokens": 100, "min_lr_ratio": 0.1, "decay_fraction": 1.0, "decay_until": None}


@pytest.mark.parametrize(
    "name, changes, values",
    [
        ("cosine", {}, {50: 0.5, 100: 1.0, 600: 0.55, 350: 0.1 + 0.9 * (2 + 2**0.5) / 4, 1100: 0.1}),
        ("cosine", {"decay_until": 600}, {100: 1.0, 350: 0.55, 600: 0.1, 1000: 0.1}),
        ("linear", {}, {50: 0.5, 100: 1.0, 350: 0.775, 600: 0.55, 1100: 0.1}),
        ("linear", {"min_lr_ratio": 0.0, "decay_fraction": 0.5}, {600: 1.0, 850: 0.5, 1100: 0.0}),
        ("wsd", {"decay_fraction": 0.2}, {100: 1.0, 900: 1.0, 950: 0.1 + 0.9 * 0.5, 1100: 0.1}),
        ("inverse_sqrt", {"min_lr_ratio": 0.0, "decay_fraction": 0.0}, {100: 1.0, 400: 0.5, 900: 1 / 3}),
        (
            "inverse_sqrt",
            {"min_lr_ratio": 0.0, "decay_fraction": 0.2},
            {900: 1 / 3, 1000: 0.5 / math.sqrt(10), 1100: 0.0},
        ),
        ("constant", {"decay_fraction": 0.0}, {50: 0.5, 100: 1.0, 600: 1.0, 1100: 1.0}),
        ("constant", {"decay_fraction": 0.0, "warmup_tokens": 0}, {1: 1.0, 1100: 1.0}),
    ],
)
def test_learning_rate(name, changes, values):
    for tokens, expected in values.items():
        assert lr_multiplier(name, tokens, 1100, **PLAIN | changes) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_warmup_defaults_to_two_percent_of_the_run():
    unset = PLAIN | {"warmup_tokens": None}
    assert lr_multiplier("cosine", 10, 1000, **unset) == pytest.approx(0.5)
    assert lr_multiplier("cosine", 20, 1000, **unset) == 1.0


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("fraction", [0.2, 1.0])
def test_with_decay_until_the_length_of_the_run_changes_nothing(name, fraction):
    """Exactly, with the warm-up that is null too: so a run can be made longer and keep its curve."""
    shorter = PLAIN | {"warmup_tokens": None, "decay_fraction": fraction}
    longer = shorter | {"decay_until": 1_572_864}
    for tokens in (1, 1024, 31_457, 31_458, 786_432, 1_400_000, 1_572_864):
        expected = lr_multiplier(name, tokens, 1_572_864, **shorter)
        assert lr_multiplier(name, tokens, 3_000_000, **longer) == expected
        assert lr_multiplier(name, tokens, 3_000_000, **shorter) != expected or tokens > 31_458


def test_gpt3s_ramp():
    """32k to 0.5M tokens over 4 billion, a sixteenth at a time."""
    stages = linear_stages(32_768, 524_288, 4_000_000_000, 32_768)
    assert [size for _, size in stages] == [32_768 * n for n in range(1, 17)]
    assert (stages[0][0], stages[-1][0]) == (0, 4_000_000_000)
    for tokens in (0, 1, 266_666_666, 266_666_667, 2_000_000_000, 3_999_999_999, 4_000_000_000, 10**11):
        exact = 32_768 + (524_288 - 32_768) * min(tokens, 4_000_000_000) / 4_000_000_000
        assert step_tokens(stages, tokens) == exact // 32_768 * 32_768


@pytest.mark.parametrize(
    "stages", [[(0, 64)], linear_stages(64, 1024, 20_000, 64), [(0, 128), (1000, 256), (5000, 512)]]
)
@pytest.mark.parametrize(
    "max_steps, max_tokens", [(1, None), (37, None), (None, 1), (None, 30_001), (40, 7777), (3, 10**6)]
)
def test_run_length_is_that_of_the_steps_one_by_one(stages, max_steps, max_tokens):
    steps = tokens = 0
    while (max_steps is None or steps < max_steps) and (max_tokens is None or tokens < max_tokens):
        tokens += step_tokens(stages, tokens)
        steps += 1
    assert run_length(stages, max_steps, max_tokens) == (steps, tokens)


def test_nanogpts_learning_rate_is_two_keys_away():
    """Each step of its CPU recipe then has the rate of nanoGPT's get_lr, whose peak and end come one step later."""
    recipe = compose(
        ["experiment=shakespeare_char_cpu", "schedule.warmup_tokens=77_568", "schedule.decay_until=1_536_768"]
    )
    peak, least, warmup_steps, decay_steps = 1e-3, 1e-4, 100, 2000
    for step in range(recipe.total_steps):
        # As train.py of nanoGPT, which counts steps from 0.
        rate = peak * (step + 1) / (warmup_steps + 1)
        if step >= warmup_steps:
            progress = (step - warmup_steps) / (decay_steps - warmup_steps)
            rate = least + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - least)
        tokens = 768 * (step + 1)
        ours = recipe.optimizer.lr * recipe.schedule.multiplier(tokens, recipe.total_tokens)
        assert ours == pytest.approx(rate, rel=1e-12)
