"""Tables of runs and sweeps, for the terminal and as JSON."""

import time
from pathlib import Path
from typing import Any

from gpt.compare.arms import ABSENT
from gpt.compare.tables import Grid
from gpt.runs.listing import Entry, Listing

COLUMNS = ("run", "state", "model", "data", "size", "tokens", "loss", "when", "commit")  # all can be sorted by
WORDS = {"run", "sweep", "state", "model", "data", "when", "commit"}


def sort_entries(entries: list[Entry], column: str) -> list[Entry]:
    """Return runs in the order of a column, from small to large, with ``-`` before it from large to small.

    Runs without a value come last.
    """
    is_reversed = column.startswith("-")
    name = column.lstrip("-")

    known = []
    unknown = []
    for entry in entries:
        value = _values(entry)[name]
        if value is None:
            unknown.append(entry)
        else:
            known.append(entry)
    known.sort(key=lambda entry: _values(entry)[name], reverse=is_reversed)
    return known + unknown


def runs_grid(entries: list[Entry]) -> Grid:
    """Return the table of runs."""
    rows = []
    for entry in entries:
        values = _values(entry)
        rows.append([_shown(name, values[name]) for name in COLUMNS])
    return Grid(f"{len(entries)} runs", list(COLUMNS), rows, WORDS)


def sweeps_grid(listing: Listing) -> Grid:
    """Return the table of sweeps."""
    rows = []
    for summary in _sweeps(listing):
        cells = summary | {"done": f"{summary['done']} of {summary['jobs']}"}
        rows.append([_shown(name, cells[name]) for name in ("sweep", "done", "loss", "when")])
    return Grid(f"{len(rows)} sweeps", ["sweep", "jobs done", "best loss", "when"], rows, WORDS)


def as_json(entries: list[Entry], listing: Listing) -> dict[str, Any]:
    """Return runs, sweeps and what was skipped, for programs."""
    return {
        "runs": [_values(entry) for entry in entries],
        "sweeps": _sweeps(listing),
        "skipped": [error.problem for error in listing.skipped],
    }


def _sweeps(listing: Listing) -> list[dict[str, Any]]:
    """Return what there is to tell of each sweep."""
    summaries = []
    for path, entries in listing.sweeps.items():
        losses = [entry.loss for entry in entries if entry.loss is not None]
        summary = {
            "sweep": str(path),
            "done": sum(entry.state == "done" for entry in entries),
            "jobs": listing.jobs[path],
            "loss": min(losses, default=None),
            "when": _date(max((entry.when for entry in entries), default=None)),
        }
        summaries.append(summary)
    return summaries


def _values(entry: Entry) -> dict[str, Any]:
    """Return the values of a run by column."""
    return {
        "run": str(entry.path),
        "state": entry.state,
        "model": entry.config["model.name"],
        "data": data_of(entry),
        "size": entry.parameters,
        "tokens": entry.tokens,
        "loss": entry.loss,
        "when": _date(entry.when),
        "commit": entry.commit,
    }


def data_of(entry: Entry) -> str:
    """Return the text of a run in a word: its first file where it has files, or else the option of data."""
    files = entry.config.get("data.files") or []
    if not files:
        return str(entry.config["data.name"])
    more = " …" if len(files) > 1 else ""
    return f"{Path(files[0]).name}{more}"


def remarks(entries: list[Entry], column: str) -> list[str]:
    """Return what to keep in mind where runs are sorted by loss: those on other texts, or of other tokens."""
    kinds = set()
    for entry in entries:
        if entry.loss is not None:
            kinds.add((data_of(entry), entry.config.get("data.tokenizer")))
    if column.lstrip("-") != "loss" or len(kinds) < 2:
        return []
    return ["losses on different texts, or by different tokenizers, rank nothing; of one text: data.files=…, data=…"]


def _shown(column: str, value: Any) -> str:
    """Return a value as text."""
    if value is None:
        return ABSENT
    if column == "loss":
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else value


def _date(when: float | None) -> str | None:
    """Return a time on the clock of this machine, so that later ones sort after earlier ones."""
    return None if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
