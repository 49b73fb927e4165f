"""Curves of runs: a loss or a metric against tokens, steps, training time and FLOPs."""

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
    size = -(-len(points) // most) if most else 1  # points that become one
    averaged: Curve = {axis: [] for axis in (*AXES, "values")}
    for first in range(0, len(points), max(1, size)):
        block = points[first : first + size]
        last = block[-1]
        averaged["tokens"].append(last.tokens)
        averaged["steps"].append(last.step)
        averaged["time"].append(last.seconds)
        averaged["FLOPs"].append(last.flops)
        averaged["values"].append(statistics.fmean(point.value for point in block))
    if not run.result.get("flops_per_token"):
        averaged["FLOPs"] = []
    return averaged


def _points(run: Run, key: str) -> list[_Point]:
    """Return the rows of a run that have a key."""
    flops_per_token = run.result.get("flops_per_token") or 0
    points = []
    for row, seconds in zip(run.rows, training_seconds(run.rows), strict=True):
        value = row.get(key)
        if value is not None:
            flops = row["tokens"] * flops_per_token
            points.append(_Point(row["tokens"], row["step"], seconds, flops, value))
    return points


def mean_curve(curves: list[Curve]) -> Curve | None:
    """Return the mean of curves that have the same points, or None where they have not."""
    if not curves or not curves[0]["tokens"]:
        return None
    if any(other["tokens"] != curves[0]["tokens"] for other in curves):
        return None
    mean: Curve = {}
    for key in curves[0]:
        # An axis that one of the runs does not know is empty in the mean too.
        at_each_point = zip(*(curve[key] for curve in curves), strict=False)
        mean[key] = [statistics.fmean(values) for values in at_each_point]
    return mean


def empty_curve() -> Curve:
    """Return a curve without points."""
    return {key: [] for key in (*AXES, "values")}
