"""The file of all speedruns, speedrun/records.jsonl: a line for every arm that was run."""

import json
import statistics
from datetime import date
from pathlib import Path
from typing import Any

from gpt.compare.statistics import summarize
from gpt.errors import InputError
from gpt.files import ROOT
from gpt.speedrun.standings import Standing

RECORDS = ROOT / "speedrun" / "records.jsonl"


def as_record(track: str, standing: Standing) -> dict[str, Any]:
    """Return the line of an arm."""
    losses = summarize(list(standing.losses.values()))
    return {
        "date": date.today().isoformat(),
        "track": track,
        "arm": standing.arm,
        "is_record": standing.is_record,
        "overrides": standing.overrides,
        "val_loss": {"mean": losses.mean, "low": losses.low, "high": losses.high},
        "losses": standing.losses,
        "p": standing.p,
        "tokens": standing.tokens,
        "seconds": {
            "mean": statistics.fmean(standing.seconds),
            "min": min(standing.seconds),
            "max": max(standing.seconds),
        },
        "seconds_ratio": standing.seconds_ratio,
        "tokens_ratio": standing.tokens_ratio,
        "facts": standing.facts,
    }


def append(records: list[dict[str, Any]], path: Path) -> None:
    """Add lines to a file of records. Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", "take another file: records=FILE") from error


def read(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a file of records."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
