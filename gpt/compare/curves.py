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
    averaged = empty_curve()
    # Each block of points becomes one.
    size = math.ceil(len(points) / most) if most else 1
    for first in range(0, len(points), max(1, size)):
        block = points[first : first + size]
        last = block[-1]
        averaged["tokens"].append(last.tokens)
        averaged["steps"].append(last.step)
        averaged["time"].append(last.seconds)
        averaged["FLOPs"].append(last.flops)
        averaged["values"].append(statistics.fmean(_values(block)))
    if not run.result.get("flops_per_token"):
        averaged["FLOPs"] = []
    return averaged


def _points(run: Run, key: str) -> list[_Point]:
    """Return the rows of a run that have a key."""
    flops_per_token = run.result.get("flops_per_token") or 0
    # Validation is not in every row.
    points = []
    for row, seconds in zip(run.rows, training_seconds(run.rows), strict=True):
        value = row.get(key)
        if value is not None:
            flops = row["tokens"] * flops_per_token
            points.append(_Point(row["tokens"], row["step"], seconds, flops, value))
    return points


def _values(points: list[_Point]) -> list[float]:
    return [point.value for point in points]


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
            values.append(statistics.fmean(at_point))
    return mean


def empty_curve() -> Curve:
    """Return a curve without points."""
    return {key: [] for key in (*AXES, "values")}
