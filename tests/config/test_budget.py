"""Batch arithmetic at exact values."""

import pytest

from gpt.config import budget


@pytest.mark.parametrize(
    "max_steps, max_tokens, expected", [(10, None, 5120), (None, 3000, 3000), (10, 3000, 3000), (5, 3000, 2560)]
)
def test_nominal_tokens_are_those_of_full_batches(max_steps, max_tokens, expected):
    assert budget.nominal_tokens(512, max_steps, max_tokens) == expected


@pytest.mark.parametrize(
    "stages, max_steps, max_tokens, expected",
    [
        ([(0, 64)], 7, None, (7, 448)),
        ([(0, 64)], None, 448, (7, 448)),
        ([(0, 64)], None, 449, (8, 512)),
        ([(0, 64)], 3, 449, (3, 192)),
        ([(0, 64), (128, 256)], None, 640, (4, 640)),
        ([(0, 64), (128, 256)], 3, None, (3, 384)),
        ([(0, 64), (128, 256)], None, 100, (2, 128)),
        ([(0, 64), (100, 256)], None, 384, (3, 384)),  # a step that crosses the end of its stage is finished
    ],
)
def test_run_length(stages, max_steps, max_tokens, expected):
    assert budget.run_length(stages, max_steps, max_tokens) == expected


def test_step_tokens_change_where_a_stage_begins():
    stages = [(0, 64), (128, 256)]
    assert [budget.step_tokens(stages, tokens) for tokens in (0, 127, 128, 10**9)] == [64, 64, 256, 256]


@pytest.mark.parametrize(
    "given, expected",
    [
        ((None, None, None), (32_768, 524_288, 4_000_000_000, 32_768)),  # GPT-3's
        ((65_536, None, None), (65_536, 524_288, 4_000_000_000, 65_536)),
        ((98_304, 1_000_000, None), (98_304, 524_288, 1_000_000, 32_768)),
        ((None, None, 16_384), (32_768, 524_288, 4_000_000_000, 16_384)),
    ],
)
def test_a_linear_ramp_starts_as_gpt3s_where_nothing_is_given(given, expected):
    start, over, multiple_of = given
    ramp = budget.linear_ramp(
        524_288, 2048, 300_000_000_000, start_tokens=start, over_tokens=over, multiple_of=multiple_of
    )
    assert ramp == expected
    assert ramp == budget.LinearRamp(*expected)


def test_a_ramp_starts_with_whole_sequences_that_divide_the_batch():
    """Ten sequences: a sixteenth would be less than one."""
    ramp = budget.linear_ramp(640, 64, 10_000, start_tokens=None, over_tokens=None, multiple_of=None)
    assert ramp == (64, 640, 133, 64)


def test_linear_stages_begin_as_the_line_reaches_their_size():
    assert budget.linear_stages(64, 256, 300, 64) == [(0, 64), (100, 128), (200, 192), (300, 256)]
    assert budget.linear_stages(64, 256, 301, 64) == [(0, 64), (101, 128), (201, 192), (301, 256)]
    assert budget.linear_stages(256, 256, 300, 64) == [(0, 256)]
    assert budget.linear_stages(512, 256, 300, 64) == []


def test_doublings_leave_out_what_is_no_whole_sequence():
    assert budget.doublings(1024, 64, 90_000) == [[400, 128], [800, 256], [1200, 512]]
    assert budget.doublings(256, 64, 90_000) == [[400, 64], [800, 128]]
    assert budget.doublings(64, 64, 90_000) == []


def test_stages_of_pairs():
    assert budget.stages_of_pairs([[400, 128], [800, 256]], 512) == [(0, 128), (400, 256), (800, 512)]
    assert budget.stages_of_pairs([], 512) == [(0, 512)]


@pytest.mark.parametrize(
    "stages, expected",
    [
        ([(0, 512)], [(0, 512)]),
        ([(0, 128), (400, 512)], [(0, 128), (512, 512)]),
        ([(0, 128), (400, 256), (800, 512)], [(0, 128), (512, 256), (1024, 512)]),
        ([(0, 128), (300, 256), (600, 512)], [(0, 128), (512, 256), (1024, 512)]),
        ([(0, 64), (1, 128), (2, 512)], [(0, 64), (128, 128), (512, 512)]),
    ],
)
def test_ramps_are_filled_up_to_whole_batches(stages, expected):
    whole = budget.whole_batches(stages)
    assert whole == expected
    assert all(begin % stages[-1][1] == 0 for begin, _ in whole[-1:])


@pytest.mark.parametrize(
    "stages, seq_len, world_size, expected",
    [
        ([(0, 1024)], 64, 1, 16),
        ([(0, 8192)], 1024, 1, 4),
        ([(0, 7 * 1024)], 1024, 1, 1),
        ([(0, 16_384)], 8192, 1, 1),
        ([(0, 524_288)], 1024, 8, 4),
        ([(0, 128), (512, 512)], 64, 1, 2),
        ([(0, 192), (512, 512)], 64, 1, 1),
    ],
)
def test_a_micro_batch_fits_and_divides_every_batch_on_every_rank(stages, seq_len, world_size, expected):
    assert budget.micro_batch_size(stages, seq_len, world_size) == expected


def test_largest_divisor():
    assert [budget._largest_divisor(12, most) for most in (1, 3, 5, 11, 12)] == [1, 3, 4, 6, 12]


@pytest.mark.parametrize(
    "stages, world_size, expected",
    [
        ([(0, 1024)], 1, "1,000 steps of 1,024 tokens (4 × 4 sequences of 64)"),
        ([(0, 1024)], 2, "1,000 steps of 1,024 tokens (2 ranks × 2 × 4 sequences of 64)"),
        ([(0, 256), (512, 1024)], 1, "1,000 steps of 256 to 1,024 tokens, 2 stages (4 sequences of 64 at a time)"),
    ],
)
def test_steps_in_words(stages, world_size, expected):
    assert budget.steps_in_words(stages, 1000, 4, 64, world_size) == expected
