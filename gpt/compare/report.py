"""Runs side by side as a plot and as a page: losses of every run and the mean of every arm."""

import colorsys
import html
import io
import json
import math
from pathlib import Path
from string import Template
from typing import NamedTuple

from gpt.compare.runs import AXES, TRAIN, VAL, Arm, Curve, curve, mean_curve
from gpt.compare.tables import STYLES, Grid

PALETTE = "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf".split()
TEMPLATE = Path(__file__).with_suffix(".html")
POINTS = 200  # of a training curve; more are averaged
LONG = 45  # characters of a legend's text that need a line of their own
COINCIDE = 1e-3  # nats
EARLY = 0.1  # share of a curve that may lie above what is shown: it would dwarf the rest


class Series(NamedTuple):
    """A line: a run, or the mean of an arm. The main one is thick; runs that are not counted are dashed."""

    name: str
    arm: int
    is_main: bool
    is_counted: bool
    curves: dict[str, Curve]  # of VAL and TRAIN
    width: float = 1.0


def series(arms: list[Arm]) -> list[Series]:
    """What is drawn, the main lines last, on top."""
    lines = []
    for i, arm in enumerate(arms):
        counted, means = arm.counted, {}
        curves = {run.name: {VAL: curve(run, VAL), TRAIN: curve(run, TRAIN, POINTS)} for run in arm.runs}
        for run in arm.runs:
            is_counted = counted.get(run.seed) is run
            is_main = len(arm.runs) == 1 or (is_counted and len(counted) == 1)
            lines.append(Series(run.name, i, is_main, is_counted, curves[run.name]))
        if len(counted) > 1:
            means = {key: mean_curve([curves[run.name][key] for run in counted.values()]) for key in (VAL, TRAIN)}
        if means.get(VAL):
            empty: Curve = {key: [] for key in (*AXES, "loss")}
            found = {key: mean or empty for key, mean in means.items()}
            lines.append(Series(f"{arm.label}, mean of {len(counted)} seeds", i, True, True, found))
    thin, main = ([line for line in lines if line.is_main == is_main] for is_main in (False, True))
    return thin + [line._replace(width=2 + 2.5 * covered(line, main[i + 1 :])) for i, line in enumerate(main)]


def covered(line: Series, later: list[Series]) -> int:
    """How many of the later lines coincide with this one to the eye: it is drawn wider, to be seen below them."""
    ours = (line.curves[VAL]["tokens"], line.curves[VAL]["loss"])
    theirs = [(other.curves[VAL]["tokens"], other.curves[VAL]["loss"]) for other in later]
    return sum(
        ours[0] == tokens and all(math.isclose(a, b, abs_tol=COINCIDE) for a, b in zip(ours[1], loss, strict=True))
        for tokens, loss in theirs
    )


def colors(n: int) -> list[str]:
    """As many colours: matplotlib's ten, or else hues around the wheel."""
    if n <= len(PALETTE):
        return PALETTE[:n]
    wheel = [colorsys.hls_to_rgb(i / n, 0.42, 0.65) for i in range(n)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in wheel]


def loss_range(lines: list[Series], key: str) -> tuple[float, float] | None:
    """Lowest and highest loss to show, with a margin: the steep beginning of the curves lies above."""
    losses = [line.curves[key]["loss"] for line in lines if line.curves[key]["loss"]]
    if not losses:
        return None
    low = min(map(min, losses))
    high = max(max(y[min(len(y) - 1, max(1, math.ceil(EARLY * len(y)))) :]) for y in losses)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def axes_of(lines: list[Series]) -> dict[str, tuple[str, float]]:
    """The title of every axis, and the number that its values are divided by; time in a unit that fits the longest."""
    longest = max((max(c["time"], default=0) for line in lines for c in line.curves.values()), default=0)
    unit, seconds = ("s", 1) if longest < 180 else ("min", 60) if longest < 10_800 else ("h", 3600)
    return {axis: (axis, 1) for axis in AXES} | {"time": (f"training time ({unit})", seconds)}


