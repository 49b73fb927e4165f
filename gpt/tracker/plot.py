"""Plot of a run, and warnings about its gradient norm."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]  # of metrics.jsonl

SPIKE = 5.0  # times the median of the rows before it
CLIMB = 3.0  # last quarter's median over the second quarter's
WINDOW = 50  # rows that a spike is compared with
ENOUGH = 10  # rows without which there is no warning

TOKENS = "tokens"
TRAIN = "train/loss"
VAL = "val/loss"
NORM = "optim/grad_norm"
PANELS = {  # below the losses
    "optim/lr": "learning rate",
    "optim/batch_tokens": "tokens per step",
    NORM: "gradient norm",
    "perf/tokens_per_sec": "tokens/s",
}


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


def plot(rows: list[Row], path: Path, title: str, references: dict[str, float]) -> Path:
    """Draw losses, learning rate, batch size, gradient norm and speed against tokens; returns the path.

    ``references`` are losses to compare with, by name, drawn as dashed lines.
    """
    import matplotlib.figure  # half a second, so only when a plot is drawn
    from matplotlib.ticker import EngFormatter

    # A high panel of losses above low ones.
    figure = matplotlib.figure.Figure(figsize=(8, 10), layout="constrained")
    heights = [4] + [1] * len(PANELS)
    losses, *panels = figure.subplots(
        len(heights),
        1,
        sharex=True,
        height_ratios=heights,
    )
    _draw_losses(losses, rows, references)
    losses.set(title=title, ylabel="loss (nats per token)")

    # The other keys, with ticks such as 500k, but 0.0006 for learning rates.
    for panel, key in zip(panels, PANELS, strict=True):
        _draw_panel(panel, rows, key)
        ticks = "{x:g}" if key == "optim/lr" else EngFormatter(sep="")
        panel.yaxis.set_major_formatter(ticks)
        if key == NORM:
            _mark_warnings(panel, rows)

    # All share the axis of the last one.
    panels[-1].set_xlabel("tokens")
    panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))  # 1.5M
    for panel in (losses, *panels):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


def _draw_losses(axes: Any, rows: list[Row], references: dict[str, float]) -> None:
    """Draw training and validation loss, and lines to compare with."""
    axes.plot(
        _column(rows, TOKENS),
        _column(rows, TRAIN),
        lw=0.8,
        alpha=0.7,
        label="train, per step",
    )
    evaluated = _with_key(rows, VAL)
    if evaluated:
        tokens = _column(evaluated, TOKENS)
        values = _column(evaluated, VAL)
        axes.plot(tokens, values, "o-", label=f"validation, {values[-1]:.3f} at the end")

    # Two grays for the bounds that every run has, then the references of its data.
    palette = ["0.2", "0.45", *["tab:green"] * len(references)]
    for name, color in zip(references, palette, strict=False):
        loss = references[name]
        axes.axhline(
            loss,
            ls="--",
            lw=0.8,
            color=color,
            label=f"{name}, {loss:.3f}",
        )
    axes.legend()


def _draw_panel(panel: Any, rows: list[Row], key: str) -> None:
    """Draw a key of the rows against tokens."""
    known = _with_key(rows, key)
    # The batch size changes between steps, at once.
    style = "steps-pre" if key == "optim/batch_tokens" else "default"
    tokens = _column(known, TOKENS)
    values = _column(known, key)
    panel.plot(tokens, values, lw=0.8, drawstyle=style)
    panel.set(ylabel=PANELS[key], ylim=(0, None))


def _mark_warnings(panel: Any, rows: list[Row]) -> None:
    """Mark the warnings in the panel of the gradient norm."""
    for warning in grad_norm_warnings(rows):
        panel.axvline(warning.tokens, color="tab:red", lw=1)
        panel.text(
            0.01,
            0.95,
            f"⚠ {warning.text}",
            transform=panel.transAxes,
            va="top",
            color="tab:red",
            size=8,
        )


def _with_key(rows: list[Row], key: str) -> list[Row]:
    return [row for row in rows if key in row]


def _column(rows: list[Row], key: str) -> list[float]:
    return [row[key] for row in rows]
