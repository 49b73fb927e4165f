"""Means of arms, and differences from a baseline with their tests. Pure functions of losses by seed."""

import math
from dataclasses import dataclass

CONFIDENCE = 0.95
SEEDS = 3  # fewer decide nothing: two can lie close together by chance
EXACT = 1e-5  # nats; what must be equal is, up to rounding of this size
NO_SPREAD = 1e-9  # nats; values as close as this differ by the last digits of a float, which no test can use

Losses = dict[int, float]  # by seed


@dataclass(frozen=True, slots=True)
class Mean:
    """Of ``n`` values: their mean, its standard error and the ends of its t interval; None where there is none."""

    n: int
    mean: float | None = None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(slots=True)
class Difference:
    """An arm's losses minus the baseline's: their mean, its interval, the test, and what follows.

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
    """Mean, standard error (n - 1 degrees of freedom) and t interval; the last two need two values."""
    n = len(values)
    if n < 2:
        return Mean(n, *values)
    from scipy import stats  # a second, so only when there is something to compute

    mean, stderr = math.fsum(values) / n, 0.0 if same(values) else float(stats.sem(values))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stderr
    return Mean(n, mean, stderr, mean - reach, mean + reach)


def differences(arms: dict[str, Losses], baseline: str) -> dict[str, Difference]:
    """Of every arm but the baseline, with Holm's correction across those that were tested."""
    found = {label: difference(losses, arms[baseline]) for label, losses in arms.items() if label != baseline}
    tested = [d for d in found.values() if d.p is not None]
    for d, p in zip(tested, holm([d.p for d in tested]), strict=True):
        d.p_holm = p
    for d in found.values():
        d.verdict = d.verdict or verdict(d)
    return found


def difference(arm: Losses, baseline: Losses) -> Difference:
    """Paired t-test over common seeds, where there are two or more; else Welch's, where both arms have two runs."""
    common = sorted(arm.keys() & baseline.keys())
    pairs = [arm[seed] - baseline[seed] for seed in common]
    if pairs and max(map(abs, pairs)) <= EXACT:
        return Difference(len(pairs), math.fsum(pairs) / len(pairs), verdict="equal")
    if len(pairs) >= 2:
        made = Difference(len(pairs), math.fsum(pairs) / len(pairs))
        return made if same(pairs) else tested(made, [arm[s] for s in common], [baseline[s] for s in common], True)
    made = Difference(min(len(arm), len(baseline)))
    if made.n:
        made.mean = math.fsum(arm.values()) / len(arm) - math.fsum(baseline.values()) / len(baseline)
    if made.n < 2 or same(list(arm.values())) or same(list(baseline.values())):
        return made
    return tested(made, list(arm.values()), list(baseline.values()), False)


def tested(made: Difference, ours: list[float], theirs: list[float], is_paired: bool) -> Difference:
    """With the interval and p of SciPy's test."""
    from scipy import stats

    test = stats.ttest_rel(ours, theirs) if is_paired else stats.ttest_ind(ours, theirs, equal_var=False)
    made.low, made.high = map(float, test.confidence_interval(CONFIDENCE))
    made.test, made.p = "paired t" if is_paired else "Welch's t", float(test.pvalue)
    return made


def verdict(d: Difference) -> str | None:
    """What the difference says: lower losses are better, where seeds, interval and corrected p all say so."""
    if d.mean is None:
        return None
    if d.p_holm is None or d.n < SEEDS or d.low <= 0 <= d.high or d.p_holm >= 1 - CONFIDENCE:
        return "undecided"
    return "better" if d.mean < 0 else "worse"


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for being several (Holm 1979), in their order: below 0.05, one in 20 families errs."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for i, k in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[k]))
        corrected[k] = largest
    return corrected


def same(values: list[float]) -> bool:
    """Whether the values have no spread that a test could use."""
    return max(values) - min(values) <= NO_SPREAD
