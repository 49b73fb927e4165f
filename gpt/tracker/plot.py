"""Plot of a run, and warnings about its gradient norm."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt.evaluation.metrics import PREFIX, metric_of

Row = dict[str, Any]  # of metrics.jsonl

SPIKE = 5.0  # times the median of the rows before it
CLIMB = 3.0  # last quarter's median over the second quarter's
WINDOW = 50  # rows that a spike is compared with
ENOUGH = 10  # rows without which there is no warning

TOKENS = "tokens"
TRAIN = "train/loss"
VAL = "val/loss"
NORM = "optim/grad_norm"
BATCH = "optim/batch_tokens"
PANELS = {  # below the losses
    "optim/lr": "learning rate",
    BATCH: "tokens per step",
    NORM: "gradient norm",
    "perf/tokens_per_sec": "tokens/s",
}
METRIC_COLORS = ("0.2", "0.5")  # of lines to compare a metric with
COLORS = ("#1f77b4", "#ff7f0e")  # of training and validation
REFERENCE_COLORS = ("0.2", "0.5", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")
EARLY = 0.1  # fraction of a loss curve that may be above what is shown
SHOWN = 0.99  # fraction of the later training losses that is shown


class _NormWarning(NamedTuple):
    """Warning about the gradient norm at ``tokens``."""

    tokens: int
    text: str


def grad_norm_warnings(rows: list[Row]) -> list[_NormWarning]:
    """Return the largest spike, and a norm that climbs through the run: signs of an unstable one."""
    rows = _with_key(rows, NORM)
    warnings = []
    for warning in (_largest_spike(rows), _climb(rows)):
        if warning is not None:
            warnings.append(warning)
    return warnings


def _largest_spike(rows: list[Row]) -> _NormWarning | None:
    """Return a warning about the norm that is most times the median of the norms before it."""
    norms = _column(rows, NORM)
    largest_ratio = SPIKE
    spike = None
    for i in range(ENOUGH, len(norms)):
        begin = max(0, i - WINDOW)
        median_before = statistics.median(norms[begin:i])
        if median_before <= 0:
            continue
        ratio = norms[i] / median_before
        if ratio >= largest_ratio:
            largest_ratio = ratio
            spike = rows[i]
    if spike is None:
        return None
    norm = spike[NORM]
    step = spike["step"]
    text = f"gradient norm {norm:.2f} at step {step}, {largest_ratio:.0f} × the median before it"
    return _NormWarning(spike[TOKENS], text)


def _climb(rows: list[Row]) -> _NormWarning | None:
    """Return a warning if the norms of the last quarter are far above those of the second."""
    norms = _column(rows, NORM)
    quarter = len(norms) // 4
    if quarter < ENOUGH:
        return None
    # The first quarter is left out: norms are large when a run begins.
    second = norms[quarter : 2 * quarter]
    last = norms[-quarter:]
    early = statistics.median(second)
    late = statistics.median(last)
    if late <= CLIMB * early:
        return None
    text = f"gradient norm climbs: median {early:.2f} early, {late:.2f} late"
    return _NormWarning(rows[-quarter][TOKENS], text)


def plot(rows: list[Row], path: Path, title: str, references: dict[str, float], resumed: Sequence[int] = ()) -> Path:
    """Draw losses, learning rate, batch size, gradient norm and speed against tokens; returns the path.

    ``references`` are losses to compare with, by name; ``resumed`` are the steps after which the run was resumed.
    """
    import matplotlib.figure  # half a second, so only when a plot is drawn
    from matplotlib.ticker import EngFormatter

    # A high panel of losses above low ones.
    keys = _metrics_with_panels(rows) + [key for key in PANELS if _varies(rows, key)]
    figure = matplotlib.figure.Figure(figsize=(10, 5 + 1.3 * len(keys)), layout="constrained")
    heights = [4] + [1] * len(keys)
    losses, *panels = figure.subplots(
        len(heights),
        1,
        sharex=True,
        squeeze=False,
        height_ratios=heights,
    )[:, 0]
    _draw_losses(losses, rows, references)
    figure.suptitle(title)

    # The other keys, with ticks such as 500k, but 0.5 and 0.0006.
    thousands = EngFormatter(sep="")
    for panel, key in zip(panels, keys, strict=True):
        if key not in PANELS:
            _draw_metric(panel, rows, key)
            continue
        _draw_panel(panel, rows, key)
        panel.yaxis.set_major_formatter(lambda x, _: thousands(x) if abs(x) >= 1000 else f"{x:g}")
        if key == NORM:
            _mark_warnings(panel, rows)

    # All share the axis of the last one.
    last = panels[-1] if panels else losses
    last.set_xlabel("tokens")
    last.xaxis.set_major_formatter(lambda x, _: thousands(x).replace("G", "B"))  # 1.5M, 10B
    _mark_resumptions((losses, *panels), rows, resumed)
    for panel in (losses, *panels):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def _varies(rows: list[Row], key: str) -> bool:
    """Return whether a key is worth a panel: a batch of one size is not."""
    values = set(_column(_with_key(rows, key), key))
    return len(values) > 1 if key == BATCH else bool(values)


def _metrics_with_panels(rows: list[Row]) -> list[str]:
    """Return the keys of metrics that have a panel of their own: ratios, as accuracies are."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(PREFIX))
    return [key for key in keys if metric_of(key.removeprefix(PREFIX)).is_ratio]


