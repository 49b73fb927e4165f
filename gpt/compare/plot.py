"""Plot of a comparison: losses against tokens, steps, time and FLOPs, as far as these tell different things."""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from gpt.compare.arms import Arm
from gpt.compare.curves import AXES
from gpt.compare.runs import VAL
from gpt.compare.series import LONG, Series, all_series, axis_titles, colors, loss_range, main_key

# Formats of the plot, and what leaves times and versions out of them.
FORMATS = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
ALIKE = 0.01  # of the width of a panel: curves that are closer are the same to the eye


def plot(title: str, arms: list[Arm], legend: list[str], formats: Sequence[str]) -> dict[str, bytes]:
    """Return the plot in each of the formats. ``legend``: a text for each arm."""
    import matplotlib.figure  # half a second, so only when a plot is drawn

    lines = all_series(arms)
    key = main_key(lines)
    limits = loss_range(lines, key)
    palette = colors(len(arms))
    # The legend is below the panels, in two columns where its texts are short.
    longest = max(map(len, legend))
    columns = 1 if longest > LONG else 2
    rows = math.ceil(len(arms) / columns)
    axes = _telling_axes(lines, key)
    n_rows = 2 if len(axes) > 3 else 1
    n_columns = math.ceil(len(axes) / n_rows)
    width = max(7, 4.6 * n_columns)
    height = 3.5 * n_rows + 1.2 + 0.22 * rows
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(textwrap.fill(title, round(9 * width)))
    panels = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    # One panel for each axis, all with the same losses.
    titles = axis_titles(lines)
    for panel, axis in zip(panels.flat, axes, strict=True):
        label, unit = titles[axis]
        for line in lines:
            _draw_line(panel, line, key, axis, unit, palette[line.arm])
        panel.set(xlabel=label, ylim=limits)
        _style_panel(panel, axis)
    kind = "validation" if key == VAL else "training"
    for panel in panels[:, 0]:
        panel.set_ylabel(f"{kind} loss (nats per token)")
    _add_legend(figure, palette, legend, columns)
    return {name: _saved(figure, name) for name in formats}


def _telling_axes(lines: list[Series], key: str) -> list[str]:
    """Return the axes that are known, without those on which all curves look as on one before."""
    axes: list[str] = []
    positions: list[list[float]] = []
    for axis in AXES:
        longest = 0.0
        for line in lines:
            longest = max(longest, *line.curves[key][axis], 0.0)
        if not longest:
            continue

        # Where the points of all lines are, in widths of the panel.
        here = []
        for line in lines:
            here += [value / longest for value in line.curves[key][axis]]
        if not any(_look_alike(here, other) for other in positions):
            axes.append(axis)
            positions.append(here)
    return axes


def _look_alike(ours: list[float], theirs: list[float]) -> bool:
    """Return whether points are at the same positions; an axis that some runs do not know has fewer."""
    if len(ours) != len(theirs):
        return False
    return all(math.isclose(a, b, abs_tol=ALIKE) for a, b in zip(ours, theirs, strict=True))


def _add_legend(figure: Any, palette: list[str], legend: list[str], columns: int) -> None:
    """Add the legend below the panels."""
    from matplotlib.lines import Line2D

    # Arms have colors, so that one handle stands for all runs of an arm.
    handles = []
    for color in palette:
        handles.append(Line2D([], [], color=color, lw=1.8))
    figure.legend(
        handles,
        legend,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def _saved(figure: Any, name: str) -> bytes:
    """Return a figure as the content of a file, which the caller writes; equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gptlab"}):
        figure.savefig(buffer, format=name, dpi=150, metadata=FORMATS[name])
    return buffer.getvalue()


def _draw_line(panel: Any, line: Series, key: str, axis: str, unit: float, color: str) -> None:
    """Draw the losses of a run, or of an arm's mean, against an axis, if it is known."""
    points = line.curves[key]
    x = [value / unit for value in points[axis]]
    if not x:
        return
    # Points are marked where they are few, and where one alone would not be seen.
    marker = None
    if line.is_main and len(x) <= 30:
        marker = "."
    elif len(x) == 1:
        marker = "o"
    panel.plot(
        x,
        points["values"],
        "-" if line.is_counted else "--",
        marker=marker,
        lw=0.8 * line.width,
        alpha=1.0 if line.is_main else 0.45,
        color=color,
        ms=5,
    )


def _style_panel(panel: Any, axis: str) -> None:
    """Set grid, spines and the numbers of the horizontal axis."""
    from matplotlib.ticker import EngFormatter

    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    if axis == "FLOPs":
        panel.ticklabel_format(axis="x", scilimits=(0, 0), useMathText=True)
    elif axis != "time":
        short = EngFormatter(sep="")
        panel.xaxis.set_major_formatter(lambda x, _: short(x).replace("G", "B"))  # 1.5M, 10B
