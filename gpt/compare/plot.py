"""Plot of a comparison: validation losses against tokens, steps, time and FLOPs."""

import io
import math
from typing import Any

from gpt.compare.arms import Arm
from gpt.compare.runs import VAL
from gpt.compare.series import LONG, Series, all_series, axis_titles, colors, loss_range


def plot(title: str, arms: list[Arm], legend: list[str]) -> bytes:
    """Return the plot as PNG. ``legend``: a text for each arm."""
    import matplotlib.figure  # half a second, so only when a plot is drawn
    from matplotlib.lines import Line2D

    lines = all_series(arms)
    limits = loss_range(lines, VAL)
    palette = colors(len(arms))
    # The legend is below the panels, in two columns where its texts are short.
    longest = max(map(len, legend))
    columns = 1 if longest > LONG else 2
    rows = math.ceil(len(arms) / columns)
    height = 7 + 0.22 * rows
    figure = matplotlib.figure.Figure(figsize=(10, height), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, 2, sharey=True)
    # One panel for each axis, all with the same losses.
    titles = axis_titles(lines)
    for panel, axis in zip(panels.flat, titles, strict=True):
        label, unit = titles[axis]
        for line in lines:
            _draw_line(panel, line, axis, unit, palette[line.arm])
        panel.set(xlabel=label, ylim=limits)
        _style_panel(panel, axis)
    for panel in panels[:, 0]:
        panel.set_ylabel("validation loss (nats per token)")
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

    # As a file's content, which the caller writes.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _draw_line(panel: Any, line: Series, axis: str, unit: float, color: str) -> None:
    """Draw the validation losses of a run, or of an arm's mean, against an axis, if it is known."""
    points = line.curves[VAL]
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
    if not panel.lines:
        panel.text(0.5, 0.5, "not known", transform=panel.transAxes, ha="center", color="0.5")
