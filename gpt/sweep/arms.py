"""The overrides of each job: every combination of values, for every arm of the sweep."""

import math
from collections.abc import Iterable
from fractions import Fraction

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import ListConfig

from gpt.config.checks import check_names
from gpt.errors import InputError

MOST_JOBS = 1_000  # composing and checking each, before the first starts, takes a tenth of a second
ARM = "sweep.arm="


def check_swept(overrides: list[Override], arms: dict[str, list[str]], may_be_one: bool) -> None:
    """Check that there are jobs, and no more than can be composed while the user waits. Raises InputError.

    ``may_be_one``: a single job is intended, such as one more of a sweep that has a name.
    """
    for name, arm in arms.items():
        _check_arm(name, arm)
    named_arms = [override.input_line for override in overrides if override.key_or_group == "sweep.arm"]

    # Of several overrides of one key Hydra takes the last.
    last = {override.get_key_element(): override for override in overrides}
    swept = [override for override in last.values() if override.is_sweep_override()]
    n_jobs = 1 if named_arms else max(1, len(arms))
    for override in swept:
        n_values = _count_values(override)
        if not n_values:
            raise InputError(f"{override.input_line} has no values", "give some: KEY=1,2,3 or KEY=range(1,4)")
        n_jobs *= n_values

    if n_jobs > MOST_JOBS:
        raise InputError(
            f"this sweep has {n_jobs:,} jobs", f"allowed: up to {MOST_JOBS:,}; sweep over fewer values at a time"
        )
    if not (arms or may_be_one or swept):
        raise InputError(
            "--multirun without several values of anything", "give some: seed=1,2; for one run leave --multirun out"
        )
    if named_arms and not arms:
        raise InputError(f"{named_arms[0]}: this sweep has no arms", "leave sweep.arm out")


def _check_arm(name: str, arm: object) -> None:
    """Check that an arm is a list of overrides. Raises InputError."""
    if not isinstance(arm, (list, ListConfig)) or not all(isinstance(override, str) for override in arm):
        raise InputError(f"hydra.sweeper.arms.{name}={arm} is no arm", "allowed: a list of overrides: [A=1,…]")


def _count_values(override: Override) -> int:
    """Count the values of an override without making them. Raises InputError where they cannot be listed."""
    swept = override.value()
    if isinstance(swept, IntervalSweep):
        raise InputError(f"{override.input_line} has no values that can be listed", "give some: KEY=0.1,0.2")
    if not isinstance(swept, RangeSweep):
        return len(list(override.sweep_string_iterator()))

    bounds = (swept.start, swept.stop, swept.step)
    if not all(math.isfinite(float(bound)) for bound in bounds) or not swept.step:
        raise InputError(f"{override.input_line} has no end", "allowed: range(START,STOP,STEP), such as range(1,4)")
    start, stop, step = map(Fraction, bounds)
    return max(0, math.ceil((stop - start) / step))


def over_arms(jobs: list[list[str]], arms: dict[str, list[str]], ladder: bool) -> list[list[str]]:
    """Return each job once for each arm, or for the one that it names (``sweep.arm``).

    The overrides of the job come last, so that they win. Raises InputError for an arm that does not exist.
    """
    if not arms:
        return jobs
    arm_overrides = _rungs(arms) if ladder else {name: _last_of_each_key(arm) for name, arm in arms.items()}

    expanded = []
    for job in jobs:
        chosen = [override.removeprefix(ARM) for override in job if override.startswith(ARM)]
        for name in chosen:
            check_names("sweep.arm", name, list(arms))
        rest = [override for override in job if not override.startswith(ARM)]
        for name in chosen or arms:
            expanded.append([*arm_overrides[name], ARM + name, *rest])
    return expanded


def _rungs(arms: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the overrides of each arm of a ladder: its own, after those of the arms before it."""
    rungs: dict[str, list[str]] = {}
    so_far: list[str] = []
    for name, overrides in arms.items():
        so_far = _last_of_each_key([*so_far, *overrides])
        rungs[name] = so_far
    return rungs


def _last_of_each_key(overrides: Iterable[str]) -> list[str]:
    """Return the overrides without those that a later one of the same key replaces."""
    return list({override.partition("=")[0]: override for override in overrides}.values())
