"""The plot of a run, and what its gradient norm warns of."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

Rows = list[dict[str, Any]]

SPIKE = 5.0  # times the median of the rows before it
CLIMB = 3.0  # last quarter's median over the second quarter's
WINDOW = 50  # rows that a spike is compared with
ENOUGH = 10  # rows without which nothing is said


class NormWarning(NamedTuple):
    """Something about the gradient norm at ``tokens`` that deserves a look."""

    tokens: int
    text: str


def grad_norm_warnings(rows: Rows) -> list[NormWarning]:
    """The largest spike, and a norm that climbs through the run: signs of an unstable one."""
    held = [(row["step"], row["tokens"], row["optim/grad_norm"]) for row in rows if "optim/grad_norm" in row]
    norms = [norm for _, _, norm in held]
    warnings, worst = [], (SPIKE, -1)
    for i in range(ENOUGH, len(held)):
        before = statistics.median(norms[max(0, i - WINDOW) : i])
        worst = max(worst, (norms[i] / before if before > 0 else 0.0, i))
    if worst[1] >= 0:
        step, tokens, norm = held[worst[1]]
        warnings.append(
            NormWarning(tokens, f"gradient norm {norm:.2f} at step {step}, {worst[0]:.0f} × the median before it")
        )
    quarter = len(norms) // 4
    if quarter >= ENOUGH:
        early, late = statistics.median(norms[quarter : 2 * quarter]), statistics.median(norms[-quarter:])
        if late > CLIMB * early:
            warnings.append(
                NormWarning(held[-quarter][1], f"gradient norm climbs: median {early:.2f} early, {late:.2f} late")
            )
    return warnings


def plot(rows: Rows, path: Path, title: str, references: dict[str, float]) -> Path:
    """Draw losses, learning rate, batch size, gradient norm and speed against tokens; returns the path.

    ``references`` are losses to compare with, by name, drawn as dashed lines.
    """
    import matplotlib.figure  # half a second, so only when a plot is drawn
    from matplotlib.ticker import EngFormatter

    figure = matplotlib.figure.Figure(figsize=(8, 10), layout="constrained")
    axes = figure.subplots(5, 1, sharex=True, height_ratios=[4, 1, 1, 1, 1])
    draw_losses(axes[0], rows, references)
    axes[0].set(title=title, ylabel="loss (nats per token)")
    for panel, key, label in zip(
        axes[1:],
        ("optim/lr", "optim/batch_tokens", "optim/grad_norm", "perf/tokens_per_sec"),
        ("learning rate", "tokens per step", "gradient norm", "tokens/s"),
        strict=True,
    ):
        held = [row for row in rows if key in row]
        style = "steps-pre" if key == "optim/batch_tokens" else "default"
        panel.plot([r["tokens"] for r in held], [r[key] for r in held], lw=0.8, drawstyle=style)
        panel.set(ylabel=label, ylim=(0, None))
        panel.yaxis.set_major_formatter("{x:g}" if key == "optim/lr" else EngFormatter(sep=""))  # 0.0006, 500k
    for warning in grad_norm_warnings(rows):
        axes[3].axvline(warning.tokens, color="tab:red", lw=1)
        axes[3].text(0.01, 0.95, f"⚠ {warning.text}", transform=axes[3].transAxes, va="top", color="tab:red", size=8)
    axes[-1].set_xlabel("tokens")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))  # 1.5M
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


def draw_losses(axes: Any, rows: Rows, references: dict[str, float]) -> None:
    """Training and validation loss, and lines to compare with."""
    axes.plot([r["tokens"] for r in rows], [r["train/loss"] for r in rows], lw=0.8, alpha=0.7, label="train, per step")
    evaluated = [r for r in rows if "val/loss" in r]
    if evaluated:
        label = f"validation, {evaluated[-1]['val/loss']:.3f} at the end"
        axes.plot([r["tokens"] for r in evaluated], [r["val/loss"] for r in evaluated], "o-", label=label)
    for (name, loss), color in zip(references.items(), ["0.2", "0.45", *["tab:green"] * len(references)], strict=False):
        axes.axhline(loss, ls="--", lw=0.8, color=color, label=f"{name}, {loss:.3f}")
    axes.legend()
