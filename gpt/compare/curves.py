"""Curves of runs: a loss or a metric against tokens, steps, training time and FLOPs."""

import math
import statistics
from typing import NamedTuple

from gpt.compare.runs import Run, training_seconds

AXES = ("tokens", "steps", "time", "FLOPs")  # time in seconds

Curve = dict[str, list[float]]  # AXES and "values"; an axis that is not known is empty


class _Point(NamedTuple):
    tokens: int
    step: int
    seconds: float
    flops: float
    value: float


def curve(run: Run, key: str, most: int | None = None) -> Curve:
    """Return the values of a key of metrics.jsonl against every axis.

    With more than ``most`` points, consecutive ones are averaged, and placed at the last of them.
    """
    points = _points(run, key)
    size = 1
    if most and points:
        size = math.ceil(len(points) / most)

    # Each block of points becomes one.
    averaged = empty_curve()
    for first in range(0, len(points), size):
        block = points[first : first + size]
        last = block[-1]
        values = [point.value for point in block]
        averaged["tokens"].append(last.tokens)
        averaged["steps"].append(last.step)
        averaged["time"].append(last.seconds)
        averaged["FLOPs"].append(last.flops)
        averaged["values"].append(statistics.fmean(values))
    if not run.result.get("flops_per_token"):
        averaged["FLOPs"] = []
    return averaged


def _points(run: Run, key: str) -> list[_Point]:
    """Return the rows of a run that have a key."""
    flops_per_token = run.result.get("flops_per_token") or 0
    times = training_seconds(run.rows)
    points = []
    for row, seconds in zip(run.rows, times, strict=True):
        # Validation is not in every row.
        value = row.get(key)
        if value is None:
            continue
        point = _Point(
            tokens=row["tokens"],
            step=row["step"],
            seconds=seconds,
            flops=row["tokens"] * flops_per_token,
            value=value,
        )
        points.append(point)
    return points


def mean_curve(curves: list[Curve]) -> Curve | None:
    """Return the mean of curves that have the same points, or None where they have not."""
    first = curves[0] if curves else empty_curve()
    if not first["tokens"]:
        return None
    for other in curves:
        if other["tokens"] != first["tokens"]:
            return None
    mean = empty_curve()
    for key, values in mean.items():
        columns = [curve[key] for curve in curves]
        # An axis that one of the runs does not know is empty in the mean too.
        for at_point in zip(*columns, strict=False):
            average = statistics.fmean(at_point)
            values.append(average)
    return mean


def empty_curve() -> Curve:
    """Return a curve without points."""
    return {key: [] for key in (*AXES, "values")}
