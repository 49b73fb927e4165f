"""The overrides of each job: every combination of values, for every arm of the sweep."""

import math
from fractions import Fraction
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import ListConfig

from gpt.config.explain import expected_type
from gpt.config.groups import LIST_GROUPS
from gpt.config.values import check_names
from gpt.errors import InputError

# Composing and checking a job, before the first one starts, takes a tenth of a second.
MOST_JOBS = 1_000
ARM = "sweep.arm="


def param_overrides(params: dict[str, Any]) -> list[str]:
    """Return the overrides of a sweep's ``params``: of a list in YAML, each element is a value, as in 1,2,3.

    It is one value of a key that takes lists.
    """
    overrides = []
    for key, value in params.items():
        takes_list = key in LIST_GROUPS or expected_type(key).startswith("a list")
        if isinstance(value, (list, ListConfig)) and not takes_list:
            value = ",".join("null" if element is None else str(element) for element in value)
        overrides.append(f"{key}={value}")
    return overrides


def check_swept(overrides: list[Override], arms: dict[str, list[str]], may_be_one: bool) -> None:
    """Check that there are jobs, and no more than can be composed while the user waits. Raises InputError.

    ``may_be_one``: a single job is intended, such as one more of a sweep that has a name.
    """
    for name, arm in arms.items():
        _check_arm(name, arm)
    named_arms = [override for override in overrides if override.key_or_group == "sweep.arm"]

    # Of several overrides of one key Hydra takes the last.
    last_of_key = {}
    for override in overrides:
        last_of_key[override.get_key_element()] = override
    swept = [override for override in last_of_key.values() if override.is_sweep_override()]

    # Every combination of values is a job. Arms that are named are values of sweep.arm.
    n_jobs = 1 if named_arms else max(1, len(arms))
    for override in swept:
        n_values = _count_values(override)
        if n_values == 0:
            raise InputError(
                f"{override.input_line} has no values",
                "give some: KEY=1,2,3 or KEY=range(1,4)",
            )
        n_jobs *= n_values

    if n_jobs > MOST_JOBS:
        raise InputError(
            f"this sweep has {n_jobs:,} jobs",
            f"allowed: up to {MOST_JOBS:,}; sweep over fewer values at a time",
        )
    if not (arms or may_be_one or swept):
        raise InputError(
            "--multirun without several values of anything",
            "give some: seed=1,2; for one run leave --multirun out",
        )
    if named_arms and not arms:
        raise InputError(
            f"{named_arms[0].input_line}: this sweep has no arms",
            "leave sweep.arm out",
        )


def _check_arm(name: str, arm: object) -> None:
    """Check that an arm is a list of overrides. Raises InputError."""
    is_list = isinstance(arm, (list, ListConfig))
    if not is_list or not all(isinstance(override, str) for override in arm):
        raise InputError(
            f"hydra.sweeper.arms.{name}={arm} is no arm",
            "allowed: a list of overrides: [A=1,…]",
        )


def _count_values(override: Override) -> int:
    """Count the values of an override without making them. Raises InputError where they cannot be listed."""
    swept = override.value()
    if isinstance(swept, IntervalSweep):
        raise InputError(
            f"{override.input_line} has no values that can be listed",
            "give some: KEY=0.1,0.2",
        )
    if not isinstance(swept, RangeSweep):
        values = list(override.sweep_string_iterator())
        return len(values)

    # A range can have billions of values. Fractions count them without rounding.
    bounds = (swept.start, swept.stop, swept.step)
    is_finite = all(math.isfinite(float(bound)) for bound in bounds)
    if not is_finite or not swept.step:
        raise InputError(
            f"{override.input_line} has no end",
            "allowed: range(START,STOP,STEP), such as range(1,4)",
        )
    start, stop, step = map(Fraction, bounds)
    return max(0, math.ceil((stop - start) / step))


def over_arms(jobs: list[list[str]], arms: dict[str, list[str]], ladder: bool) -> list[list[str]]:
    """Return each job once for each arm, or for the one that it names (``sweep.arm``).

    The overrides of the job come last, so that they win. Raises InputError for an arm that does not exist.
    """
    if not arms:
        return jobs
    arm_overrides = _overrides_of_arms(arms, ladder)

    expanded = []
    for job in jobs:
        # The arms that the job names, and the rest of its overrides.
        named_arms = []
        rest = []
        for override in job:
            if override.startswith(ARM):
                named_arms.append(override.removeprefix(ARM))
            else:
                rest.append(override)
        for name in named_arms:
            check_names("sweep.arm", name, list(arms))

        for name in named_arms or arms:
            expanded.append([*arm_overrides[name], ARM + name, *rest])
    return expanded


def _overrides_of_arms(arms: dict[str, list[str]], ladder: bool) -> dict[str, list[str]]:
    """Return the overrides of each arm; in a ladder, after those of the arms before it."""
    arm_overrides = {}
    before: list[str] = []
    for name, own in arms.items():
        overrides = _last_of_each_key([*before, *own])
        arm_overrides[name] = overrides
        if ladder:
            before = overrides
    return arm_overrides


def _last_of_each_key(overrides: list[str]) -> list[str]:
    """Return the overrides without those that a later one of the same key replaces."""
    last = {}
    for override in overrides:
        key = override.partition("=")[0]
        last[key] = override
    return list(last.values())
