"""Learning rate as a pure function of tokens."""

import math

from gpt.config import ScheduleConfig

DEFAULT_WARMUP = 0.02  # of the run, where schedule.warmup_tokens is null


def lr_multiplier(config: ScheduleConfig, tokens: int, total_tokens: int) -> float:
    """Factor on the peak learning rate for the step that brings the run to ``tokens`` of ``total_tokens``.

    Linear from 0 over ``warmup_tokens``, then constant, or half a cosine (Loshchilov & Hutter 2017, eq. 5)
    that reaches ``min_lr_ratio`` at the end of the run.
    """
    warmup = DEFAULT_WARMUP * total_tokens if config.warmup_tokens is None else config.warmup_tokens
    if tokens < warmup:
        return tokens / warmup
    if config.name == "constant":
        return 1.0
    progress = min(1.0, (tokens - warmup) / max(1, total_tokens - warmup))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
