"""Tables of a comparison as text, for the terminal and the page alike."""

import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from gpt.compare.arms import ABSENT, Arm, all_runs
from gpt.compare.runs import TRAIN, Run, metric_names
from gpt.compare.statistics import Difference, Mean
from gpt.evaluation.metrics import metric_of

STYLES = {"better": "green", "worse": "red"}  # of verdicts
MIB = 2**20  # bytes
GIB = 2**30
WORDS = {"arm", "run", "state", "test", "verdict"}  # columns that hold no numbers
NEWS = {"val loss", "loss", "verdict"}  # columns for which a table is read
GAP = 3  # spaces between columns
LONGEST_CELL = 40  # characters of a cell on a terminal


class Grid(NamedTuple):
    """A table as text. Columns of ``words`` are aligned left, numbers right."""

    title: str
    header: list[str]
    rows: list[list[str]]
    words: set[str]


class FittedTable:
    """A table below its title for a rich console. On a terminal it leaves out the columns that do not fit.

    ``whole`` says where they are to be found, and ``styles`` how cells of some texts look.
    """

    def __init__(self, grid: Grid, whole: str, styles: Mapping[str, str] = STYLES):
        self.grid = grid
        self.whole = whole
        self.styles = styles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = self.grid
        left_out: list[str] = []
        if console.is_terminal:
            grid, left_out = fit(grid, options.max_width)

        # As wide as its columns are, so that rich breaks none of them; a path alone may be wider than the terminal.
        yield wrapped(f"\n{grid.title}", "bold")
        yield from console.render(self._as_rich(grid), options.update_width(_width(grid)))
        if left_out:
            names = ", ".join(left_out)
            yield wrapped(f"no room for {names}: see a wider terminal, or {self.whole}", "dim")

    def _as_rich(self, grid: Grid) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        for name in grid.header:
            justify = "left" if name in grid.words else "right"
            table.add_column(Text(name), justify=justify, no_wrap=True)
        for row in grid.rows:
            table.add_row(*(Text(cell, self.styles.get(cell, "")) for cell in row))
        return table


def fit(grid: Grid, width: int) -> tuple[Grid, list[str]]:
    """Return the part of a table that fits a width, and the names of the columns that do not.

    The first column always stays.
    """
    # Only the first column, which names things, has long cells as they are.
    rows = []
    for first, *others in grid.rows:
        rows.append([first, *map(_shortened, others)])
    grid = grid._replace(rows=rows)

    # Columns go from the right, and those for which one reads the table last.
    left_out = []
    go_first = [name for name in grid.header[:0:-1] if name not in NEWS]
    go_last = [name for name in grid.header[:0:-1] if name in NEWS]
    for name in go_first + go_last:
        if _width(grid) <= width:
            break
        left_out.insert(0, name)
        number = grid.header.index(name)
        rows = [row[:number] + row[number + 1 :] for row in grid.rows]
        grid = grid._replace(header=grid.header[:number] + grid.header[number + 1 :], rows=rows)
    return grid, left_out


def wrapped(text: str, style: str = "") -> Text:
    """Return a line that rich breaks between words, also where the console breaks none."""
    return Text(text, style, no_wrap=False, overflow="fold")


def _width(grid: Grid) -> int:
    """Return the number of characters of the lines of a table."""
    total = GAP * (len(grid.header) - 1)
    for column in zip(grid.header, *grid.rows, strict=True):
        total += max(map(cell_len, column))
    return total


def _shortened(cell: str) -> str:
    """Return a cell without the middle of what is too long for a terminal."""
    half = LONGEST_CELL // 2
    return cell if len(cell) <= LONGEST_CELL else f"{cell[: half - 1]}…{cell[-half:]}"


def arms_grid(arms: list[Arm], means: dict[str, Mean]) -> Grid:
    """Return the table of arms: means over their seeds."""
    names = metric_names(all_runs(arms))
    rows = []
    for arm in arms:
        # Only runs that enter the statistics count here.
        mean = means[arm.label]
        runs = list(arm.counted.values())
        best = average(run.best_val_loss for run in runs)
        seconds = average(run.seconds for run in runs)
        speed = average(run.tokens_per_sec for run in runs)
        memory = peak_memory(runs)
        row = {
            "arm": arm.label,
            "seeds": str(mean.n),
            "val loss": with_error(mean),
            "95 % interval": _interval(mean, ".4f"),
            "best": _shown(".4f", best),
            **_metric_cells(runs, names),
            "tokens": _tokens(runs),
            "time": duration(seconds),
            "tokens/s": _shown(",.0f", speed),
            "peak memory": _size(memory),
        }
        rows.append(row)
    title = "validation loss (mean ± standard error, nats per token), mean time and speed, largest memory"
    return _as_grid(title, rows)


