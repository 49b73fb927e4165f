"""Lines of a comparison's plots: one for every run, and one for the mean of every arm with several seeds."""

import colorsys
import math
from typing import NamedTuple

from gpt.compare.arms import Arm, all_runs
from gpt.compare.curves import AXES, Curve, curve, empty_curve, mean_curve
from gpt.compare.runs import TRAIN, VAL, Run, measured_names
from gpt.evaluation.metrics import PREFIX

PALETTE = "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf".split()  # matplotlib's
POINTS = 200  # of a training curve; more are averaged
LONG = 45  # characters of a legend's text that need a line of their own
COINCIDE = 1e-3  # nats
EARLY = 0.1  # fraction of a loss curve that may be above what is shown: it would dwarf the rest


class Series(NamedTuple):
    """A run, or the mean of an arm. The main line of an arm is thick; runs that are not counted are dashed."""

    name: str
    arm: int
    is_main: bool
    is_counted: bool
    curves: dict[str, Curve]  # by key of metrics.jsonl
    width: float = 1.0


def all_series(arms: list[Arm]) -> list[Series]:
    """Return the lines in the order in which they are drawn: the main ones last, on top."""
    keys = curve_keys(arms)
    thin: list[Series] = []
    main: list[Series] = []
    for number, arm in enumerate(arms):
        for line in _series_of(arm, number, keys):
            if line.is_main:
                main.append(line)
            else:
                thin.append(line)

    # A line that others hide is drawn wider, to be seen below them.
    key = main_key(main)
    wide = []
    for i, line in enumerate(main):
        later = main[i + 1 :]
        hidden_by = _count_coinciding(line, later, key)
        width = 2 + 2.5 * hidden_by
        wide.append(line._replace(width=width))
    return thin + wide


def main_key(lines: list[Series]) -> str:
    """Return the key that is shown first: the validation loss, or that of training where no run has a curve of it."""
    n_points = [len(line.curves[VAL]["values"]) for line in lines]
    return VAL if max(n_points, default=0) > 1 else TRAIN


def curve_keys(arms: list[Arm]) -> list[str]:
    """Return the keys that have curves: both losses, and the validation metrics that runs have."""
    keys = [VAL, TRAIN]
    for name in measured_names(all_runs(arms)):
        keys.append(PREFIX + name)
    return keys


def _series_of(arm: Arm, number: int, keys: list[str]) -> list[Series]:
    """Return the lines of an arm: its runs, and their mean where they are several and have the same points."""
    counted = arm.counted
    curves = {}
    for run in arm.runs:
        curves[run.name] = _curves(run, keys)

    # A run that is its arm's only one, or the only one that counts, stands for the arm.
    lines = []
    for run in arm.runs:
        is_counted = arm.counts(run)
        is_only_counted = is_counted and len(counted) == 1
        is_main = len(arm.runs) == 1 or is_only_counted
        line = Series(
            name=run.name,
            arm=number,
            is_main=is_main,
            is_counted=is_counted,
            curves=curves[run.name],
        )
        lines.append(line)
    if len(counted) <= 1:
        return lines

    # The mean of the validation loss must be known, those of others may be.
    means = {}
    for key in keys:
        of_runs = []
        for run in counted.values():
            of_runs.append(curves[run.name][key])
        means[key] = mean_curve(of_runs) or empty_curve()
    if means[VAL]["tokens"]:
        mean = Series(
            name=f"{arm.label}, mean of {len(counted)} seeds",
            arm=number,
            is_main=True,
            is_counted=True,
            curves=means,
        )
        lines.append(mean)
    return lines


def _curves(run: Run, keys: list[str]) -> dict[str, Curve]:
    """Return the curves of a run, the training loss thinned out."""
    curves = {}
    for key in keys:
        most = POINTS if key == TRAIN else None
        curves[key] = curve(run, key, most)
    return curves


def _count_coinciding(line: Series, others: list[Series], key: str) -> int:
    """Count the other lines that cannot be told from this one by eye."""
    ours = line.curves[key]
    count = 0
    for other in others:
        theirs = other.curves[key]
        has_same_points = ours["tokens"] == theirs["tokens"]
        if has_same_points and _coincide(ours["values"], theirs["values"]):
            count += 1
    return count


def _coincide(ours: list[float], theirs: list[float]) -> bool:
    """Return whether values differ by less than the eye can see."""
    pairs = zip(ours, theirs, strict=True)
    return all(math.isclose(a, b, abs_tol=COINCIDE) for a, b in pairs)


def colors(n: int) -> list[str]:
    """Return n colors: matplotlib's ten, or else hues around the wheel."""
    if n <= len(PALETTE):
        return PALETTE[:n]
    wheel = []
    for i in range(n):
        hue = i / n
        channels = colorsys.hls_to_rgb(hue, 0.42, 0.65)
        color = "#"
        for channel in channels:
            color += f"{round(255 * channel):02x}"
        wheel.append(color)
    return wheel


def loss_range(lines: list[Series], key: str) -> tuple[float, float] | None:
    """Return the lowest and highest loss to show, with a margin: the steep beginning of the curves is above."""
    lowest = math.inf
    highest = -math.inf
    for line in lines:
        losses = line.curves[key]["values"]
        if not losses:
            continue
        # Leave out the first tenth; of fewer than ten points all are shown.
        begin = int(EARLY * len(losses))
        later = losses[begin:]
        lowest = min(lowest, *losses)
        highest = max(highest, *later)
    if lowest > highest:
        return None

    # Equal losses get a margin too.
    extent = highest - lowest
    margin = 0.05 * extent or 0.05 * abs(highest) or 1.0
    return lowest - margin, highest + margin


def axis_titles(lines: list[Series]) -> dict[str, tuple[str, float]]:
    """Return, for every axis, its title and the number that its values are divided by.

    Time is in a unit that fits the longest run.
    """
    # Some lines have no points.
    longest = 0.0
    for line in lines:
        for points in line.curves.values():
            time = points["time"]
            longest = max(longest, *time, 0.0)
    if longest < 180:
        unit = ("training time (s)", 1.0)
    elif longest < 10_800:
        unit = ("training time (min)", 60.0)
    else:
        unit = ("training time (h)", 3600.0)

    # The other axes are counts.
    titles = {axis: (axis, 1.0) for axis in AXES}
    titles["time"] = unit
    return titles
