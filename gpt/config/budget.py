"""Batch arithmetic: how many tokens each step has, and how many steps a run. Pure functions of plain values."""

import itertools
import math
from bisect import bisect_right
from fractions import Fraction
from typing import NamedTuple

# Without batch.micro_batch_size, a forward pass takes as many whole sequences as fit into this many tokens.
DEFAULT_MICRO_BATCH_TOKENS = 4096
# Without batch.ramp.over_tokens, a ramp takes this part of the run: GPT-3's first 4 of 300 billion tokens (Brown et al.
# 2020, appendix B).
DEFAULT_RAMP = Fraction(4, 300)
# Without batch.ramp.start_tokens, it starts at this part of the full batch: 32k of 0.5M (the same).
DEFAULT_RAMP_START = Fraction(1, 16)
# Without batch.ramp.stages, these parts of the full batch come before it.
DOUBLINGS = (8, 4, 2)

Stages = list[tuple[int, int]]  # (tokens at which the stage begins, tokens per step in it), ascending from 0


class LinearRamp(NamedTuple):
    """A batch that grows linearly, in multiples of one size."""

    start_tokens: int  # of the first step
    full_tokens: int  # of a step after the ramp
    over_tokens: int  # length of the ramp
    multiple_of: int


# --- the length of a run


def nominal_tokens(global_tokens: int, max_steps: int | None, max_tokens: int | None) -> int:
    """Return the shorter of ``max_tokens`` and ``max_steps`` steps of the full batch; one of them is given."""
    limits = []
    if max_steps is not None:
        limits.append(max_steps * global_tokens)
    if max_tokens is not None:
        limits.append(max_tokens)
    return min(limits)


def run_length(stages: Stages, max_steps: int | None, max_tokens: int | None) -> tuple[int, int]:
    """Return the steps and the tokens of a run that ends with the step that reaches either limit."""
    total_steps = 0
    total_tokens = 0
    ends = _ends(stages)
    for (_, size), end in zip(stages, ends, strict=True):
        # The stage ends where the next one begins, or at the first limit that the run reaches in it.
        limits = []
        if end < math.inf:
            limits.append(_steps_to(end, total_tokens, size))
        if max_tokens is not None:
            limits.append(_steps_to(max_tokens, total_tokens, size))
        if max_steps is not None:
            limits.append(max_steps - total_steps)
        steps = max(0, min(limits))
        total_steps += steps
        total_tokens += steps * size
    return total_steps, total_tokens


def step_tokens(stages: Stages, tokens: int) -> int:
    """Return the tokens of the step that begins after ``tokens`` tokens."""
    stage = bisect_right(stages, tokens, key=lambda stage: stage[0]) - 1
    _, size = stages[stage]
    return size


def _ends(stages: Stages) -> list[float]:
    """Return the tokens at which each stage ends."""
    begins = [begin for begin, _ in stages]
    return [*begins[1:], math.inf]


def _steps_to(end: float, tokens: int, size: int) -> int:
    """Return the steps of one size from ``tokens`` until ``end`` is reached."""
    missing = end - tokens
    return math.ceil(missing / size)


# --- ramps


def linear_ramp(
    global_tokens: int,
    seq_len: int,
    run_tokens: int,
    *,
    start_tokens: int | None,
    over_tokens: int | None,
    multiple_of: int | None,
) -> LinearRamp:
    """Return a ramp to ``global_tokens`` in which None has become a number; ``run_tokens`` is the run's length."""
    if start_tokens is None:
        # Count sequences, not micro-batches: the size of a micro-batch changes nothing that a run computes.
        sequences = global_tokens // seq_len
        most = max(1, int(sequences * DEFAULT_RAMP_START))
        start_tokens = seq_len * _largest_divisor(sequences, most)
    if over_tokens is None:
        over_tokens = max(1, int(DEFAULT_RAMP * run_tokens))
    if multiple_of is None:
        multiple_of = math.gcd(start_tokens, global_tokens)
    return LinearRamp(start_tokens, global_tokens, over_tokens, multiple_of)