def differences_grid(differences: dict[str, Difference], baseline: str) -> Grid:
    """Return the table of arms against the baseline."""
    rows = []
    for label, difference in differences.items():
        row = {
            "arm": label,
            "difference": _shown("+.4f", difference.mean),
            "95 % interval": _interval(difference, "+.4f"),
            "p (Holm)": _p_value(difference.p_holm),
            "test": difference.test or ABSENT,
            "seeds": str(difference.n),
            "verdict": difference.verdict or ABSENT,
        }
        rows.append(row)
    return _as_grid(f"validation loss minus that of {baseline}", rows)


def keys_grid(arms: list[Arm]) -> Grid:
    """Return the table of arms and the values of the keys in which they differ."""
    header = ["arm", *arms[0].values]
    rows = []
    for arm in arms:
        rows.append([arm.label, *arm.values.values()])
    return Grid("keys that differ", header, rows, set(header))


def runs_grid(arms: list[Arm]) -> Grid:
    """Return the table of single runs."""
    runs = all_runs(arms)
    names = metric_names(runs)
    rows = []
    for run in runs:
        # Runs that are not counted are here too, with what they have.
        row = {
            "run": run.name,
            "state": run.state,
            "seed": str(run.seed),
            "val loss": _shown(".4f", run.val_loss),
            "best": _shown(".4f", run.best_val_loss),
            "train loss": _shown(".4f", run.last(TRAIN)),
            **_metric_cells([run], names),
            "tokens": f"{run.tokens:,}",
            "time": duration(run.seconds),
            "tokens/s": _shown(",.0f", run.tokens_per_sec),
            "peak memory": _size(peak_memory([run])),
        }
        rows.append(row)
    return _as_grid("runs", rows)


def _as_grid(title: str, rows: list[dict[str, str]]) -> Grid:
    """Return rows of equal columns as a table, without columns that are empty."""
    # Leave out, for instance, peak memory on a machine that does not know it.
    header = []
    for name in rows[0]:
        column = [row[name] for row in rows]
        if set(column) != {ABSENT}:
            header.append(name)
    texts = []
    for row in rows:
        cells = [row[name] for name in header]
        texts.append(cells)
    return Grid(title, header, texts, WORDS)


def average(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def peak_memory(runs: list[Run]) -> int | None:
    """Return the largest memory of runs, in bytes, or None where it is not known."""
    known = []
    for run in runs:
        peak = run.result.get("peak_memory_bytes")
        if peak:
            known.append(peak)
    return max(known, default=None)


def _metric_cells(runs: list[Run], names: list[str]) -> dict[str, str]:
    """Return the means of validation metrics by the names of their columns."""
    # A metric that no run has leaves its column empty, and so out of the table.
    cells = {}
    for name in names:
        metric = metric_of(name)
        mean = average(run.metric(name) for run in runs)
        cells[metric.label] = _shown(metric.format, mean)
    return cells


def _shown(form: str, value: float | None) -> str:
    return ABSENT if value is None else format(value, form)


def with_error(mean: Mean) -> str:
    """Return a mean and its standard error."""
    if mean.stderr is None:
        return _shown(".4f", mean.mean)
    return f"{mean.mean:.4f} ± {mean.stderr:.4f}"


def _interval(estimate: Mean | Difference, form: str) -> str:
    """Return the ends of an interval."""
    if estimate.low is None:
        return ABSENT
    return f"[{estimate.low:{form}}, {estimate.high:{form}}]"


def _p_value(p: float | None) -> str:
    if p is None:
        return ABSENT
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _tokens(runs: list[Run]) -> str:
    """Return the tokens of runs, or the least and the most of them."""
    # Runs of an arm may have been given different lengths.
    counts = {run.tokens for run in runs}
    if not counts:
        return ABSENT
    least = min(counts)
    most = max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def duration(seconds: float | None) -> str:
    """Return a duration in seconds, in minutes and seconds, or in hours and minutes."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02} min"


def _size(n_bytes: int | None) -> str:
    """Return a number of bytes in MiB or GiB."""
    if not n_bytes:
        return ABSENT
    if n_bytes < GIB:
        mebibytes = n_bytes / MIB
        return f"{mebibytes:,.0f} MiB"
    gibibytes = n_bytes / GIB
    return f"{gibibytes:,.1f} GiB"
