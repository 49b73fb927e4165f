"""Page of a comparison: one HTML file with its tables and a plot to explore, which needs no network."""

import html
import json
from pathlib import Path
from string import Template
from typing import Any

from gpt.compare.arms import Arm
from gpt.compare.curves import AXES, Curve
from gpt.compare.runs import TRAIN, VAL
from gpt.compare.series import LONG, POINTS, Series, all_series, axis_titles, colors, curve_keys, loss_range, main_key
from gpt.compare.tables import STYLES, Grid
from gpt.evaluation.metrics import PREFIX, metric_of

TEMPLATE = Path(__file__).with_suffix(".html")


def page(
    title: str,
    about: dict[str, str],
    notes: list[str],
    is_fine: bool,
    grids: list[Grid],
    answer: str,
    arms: list[Arm],
    legend: list[str],
) -> str:
    """Return the whole page, with plotly's program in it.

    ``notes``: the warnings, or (``is_fine``) that there are none. ``answer``: the forest plot. The last of ``grids``
    stands below the plot.
    """
    lines = all_series(arms)
    measures = _measures(curve_keys(arms), lines)
    shown_first = main_key(lines)
    template = Template(TEMPLATE.read_text())
    return template.substitute(
        title=html.escape(title),
        about=_about(about),
        answer=answer,
        notes=_notes(notes, is_fine),
        above="".join(map(_as_html, grids[:-1])),
        below=_as_html(grids[-1]),
        controls=_controls(measures, shown_first),
        plot=_interactive_plot(lines, legend),
        measure=shown_first,
        points=POINTS,
        content=_script_content(lines, measures),
    )


def _controls(measures: dict[str, dict[str, Any]], shown_first: str) -> str:
    """Return the buttons by which the reader chooses what is shown."""
    names = {key: measure["button"] for key, measure in measures.items()}
    rows = [
        _buttons("measure", names, shown_first),
        _buttons("axis", {axis: axis for axis in AXES}, AXES[0]),
        _buttons("scale", {"linear": "linear", "log": "log"}, "linear"),
    ]
    return "".join(rows)


def _script_content(lines: list[Series], measures: dict[str, dict[str, Any]]) -> str:
    """Return the data for the script of the page."""
    content = {
        "curves": [_plain_curves(line) for line in lines],
        "axes": _axes(lines),
        "measures": measures,
    }
    # Escaped, so that no name in it ends the script.
    script = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return script.replace("<", "\\u003c")


def _measures(keys: list[str], lines: list[Series]) -> dict[str, dict[str, Any]]:
    """Return what the vertical axis can show, by key: button, titles, formats (of d3), and range if not that of all."""
    measures = {}
    for key in keys:
        measures[key] = _metric_measure(key.removeprefix(PREFIX))
    # Losses have a unit, and begin so high that the range leaves it out.
    for key, kind in ((VAL, "validation"), (TRAIN, "training")):
        measures[key] = {
            "button": kind,
            "title": f"{kind} loss (nats per token)",
            "name": "loss",
            "format": ".4f",
            "ticks": "",
            "range": loss_range(lines, key),
            "references": {},
        }
    return measures


def _metric_measure(name: str) -> dict[str, Any]:
    metric = metric_of(name)
    return {
        "button": metric.label,
        "title": metric.label,
        "name": metric.label,
        "format": metric.format,
        "ticks": "~%" if metric.is_ratio else "",
        "range": None,
        "references": {f"{name}, {value:{metric.format}}": value for name, value in metric.references.items()},
    }


def _axes(lines: list[Series]) -> dict[str, dict[str, Any]]:
    """Return titles, units and formats (of d3) of the horizontal axes."""
    axes = {}
    for axis, (title, unit) in axis_titles(lines).items():
        number = ",.4~s" if axis == "FLOPs" else ",.6~g"
        axes[axis] = {"title": title, "unit": unit, "format": number}
    return axes


def _plain_curves(line: Series) -> dict[str, Curve]:
    """Return the curves of a line with as many digits as a plot can show."""
    plain: dict[str, Curve] = {}
    for key, points in line.curves.items():
        plain[key] = {}
        for axis, values in points.items():
            plain[key][axis] = [_rounded(value) for value in values]
    return plain


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else round(value, 5)


def _about(about: dict[str, str]) -> str:
    """Return what the runs were made for and with; the question is the title."""
    rows = []
    for name, text in about.items():
        if name == "question":
            continue
        shown = html.escape(text)
        if name in ("command", "compared by"):
            shown = f"<code>{shown}</code>"
        rows.append(f"<dt>{name}</dt><dd>{shown}</dd>\n")
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def _notes(notes: list[str], is_fine: bool) -> str:
    if not notes:
        return ""
    kind = "fine" if is_fine else "warnings"
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="notes {kind}">{items}</ul>'


def _as_html(grid: Grid) -> str:
    """Return a table below its title."""
    head = _table_row("th", grid, grid.header)
    body = "".join(_table_row("td", grid, row) for row in grid.rows)
    return (
        f'<h2>{html.escape(grid.title)}</h2>\n<div class="scroll"><table>\n<thead>{head}</thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _table_row(tag: str, grid: Grid, row: list[str]) -> str:
    """Return a row of a table; numbers are aligned right, and verdicts have a color."""
    cells = []
    for column, cell in zip(grid.header, row, strict=True):
        kind = "word" if column in grid.words else "number"
        style = cell if cell in STYLES else ""
        text = html.escape(cell)
        cells.append(f'<{tag} class="{kind} {style}">{text}</{tag}>')
    return f"<tr>{''.join(cells)}</tr>\n"


def _buttons(of: str, choices: dict[str, str], chosen: str) -> str:
    """Return a row of buttons of which one is pressed."""
    buttons = []
    for value, text in choices.items():
        is_pressed = "true" if value == chosen else "false"
        buttons.append(
            f'<button type="button" data-of="{of}" value="{html.escape(value)}" aria-pressed="{is_pressed}">'
            f"{html.escape(text)}</button>"
        )
    return f'<span role="group" aria-label="{of}">{"".join(buttons)}</span>'


def _interactive_plot(lines: list[Series], legend: list[str]) -> str:
    """Return the plot as a <div> with plotly.js; the page's script gives its lines their points."""
    import plotly.graph_objects as go  # a second, so only when a page is written

    figure = go.Figure()
    palette = colors(len(legend))
    # Each arm has one entry in the legend: its main line where there is one, for it comes last.
    representative = {line.arm: line for line in lines}
    for line in lines:
        figure.add_scatter(
            name=html.escape(legend[line.arm]),
            meta=html.escape(line.name),
            legendgroup=str(line.arm),
            legendrank=line.arm + 1,
            showlegend=line is representative[line.arm],
            opacity=1.0 if line.is_main else 0.5,
            marker={"size": 6 if line.is_main else 3, "color": palette[line.arm]},
            line={"width": line.width, "dash": "solid" if line.is_counted else "dash"},
        )
    # Long texts of a legend go below the plot, which grows for them.
    is_long = max(map(len, legend)) > LONG
    figure.update_layout(
        template="plotly_white",
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1f2328"},
        legend={"orientation": "h", "yanchor": "top", "y": -0.14} if is_long else {},
    )
    height = 540
    if is_long:
        height += 20 * len(legend)
    return figure.to_html(
        config={"displaylogo": False, "responsive": True},
        include_plotlyjs=True,
        full_html=False,
        default_height=f"{height}px",
        div_id="losses",
    )