def linear_stages(
    start_tokens: int,
    full_tokens: int,
    over_tokens: int,
    multiple_of: int,
) -> Stages:
    """Return the stages of a linear ramp (Brown et al. 2020, appendix B: 32k to 0.5M tokens over 4 to 12 billion)."""
    rise = full_tokens - start_tokens
    stages = []
    for above_start in range(0, rise + 1, multiple_of):
        begin = -(-over_tokens * above_start // max(1, rise))  # rounded up
        size = start_tokens + above_start
        stages.append((begin, size))
    return stages


def doublings(global_tokens: int, seq_len: int, run_tokens: int) -> list[list[int]]:
    """Return the pairs of a ramp that doubles up to the full batch: until so many tokens, steps of so many."""
    length = DEFAULT_RAMP * run_tokens / len(DOUBLINGS)
    pairs = []
    for part in DOUBLINGS:
        # Leave out what is no whole number of sequences: the ramp is then shorter.
        is_whole = global_tokens % (part * seq_len) == 0
        if is_whole:
            number = len(pairs) + 1
            until = math.ceil(length * number)
            size = global_tokens // part
            pairs.append([until, size])
    return pairs


def stages_of_pairs(pairs: list[list[int]], global_tokens: int) -> Stages:
    """Return the stages of pairs (until so many tokens, steps of so many), and the full batch after them."""
    begins = [0]
    sizes = []
    for until, size in pairs:
        begins.append(until)
        sizes.append(size)
    sizes.append(global_tokens)
    return list(zip(begins, sizes, strict=True))


def whole_batches(stages: Stages) -> Stages:
    """Return the same ramp, with a few steps more where its tokens are no multiple of its full batch.

    So a run with a ramp ends after as many tokens as one without, unless less than the smallest step is missing.
    """
    # Count the steps of each stage, the last of which has no end.
    steps = []
    tokens = 0
    for (_, size), (end, _) in itertools.pairwise(stages):
        count = max(0, _steps_to(end, tokens, size))
        steps.append(count)
        tokens += count * size

    # Fill up what is missing to a multiple of the full batch, with the largest steps that fit.
    _, full = stages[-1]
    missing = -tokens % full
    for i in reversed(range(len(steps))):
        _, size = stages[i]
        more, missing = divmod(missing, size)
        steps[i] += more

    # Begin each stage where the one before it now ends, and drop those without a step.
    whole = []
    begin = 0
    for (_, size), count in zip(stages[:-1], steps, strict=True):
        if count:
            whole.append((begin, size))
        begin += count * size
    whole.append((begin, full))
    return whole


# --- micro-batches


def micro_batch_size(stages: Stages, seq_len: int, world_size: int) -> int:
    """Return the largest number of sequences that divides every batch on every rank and fits into 4,096 tokens."""
    sizes = [size for _, size in stages]
    unit = math.gcd(*sizes)
    sequences = unit // (seq_len * world_size)
    fits = max(1, DEFAULT_MICRO_BATCH_TOKENS // seq_len)
    most = min(fits, sequences)
    return _largest_divisor(sequences, most)


def _largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number up to ``most``."""
    divisors = [divisor for divisor in range(1, most + 1) if number % divisor == 0]
    return max(divisors)


def steps_in_words(
    stages: Stages,
    steps: int,
    micro_batch: int,
    seq_len: int,
    world_size: int,
) -> str:
    """Return the number of steps and their size, for a person."""
    sizes = [size for _, size in stages]
    if len(sizes) > 1:
        return (
            f"{steps:,} steps of {min(sizes):,} to {max(sizes):,} tokens, {len(sizes)} stages "
            f"({micro_batch} sequences of {seq_len} at a time)"
        )

    # Steps of one size: what each of them is made of.
    size = sizes[0]
    ranks = f"{world_size} ranks × " if world_size > 1 else ""
    micro_steps = size // (world_size * micro_batch * seq_len)
    return f"{steps:,} steps of {size:,} tokens ({ranks}{micro_steps} × {micro_batch} sequences of {seq_len})"
