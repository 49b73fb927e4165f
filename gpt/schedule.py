"""Learning rate and batch size as pure functions of tokens. Imports nothing of the package."""

import math
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
