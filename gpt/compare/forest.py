"""Forest plot of a comparison, in HTML without pictures: the difference of every arm from the baseline."""

import html
import math
from collections.abc import Callable

from gpt.compare.arms import ABSENT
from gpt.compare.statistics import SEEDS, Difference

MARGIN = 0.06  # of the extent, beside the outermost interval
TICKS = 6  # at most, about


def forest(differences: dict[str, Difference], baseline: str) -> str:
    """Return a row for each arm with its interval on a common axis, and its figures; nothing without a difference."""
    known = [difference for difference in differences.values() if difference.mean is not None]
    if not known:
        return ""
    lowest, highest = _extent(known)
    step = _step(highest - lowest)

    # Everything is placed in percent, so that the plot is as wide as the page.
    def at(value: float) -> str:
        percent = 100 * (value - lowest) / (highest - lowest)
        return f"{min(max(percent, 0), 100):.2f}%"

    rows = []
    for label, difference in differences.items():
        rows.append(_row(label, difference, at))
    ticks = []
    for number in range(math.ceil(lowest / step), math.floor(highest / step) + 1):
        value = number * step
        ticks.append(f'<span style="left:{at(value)}">{_signed(value, step)}</span>')
    return (
        f"<h2>difference from {html.escape(baseline)}</h2>\n"
        '<div class="forest">\n'
        f"{''.join(rows)}"
        f'<div class="ticks"><div class="axis">{"".join(ticks)}</div></div>\n'
        "</div>\n"
        '<p class="hint">Validation loss minus that of the baseline in nats per token, with its 95 % interval: left '
        "of 0 is better.</p>\n"
    )


def _row(label: str, difference: Difference, at: Callable[[float], str]) -> str:
    """Return the row of an arm: its name, its interval, its figures."""
    marks = [f'<i class="zero" style="left:{at(0)}"></i>']
    figures = ABSENT
    if difference.mean is not None:
        figures = f"{difference.mean:+.4f}"
        if difference.low is not None:
            width = f"calc({at(difference.high)} - {at(difference.low)})"
            marks.append(f'<i class="interval" style="left:{at(difference.low)};width:{width}"></i>')
            figures += f" [{difference.low:+.4f}, {difference.high:+.4f}]"
        marks.append(f'<i class="point" style="left:{at(difference.mean)}"></i>')
    verdict = difference.verdict or ""
    return (
        f'<div class="row {verdict}"><b>{html.escape(label)}</b>'
        f'<div class="axis">{"".join(marks)}</div>'
        f"<span>{figures} <em>{verdict}</em></span></div>\n"
    )


def _extent(differences: list[Difference]) -> tuple[float, float]:
    """Return the ends of the axis: 0 and all differences are on it.

    The intervals of few seeds, which can be a hundred times as wide as others, are cut off.
    """
    values = [0.0]
    decisive = [difference for difference in differences if difference.n >= SEEDS]
    for difference in differences:
        values.append(difference.mean)
    for difference in decisive or differences:
        if difference.low is not None:
            values += [difference.low, difference.high]

    # Arms that are all equal get an axis too.
    lowest = min(values)
    highest = max(values)
    margin = MARGIN * (highest - lowest) or 0.01
    return lowest - margin, highest + margin


def _step(extent: float) -> float:
    """Return a distance of ticks that is 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(extent / TICKS))
    for factor in (1, 2, 5):
        if extent / (factor * power) <= TICKS:
            return factor * power
    return 10 * power


def _signed(value: float, step: float) -> str:
    """Return a tick's number with as many digits as the step needs."""
    digits = max(0, -math.floor(math.log10(step)))
    return "0" if math.isclose(value, 0, abs_tol=step / 2) else f"{value:+.{digits}f}"
