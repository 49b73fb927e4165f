"""Learning rate as a pure function of tokens. Imports nothing of the package."""

import math
from collections.abc import Callable

DEFAULT_WARMUP = 0.02  # of the tokens at which the decay ends, where schedule.warmup_tokens is null

# Shapes of the decay. Each gives what is left of the learning rate, from 1 to 0, at a fraction ``progress`` of the
# decay. ``growth`` is the factor by which the tokens have multiplied since the end of the warm-up.


def _constant(progress: float, growth: float) -> float:
    """The peak, and a line down where ``decay_fraction`` asks for a decay."""
    return 1 - progress


def _linear(progress: float, growth: float) -> float:
    """A straight line (Defazio et al. 2023, "When, why and how much", find it hard to beat)."""
    return 1 - progress


def _cosine(progress: float, growth: float) -> float:
    """Half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _wsd(progress: float, growth: float) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM), in the 1 - sqrt form of Hägele et al. 2024, eq. 1."""
    return 1 - math.sqrt(progress)


def _inverse_sqrt(progress: float, growth: float) -> float:
    """One over the root of the tokens (Vaswani et al. 2017, eq. 3), times a linear decay where one is asked for."""
    return (1 - progress) / math.sqrt(growth)


# The values of schedule.name, each with a file in conf/schedule/.
SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "linear": _linear,
    "wsd": _wsd,
}


def warmup(warmup_tokens: int | None, decay_until: int | None, total_tokens: int) -> float:
    """Return the tokens of the warm-up. With ``decay_until`` they do not depend on the length of the run."""
    if warmup_tokens is not None:
        return warmup_tokens
    end = total_tokens if decay_until is None else decay_until
    return DEFAULT_WARMUP * end


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
    """Return the factor on the peak learning rate for the step that brings the run to ``tokens`` of ``total_tokens``.

    Linear from 0 over ``warmup_tokens``; then the shape called ``name``, from 1 to ``min_lr_ratio``, over the last
    ``decay_fraction`` of what lies between the warm-up and ``decay_until`` (None: the end of the run).
    """
    warm = warmup(warmup_tokens, decay_until, total_tokens)
    if tokens < warm:
        return tokens / warm

    # The decay may end before the run does, and may be of no length.
    end = total_tokens if decay_until is None else decay_until
    decay = decay_fraction * (end - warm)
    progress = 0.0
    if decay > 0:
        progress = min(1.0, max(0.0, 1 - (end - tokens) / decay))
    growth = tokens / max(1, warm)
    return min_lr_ratio + (1 - min_lr_ratio) * SHAPES[name](progress, growth)
