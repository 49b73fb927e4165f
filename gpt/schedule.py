"""Learning rate and batch size as pure functions of tokens. Imports nothing of the package."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable

DEFAULT_WARMUP = 0.02  # of the tokens at which the decay ends, where schedule.warmup_tokens is null


# How far the learning rate has come down, from 1 to 0, at a share ``progress`` of its decay. ``grown`` is by how much
# the tokens have multiplied since the end of the warm-up.


def constant(progress: float, grown: float) -> float:
    """At the peak; linear where ``decay_fraction`` asks for a decay."""
    return 1 - progress


def linear(progress: float, grown: float) -> float:
    """A straight line (Defazio et al. 2023, "When, why and how much", find it hard to beat)."""
    return 1 - progress


def cosine(progress: float, grown: float) -> float:
    """Half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def wsd(progress: float, grown: float) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM), in the 1 - sqrt form of Hägele et al. 2024, eq. 1."""
    return 1 - math.sqrt(progress)


def inverse_sqrt(progress: float, grown: float) -> float:
    """One over the root of the tokens (Vaswani et al. 2017, eq. 3), times a linear decay where one is asked for."""
    return (1 - progress) / math.sqrt(grown)


SHAPES: dict[str, Callable[[float, float], float]] = {
    shape.__name__: shape for shape in (constant, cosine, inverse_sqrt, linear, wsd)
}


def warmup(warmup_tokens: int | None, decay_until: int | None, total_tokens: int) -> float:
    """Tokens of the warm-up. With ``decay_until`` they do not depend on the length of the run, as nothing else does."""
    end = total_tokens if decay_until is None else decay_until
    return DEFAULT_WARMUP * end if warmup_tokens is None else warmup_tokens


def lr_multiplier(
    name: str,
    tokens: int,
    total_tokens: int,
    *,
    warmup_tokens: int | None,
    min_lr_ratio: float,
    decay_fraction: float,
    decay_until: int | None,
) -> float:
    """Factor on the peak learning rate for the step that brings the run to ``tokens`` of ``total_tokens``.

    Linear from 0 over ``warmup_tokens``; then the shape called ``name``, from 1 to ``min_lr_ratio``, over the last
    ``decay_fraction`` of what lies between the warm-up and ``decay_until`` (None: the end of the run).
    """
    warm = warmup(warmup_tokens, decay_until, total_tokens)
    if tokens < warm:
        return tokens / warm
    end = total_tokens if decay_until is None else decay_until
    decay = decay_fraction * (end - warm)
    progress = min(1.0, max(0.0, 1 - (end - tokens) / decay)) if decay > 0 else 0.0
    return min_lr_ratio + (1 - min_lr_ratio) * SHAPES[name](progress, tokens / max(1, warm))


Stages = list[tuple[int, int]]  # (tokens at which the stage begins, tokens per step in it), ascending from 0


def linear_stages(start: int, full: int, over_tokens: int, multiple_of: int) -> Stages:
    """From ``start`` linearly to ``full`` tokens per step over the first ``over_tokens``, in multiples of one size.

    (Brown et al. 2020, appendix B: from 32k tokens to the full batch over the first 4 to 12 billion tokens.)
    """
    rise = max(1, full - start)
    return [(-(-over_tokens * up // rise), start + up) for up in range(0, full - start + 1, multiple_of)]  # rounded up


def whole_batches(stages: Stages) -> Stages:
    """The same ramp, with a few steps more where it takes no multiple of its full batch.

    So a run with a ramp ends after as many tokens as one without, unless less than the smallest step is missing.
    """
    steps, tokens = [], 0
    for (_, size), (end, _) in itertools.pairwise(stages):
        steps.append(max(0, math.ceil((end - tokens) / size)))
        tokens += steps[-1] * size
    missing = -tokens % stages[-1][1]
    for i, (_, size) in reversed(list(enumerate(stages[:-1]))):
        more, missing = divmod(missing, size)
        steps[i] += more
    begins = itertools.accumulate((n * size for n, (_, size) in zip(steps, stages, strict=False)), initial=0)
    return [(begin, size) for begin, (_, size), n in zip(begins, stages, [*steps, math.inf], strict=True) if n]


def step_tokens(stages: Stages, tokens: int) -> int:
    """Tokens of the step that begins after ``tokens`` tokens."""
    return stages[bisect_right(stages, tokens, key=lambda stage: stage[0]) - 1][1]


def run_length(stages: Stages, max_steps: int | None, max_tokens: int | None) -> tuple[int, int]:
    """Steps and tokens of a run that ends with the step that reaches either limit."""
    steps, tokens = 0, 0
    ends = [*(begin for begin, _ in stages[1:]), math.inf]
    for (_, size), end in zip(stages, ends, strict=True):
        limits = [math.ceil((end - tokens) / size)] if end < math.inf else []
        if max_tokens is not None:
            limits.append(math.ceil((max_tokens - tokens) / size))
        if max_steps is not None:
            limits.append(max_steps - steps)
        taken = max(0, min(limits))
        steps, tokens = steps + taken, tokens + taken * size
    return steps, tokens
