"""Runs side by side: whether they can be compared, arms, differences from a baseline, and the files that say so."""

import contextlib
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from gpt.compare.comparable import agreement, check_alike, check_counted
from gpt.compare.report import draw, page
from gpt.compare.runs import TRAIN, Arm, Run, find, find_arms
from gpt.compare.statistics import Difference, Mean, differences, summarize
from gpt.compare.tables import Grid, arms_grid, as_table, average, differences_grid, keys_grid, runs_grid, with_error
from gpt.config.checks import did_you_mean
from gpt.errors import InputError
from gpt.files import LAYOUT

OUT = Path("outputs/compare")
PAGE = "compare.html"
WIDE = 1000  # columns of a text that no terminal cuts


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What :func:`report` finds. Means and differences are of final validation losses, by the label of the arm."""

    title: str
    directory: Path  # where the files are
    arms: list[Arm]
    baseline: str | None
    warnings: list[str]
    agreement: str | None  # said where there are no warnings
    means: dict[str, Mean]
    differences: dict[str, Difference]

    @property
    def text(self) -> str:
        """What the command prints, without colours, and as wide as the tables are."""
        console = Console(file=io.StringIO(), width=WIDE, color_system=None)
        console.print(render(self))
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"

    @property
    def files(self) -> dict[str, Path]:
        """The files that are written, by what they hold."""
        names = {"page": PAGE, "plot": "compare.png", "text": "compare.txt", "data": "compare.json"}
        return {kind: self.directory / name for kind, name in names.items()}


def report(directories: list[Path], baseline: str | None = None, out: Path | None = None) -> Comparison:
    """Compare the runs that the directories are or hold, and write compare.html, .png, .txt and .json; prints nothing.

    Raises InputError, and then writes nothing.
    """
    comparison = compare(directories, baseline, out)
    legend = [f"{arm.label}  {with_error(comparison.means[arm.label])}" for arm in comparison.arms]
    notes = comparison.warnings or [note for note in [comparison.agreement] if note]
    title, arms, files = comparison.title, comparison.arms, comparison.files
    write(
        {
            files["page"]: page(title, notes, not comparison.warnings, grids(comparison), arms, legend).encode(),
            files["plot"]: draw(title, arms, legend),
            files["text"]: comparison.text.encode(),
            files["data"]: (json.dumps(as_json(comparison), indent=1, allow_nan=False) + "\n").encode(),
        }
    )
    return comparison


def compare(directories: list[Path], baseline: str | None, out: Path | None) -> Comparison:
    """All that is computed; writes nothing. Raises InputError."""
    found = find(directories)
    arms = find_arms(found.runs)
    chosen = find_baseline(arms, baseline or found.baseline)
    if chosen is None and baseline:
        names = [arm.label for arm in arms]
        raise InputError(
            f"baseline={baseline} is none of the arms", f"arms: {', '.join(names)}{did_you_mean(baseline, names)}"
        )
    losses = {arm.label: {seed: run.val_loss for seed, run in arm.counted.items()} for arm in arms}
    reference = chosen or arms[0]
    warned = [*check_alike(arms, reference), *check_counted(found, arms)]
    if found.baseline and chosen is None:
        warned.append(f"the sweep's baseline {found.baseline} has no run here, so nothing is tested")
    return Comparison(
        title=found.sweep.resolve().name if found.sweep else f"{len(found.runs)} runs",
        directory=out or found.sweep or OUT,
        arms=arms,
        baseline=chosen and chosen.label,
        warnings=warned,
        agreement=None if warned else agreement(arms),
        means={label: summarize(list(by_seed.values())) for label, by_seed in losses.items()},
        differences=differences(losses, chosen.label) if chosen else {},
    )


def find_baseline(arms: list[Arm], name: str | None) -> Arm | None:
    """The arm of this name, in which - may stand for = and _ for a space, as in names of directories."""

    def plain(text: str) -> str:
        return text.replace("=", "-").replace(" ", "_")

    exact = [arm for arm in arms if arm.label == name]
    return next(iter(exact or [arm for arm in arms if name and plain(arm.label) == plain(name)]), None)


def render(comparison: Comparison, with_runs: bool = True) -> Group:
    """What the command prints, for a rich console: warnings first, then the tables, or all but that of the runs."""
    said = [Text(f"warning: {warning}", "yellow") for warning in comparison.warnings]
    said += [Text(comparison.agreement)] if comparison.agreement else []
    return Group(*said, *(as_table(grid) for grid in grids(comparison)[: None if with_runs else -1]))


def grids(comparison: Comparison) -> list[Grid]:
    """The tables: arms, differences from the baseline, keys that differ, runs."""
    arms, made = comparison.arms, [arms_grid(comparison.arms, comparison.means)]
    if comparison.differences:
        made.append(differences_grid(comparison.differences, comparison.baseline))
    if arms[0].values:
        made.append(keys_grid(arms))
    return [*made, runs_grid(arms)]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What compare.json holds: all of it, unrounded."""
    return {
        "layout": LAYOUT,
        "title": comparison.title,
        "warnings": comparison.warnings,
        "agreement": comparison.agreement,
        "baseline": comparison.baseline,
        "keys": list(comparison.arms[0].values),
        "arms": [
            {
                "arm": arm.label,
                "keys": arm.values,
                "seeds": list(arm.counted),
                "runs": [run.name for run in arm.runs],
                "val_loss": asdict(comparison.means[arm.label]),
                "difference": asdict(d) if (d := comparison.differences.get(arm.label)) else None,
                **means_of(list(arm.counted.values())),
            }
            for arm in comparison.arms
        ],
        "runs": [
            {
                "run": run.name,
                "directory": str(run.path),
                "arm": arm.label,
                "state": run.state,
                "seed": run.seed,
                "is_counted": arm.counted.get(run.seed) is run,
                "val_loss": run.val_loss,
                "train_loss": run.last(TRAIN),
                "tokens": run.tokens,
                **means_of([run]),
            }
            for arm in comparison.arms
            for run in arm.runs
        ],
    }


def means_of(runs: list[Run]) -> dict[str, float | None]:
    """Of runs the mean of what is one figure each, and the largest memory."""
    return {
        "best_val_loss": average(run.best_val_loss for run in runs),
        "exact_match": average(run.last("val/exact_match") for run in runs),
        "seconds": average(run.seconds for run in runs),
        "tokens_per_sec": average(run.tokens_per_sec for run in runs),
        "peak_memory_bytes": max((run.result.get("peak_memory_bytes") or 0 for run in runs), default=0) or None,
    }


def write(files: dict[Path, bytes]) -> None:
    """Write each file whole, and none where one cannot be. Raises InputError."""
    parts = {path: path.with_name(f".{path.name}") for path in files}
    try:
        if taken := [path for path in files if path.is_dir()]:
            raise IsADirectoryError(f"{taken[0]} is a directory")
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path].write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as error:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink()
        raise InputError(f"the report cannot be written: {error}", "choose another directory with out=DIR") from error
