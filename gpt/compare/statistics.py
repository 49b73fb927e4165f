"""Means of arms, and differences from a baseline with their tests. Pure functions of losses by seed."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

CONFIDENCE = 0.95
SEEDS = 3  # fewer decide nothing, equality neither: two can be close together by chance
EXACT = 1e-5  # nats; losses that must be equal are, up to rounding of this size
NO_SPREAD = 1e-9  # nats; values as close as this differ by the last digits of a float, which no test can use

Losses = dict[int, float]  # by seed


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of ``n`` values, its standard error and the ends of its t interval; None where there is none."""

    n: int
    mean: float | None = None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(slots=True)
class Difference:
    """An arm's losses minus the baseline's: their mean, its interval, the test, and the verdict.

    ``n`` counts pairs where the test is paired, else the runs of the smaller arm. ``p_holm`` is ``p`` after Holm's
    correction. ``verdict``: better, worse, undecided, equal, or None where no difference can be formed.
    """

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    test: str | None = None  # paired t, Welch's t
    p: float | None = None
    p_holm: float | None = None
    verdict: str | None = None


def summarize(values: list[float]) -> Mean:
    """Return mean, standard error (n - 1 degrees of freedom) and t interval; the last two need two values."""
    n = len(values)
    if n < 2:
        return Mean(n, *values)
    from scipy import stats  # a second, so only when there is something to compute

    mean = _mean(values)
    stderr = 0.0
    if not have_no_spread(values):
        stderr = float(stats.sem(values))

    # Half of what the interval leaves out is above it, and half below.
    upper = (1 + CONFIDENCE) / 2
    quantile = float(stats.t.ppf(upper, n - 1))
    half_width = quantile * stderr
    low = mean - half_width
    high = mean + half_width
    return Mean(n, mean, stderr, low, high)


def differences(arms: dict[str, Losses], baseline: str) -> dict[str, Difference]:
    """Return the difference of every arm from the baseline, with Holm's correction across those that were tested."""
    by_label = {}
    for label, losses in arms.items():
        if label != baseline:
            by_label[label] = _difference(losses, arms[baseline])
    _judge(list(by_label.values()))
    return by_label


def steps(arms: dict[str, Losses]) -> dict[str, Difference]:
    """Return the difference of every arm but the first from the one before it: what each rung of a ladder adds."""
    by_label = {}
    for before, label in itertools.pairwise(arms):
        by_label[label] = _difference(arms[label], arms[before])
    _judge(list(by_label.values()))
    return by_label


def _judge(differences: list[Difference]) -> None:
    """Add Holm's correction across the differences that were tested, and the verdicts."""
    tested = [difference for difference in differences if difference.p is not None]
    corrected = _holm([difference.p for difference in tested])
    for difference, p in zip(tested, corrected, strict=True):
        difference.p_holm = p

    # A verdict needs the corrected p, unless the losses are equal.
    for difference in differences:
        if difference.verdict is None:
            difference.verdict = _verdict(difference)


def _difference(arm: Losses, baseline: Losses) -> Difference:
    """Take the paired t-test over common seeds; Welch's over all runs where the arms have few in common, and others."""
    # Runs of equal seeds have equal data and weights, which the paired test makes use of.
    common = sorted(arm.keys() & baseline.keys())
    ours = [arm[seed] for seed in common]
    theirs = [baseline[seed] for seed in common]
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    n = len(pairs)
    if n >= SEEDS and max(map(abs, pairs)) <= EXACT:
        return Difference(n, _mean(pairs), verdict="equal")
    if pairs and are_paired(arm, baseline):
        difference = Difference(n, _mean(pairs))
        if n >= 2 and not have_no_spread(pairs):
            _test(difference, ours, theirs, is_paired=True)
        return difference

    # Too few seeds in common: compare the means of all runs.
    ours = list(arm.values())
    theirs = list(baseline.values())
    n = min(len(ours), len(theirs))
    if n == 0:
        return Difference(n)
    mean = _mean(ours) - _mean(theirs)
    difference = Difference(n, mean)
    if n == 1 or have_no_spread(ours) or have_no_spread(theirs):
        return difference
    _test(difference, ours, theirs, is_paired=False)
    return difference


def are_paired(arm: Iterable[int], baseline: Iterable[int]) -> bool:
    """Return whether arms with these seeds are compared pair by pair: few common ones must be all that one has."""
    ours = set(arm)
    theirs = set(baseline)
    n_common = len(ours & theirs)
    return n_common >= SEEDS or n_common == min(len(ours), len(theirs))


def _test(
    difference: Difference,
    ours: list[float],
    theirs: list[float],
    is_paired: bool,
) -> None:
    """Add the interval and p of SciPy's test."""
    from scipy import stats

    if is_paired:
        difference.test = "paired t"
        test = stats.ttest_rel(ours, theirs)
    else:
        difference.test = "Welch's t"
        test = stats.ttest_ind(ours, theirs, equal_var=False)
    difference.p = float(test.pvalue)
    interval = test.confidence_interval(CONFIDENCE)
    difference.low = float(interval.low)
    difference.high = float(interval.high)


def _verdict(difference: Difference) -> str | None:
    """Judge a difference: lower losses are better, where number of seeds, interval and corrected p all agree."""
    if difference.mean is None:
        return None
    if difference.p_holm is None or difference.n < SEEDS:
        return "undecided"

    # An interval that holds 0 is a difference that may be chance.
    holds_zero = difference.low <= 0 <= difference.high
    is_likely_chance = difference.p_holm >= 1 - CONFIDENCE
    if holds_zero or is_likely_chance:
        return "undecided"
    return "better" if difference.mean < 0 else "worse"


def _holm(p_values: list[float]) -> list[float]:
    """Return p-values corrected for being several (Holm 1979), in their order: below 0.05, one in 20 families errs."""
    # The smallest is multiplied by their number, the next by one less; never below the one before.
    n = len(p_values)
    by_size = sorted(range(n), key=p_values.__getitem__)
    corrected = [0.0] * n
    largest = 0.0
    factor = n
    for i in by_size:
        multiplied = factor * p_values[i]
        multiplied = min(1.0, multiplied)
        largest = max(largest, multiplied)
        corrected[i] = largest
        factor -= 1
    return corrected


def have_no_spread(values: list[float]) -> bool:
    """Return whether the values are so close together that a test cannot use them."""
    spread = max(values) - min(values)
    return spread <= NO_SPREAD


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