def _draw_metric(panel: Any, rows: list[Row], key: str) -> None:
    """Draw a metric of an evaluation task, and what others have reached."""
    from matplotlib.ticker import PercentFormatter

    metric = metric_of(key.removeprefix(PREFIX))
    measured = _with_key(rows, key)
    panel.plot(_column(measured, TOKENS), _column(measured, key), "o-", color=COLORS[1], lw=1.6, ms=4)
    for (name, value), color in zip(metric.references.items(), METRIC_COLORS, strict=False):
        panel.axhline(value, ls="--", lw=1, color=color)
        panel.annotate(f"{name}, {value:.2%}", (0.005, value), xycoords=("axes fraction", "data"), va="bottom", size=8)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.set(ylabel=metric.label)
    panel.margins(y=0.25)


def _draw_losses(axes: Any, rows: list[Row], references: dict[str, float]) -> None:
    """Draw training and validation loss, and lines to compare with."""
    # A step's loss is noisy: the mean over the steps around it says more.
    tokens = _column(rows, TOKENS)
    losses = _column(rows, TRAIN)
    means, width = running_mean(losses)
    is_smooth = width > 1
    axes.plot(tokens, losses, color=COLORS[0], lw=0.8, alpha=0.35 if is_smooth else 1.0, label="train, step by step")
    if is_smooth:
        axes.plot(tokens, means, color=COLORS[0], lw=1.6, label=f"train, mean of {width} logged steps")

    # Validation is not in every row.
    evaluated = _with_key(rows, VAL)
    values = _column(evaluated, VAL)
    if evaluated:
        label = f"validation, {values[-1]:.3f} at the end"
        axes.plot(_column(evaluated, TOKENS), values, "o-", color=COLORS[1], lw=1.6, ms=5, label=label)

    # Losses to compare with. Those above what is shown have their place in the legend.
    low, high = loss_limits(losses, means, values, references)
    for name, color in zip(references, REFERENCE_COLORS, strict=False):
        loss = references[name]
        where = ", above" if loss > high else ""
        axes.axhline(loss, ls="--", lw=1, color=color, label=f"{name}, {loss:.3f}{where}")
    axes.set(ylabel="loss (nats per token)", ylim=(low, high))


def running_mean(values: list[float]) -> tuple[list[float], int]:
    """Return the mean of the values around each one, and the largest number of them: a tenth of all."""
    reach = len(values) // 20
    means = []
    for i in range(len(values)):
        # At the beginning, as few after as before: the mean of a falling curve stays on it.
        near = min(reach, i)
        means.append(statistics.fmean(values[i - near : i + near + 1]))
    return means, 2 * reach + 1


def loss_limits(
    losses: list[float],
    means: list[float],
    val_losses: list[float],
    references: dict[str, float],
) -> tuple[float, float]:
    """Return the lowest and highest loss to show, with a margin: the first losses would squeeze the others.

    References below the highest are shown.
    """
    later = sorted(_after_warmup(losses))
    highest = later[math.floor(SHOWN * (len(later) - 1))]
    highest = max(highest, *_after_warmup(val_losses), *_after_warmup(means))
    below = [loss for loss in references.values() if loss <= highest]
    lowest = min(*means, *val_losses, later[0], *below)

    # Equal losses get a margin too.
    extent = highest - lowest
    margin = 0.05 * extent or 0.05 * abs(highest) or 1.0
    return lowest - margin, highest + margin


def _after_warmup(values: list[float]) -> list[float]:
    """Return values without their first tenth, but the last one at least."""
    begin = min(math.ceil(EARLY * len(values)), len(values) - 1)
    return values[max(0, begin) :]


def _mark_resumptions(panels: Sequence[Any], rows: list[Row], resumed: Sequence[int]) -> None:
    """Draw a line in all panels where the run was resumed."""
    label = "resumed"
    for step in resumed:
        # The last step before may not be logged.
        tokens = [row[TOKENS] for row in rows if row["step"] <= step]
        for panel in panels:
            panel.axvline(max(tokens, default=0), color="0.6", lw=1, ls=":", label=label)
            label = None


def _draw_panel(panel: Any, rows: list[Row], key: str) -> None:
    """Draw a key of the rows against tokens."""
    known = _with_key(rows, key)
    # The batch size changes between steps, at once.
    style = "steps-pre" if key == BATCH else "default"
    tokens = _column(known, TOKENS)
    values = _column(known, key)
    panel.plot(tokens, values, color=COLORS[0], lw=0.8, drawstyle=style)
    # The norms of the first steps are many times those of all others.
    highest = max(_after_warmup(values)) if key == NORM else max(values)
    panel.set(ylabel=PANELS[key], ylim=(0, 1.05 * highest or None))


def _mark_warnings(panel: Any, rows: list[Row]) -> None:
    """Mark the warnings in the panel of the gradient norm."""
    for warning in grad_norm_warnings(rows):
        panel.axvline(warning.tokens, color="#d62728", lw=1)
        panel.text(
            0.01,
            0.95,
            f"⚠ {warning.text}",
            transform=panel.transAxes,
            va="top",
            color="#d62728",
            size=8,
        )


def _with_key(rows: list[Row], key: str) -> list[Row]:
    return [row for row in rows if key in row]


def _column(rows: list[Row], key: str) -> list[float]:
    return [row[key] for row in rows]
