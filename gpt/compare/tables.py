"""The tables of a comparison as text, for the terminal and the page alike."""

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpt.compare.runs import ABSENT, TRAIN, Arm
from gpt.compare.statistics import Difference, Mean

STYLES = {"better": "green", "worse": "red"}  # of verdicts


class Grid(NamedTuple):
    """A table as text. Columns of ``words`` are set to the left, numbers to the right."""

    title: str
    header: list[str]
    rows: list[list[str]]
    words: set[str]


def as_table(grid: Grid) -> Group:
    """A table below its title; numbers stand to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in grid.header:
        table.add_column(Text(name), justify="left" if name in grid.words else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    return Group(Text(f"\n{grid.title}", "bold"), table)


def arms_grid(arms: list[Arm], means: dict[str, Mean]) -> Grid:
    """Means over the seeds of every arm."""
    rows = []
    for arm in arms:
        mean, runs = means[arm.label], list(arm.counted.values())
        tokens = sorted({run.tokens for run in runs})
        row = {
            "arm": arm.label,
            "seeds": str(mean.n),
            "val loss": with_error(mean),
            "95 % interval": interval(mean, ".4f"),
            "best": shown(".4f", average(run.best_val_loss for run in runs)),
            "exact match": shown(".2%", average(run.last("val/exact_match") for run in runs)),
            "tokens": " to ".join(f"{n:,}" for n in tokens[:: max(1, len(tokens) - 1)]) or ABSENT,
            "time": duration(average(run.seconds for run in runs)),
            "tokens/s": shown(",.0f", average(run.tokens_per_sec for run in runs)),
            "peak memory": size(max((run.result.get("peak_memory_bytes") or 0 for run in runs), default=0)),
        }
        rows.append(row)
    return as_grid("validation loss (mean ± standard error, nats per token), mean time and speed, largest memory", rows)


def differences_grid(differences: dict[str, Difference], baseline: str) -> Grid:
    """Arms against the baseline."""
    rows = [
        {
            "arm": label,
            "difference": shown("+.4f", d.mean),
            "95 % interval": interval(d, "+.4f"),
            "p (Holm)": ABSENT if d.p_holm is None else f"{d.p_holm:.4f}" if d.p_holm >= 0.0001 else "< 0.0001",
            "test": d.test or ABSENT,
            "seeds": str(d.n),
            "verdict": d.verdict or ABSENT,
        }
        for label, d in differences.items()
    ]
    return as_grid(f"validation loss minus that of {baseline}", rows)


def keys_grid(arms: list[Arm]) -> Grid:
    """Arms and the values of the keys in which they differ."""
    keys = list(arms[0].values)
    return Grid("keys that differ", ["arm", *keys], [[arm.label, *arm.values.values()] for arm in arms], {"arm", *keys})


def runs_grid(arms: list[Arm]) -> Grid:
    """Every run by itself."""
    rows = [
        {
            "run": run.name,
            "state": run.state,
            "seed": str(run.seed),
            "val loss": shown(".4f", run.val_loss),
            "best": shown(".4f", run.best_val_loss),
            "train loss": shown(".4f", run.last(TRAIN)),
            "exact match": shown(".2%", run.last("val/exact_match")),
            "tokens": f"{run.tokens:,}",
            "time": duration(run.seconds),
            "tokens/s": shown(",.0f", run.tokens_per_sec),
            "peak memory": size(run.result.get("peak_memory_bytes")),
        }
        for arm in arms
        for run in arm.runs
    ]
    return as_grid("runs", rows)


def as_grid(title: str, rows: list[dict[str, str]]) -> Grid:
    """Rows of equal columns as a table, without columns in which nothing stands."""
    header = [name for name in rows[0] if any(row[name] != ABSENT for row in rows)]
    words = {"arm", "run", "state", "test", "verdict"}
    return Grid(title, header, [[row[name] for name in header] for row in rows], words)


def shown(form: str, value: float | None) -> str:
    return ABSENT if value is None else format(value, form)


def average(values: Iterable[float | None]) -> float | None:
    """The mean of what is there."""
    held = [value for value in values if value is not None]
    return statistics.fmean(held) if held else None


def with_error(mean: Mean) -> str:
    """A mean and its standard error."""
    return shown(".4f", mean.mean) + ("" if mean.stderr is None else f" ± {mean.stderr:.4f}")


def interval(found: Mean | Difference, form: str) -> str:
    """The ends of an interval."""
    return ABSENT if found.low is None else f"[{found.low:{form}}, {found.high:{form}}]"


def duration(seconds: float | None) -> str:
    """Seconds, minutes and seconds, or hours and minutes."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def size(n_bytes: int | None) -> str:
    """Bytes in MiB or GiB."""
    if not n_bytes:
        return ABSENT
    return f"{n_bytes / 2**20:,.0f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:,.1f} GiB"