def draw(title: str, arms: list[Arm], legend: list[str]) -> bytes:
    """Validation losses against tokens, steps, time and FLOPs as PNG. ``legend``: a text for each arm."""
    import matplotlib.figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    lines, palette = series(arms), colors(len(arms))
    limits, short = loss_range(lines, VAL), EngFormatter(sep="")
    columns = 1 if max(map(len, legend)) > LONG else 2
    height = 7 + 0.22 * math.ceil(len(arms) / columns)
    figure = matplotlib.figure.Figure(figsize=(10, height), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, 2, sharey=True)
    for panel, (axis, (label, unit)) in zip(panels.flat, axes_of(lines).items(), strict=True):
        for line in lines:
            points = line.curves[VAL]
            x = [value / unit for value in points[axis]]
            if not x:
                continue
            style = "-" if line.is_counted else "--"
            marker = "." if line.is_main and len(x) <= 30 else "o" if len(x) == 1 else None
            color, alpha = palette[line.arm], 1.0 if line.is_main else 0.45
            panel.plot(x, points["loss"], style, marker=marker, lw=0.8 * line.width, alpha=alpha, color=color, ms=5)
        panel.set(xlabel=label, ylim=limits)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if axis == "FLOPs":
            panel.ticklabel_format(axis="x", scilimits=(0, 0), useMathText=True)
        elif axis != "time":
            panel.xaxis.set_major_formatter(lambda x, _: short(x).replace("G", "B"))  # 1.5M, 10B
        if not panel.lines:
            panel.text(0.5, 0.5, "not known", transform=panel.transAxes, ha="center", color="0.5")
    for panel in panels[:, 0]:
        panel.set_ylabel("validation loss (nats per token)")
    handles = [Line2D([], [], color=color, lw=1.8) for color in palette]
    figure.legend(handles, legend, loc="outside lower center", ncols=columns, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def page(title: str, notes: list[str], is_fine: bool, grids: list[Grid], arms: list[Arm], legend: list[str]) -> str:
    """The whole page, with plotly's program in it, so that it needs nothing else.

    ``notes``: the warnings, or (``is_fine``) what says that there are none. The last of ``grids`` stands below the
    plot.
    """
    lines = series(arms)
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    content = {
        "curves": [{key: {k: rounded(v) for k, v in c.items()} for key, c in line.curves.items()} for line in lines],
        "axes": {
            axis: {"title": label, "unit": unit, "format": ",.4~s" if axis == "FLOPs" else ",.6~g"}
            for axis, (label, unit) in axes_of(lines).items()
        },
        "losses": {
            key: {"title": f"{name} loss (nats per token)", "range": loss_range(lines, key)}
            for key, name in ((VAL, "validation"), (TRAIN, "training"))
        },
    }
    return Template(TEMPLATE.read_text()).substitute(
        title=html.escape(title),
        notes=f'<ul class="notes {"fine" if is_fine else "warnings"}">{said}</ul>' if notes else "",
        above="".join(map(as_html, grids[:-1])),
        below=as_html(grids[-1]),
        controls=buttons("loss", {VAL: "validation", TRAIN: "training"})
        + buttons("axis", dict(zip(AXES, AXES, strict=True)))
        + buttons("scale", {"linear": "linear", "log": "log"}),
        plot=interactive(lines, legend),
        points=POINTS,
        content=json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),  # ends no script
    )


def as_html(grid: Grid) -> str:
    """A table; numbers stand to the right."""
    kinds = ["word" if name in grid.words else "number" for name in grid.header]

    def cells(tag: str, row: list[str]) -> str:
        made = (
            f'<{tag} class="{kind} {cell if cell in STYLES else ""}">{html.escape(cell)}</{tag}>'
            for kind, cell in zip(kinds, row, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>\n"

    body = "".join(cells("td", row) for row in grid.rows)
    return (
        f'<h2>{html.escape(grid.title)}</h2>\n<div class="scroll"><table>\n<thead>{cells("th", grid.header)}</thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def buttons(of: str, choices: dict[str, str]) -> str:
    """A row of buttons of which one, at first the first, is pressed."""
    made = [
        f'<button type="button" data-of="{of}" value="{value}" aria-pressed="{str(i == 0).lower()}">{text}</button>'
        for i, (value, text) in enumerate(choices.items())
    ]
    return f'<span role="group" aria-label="{of}">{"".join(made)}</span>'


def interactive(lines: list[Series], legend: list[str]) -> str:
    """The plot as a <div> with plotly.js; the page's script gives its lines their points."""
    import plotly.graph_objects as go

    figure, palette, is_long = go.Figure(), colors(len(legend)), max(map(len, legend)) > LONG
    stands_for = {line.arm: line for line in lines}  # the main line where there is one, for it comes last
    for line in lines:
        figure.add_scatter(
            name=html.escape(legend[line.arm]),
            meta=html.escape(line.name),
            legendgroup=str(line.arm),
            legendrank=line.arm + 1,
            showlegend=line is stands_for[line.arm],
            opacity=1.0 if line.is_main else 0.5,
            marker={"size": 6 if line.is_main else 3, "color": palette[line.arm]},
            line={"width": line.width, "dash": "solid" if line.is_counted else "dash"},
        )
    figure.update_layout(
        template="plotly_white",
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1f2328"},
        legend={"orientation": "h", "yanchor": "top", "y": -0.14} if is_long else {},
    )
    return figure.to_html(
        config={"displaylogo": False, "responsive": True},
        include_plotlyjs=True,
        full_html=False,
        default_height=f"{540 + 20 * len(legend) * is_long}px",
        div_id="losses",
    )


def rounded(values: list[float]) -> list[float]:
    """As many digits as a plot can show."""
    return [value if isinstance(value, int) else round(value, 5) for value in values]
