"""Comparison of runs: whether they can be compared, arms, differences from a baseline, and its files."""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group

from gpt.compare.about import describe
from gpt.compare.arms import Arm, all_runs, find_arms
from gpt.compare.comparable import agreement, check_alike, check_counted
from gpt.compare.forest import forest
from gpt.compare.page import page
from gpt.compare.plot import FORMATS, plot
from gpt.compare.runs import TRAIN, Run, Selection, find, metric_names
from gpt.compare.statistics import Difference, Losses, Mean, differences, summarize
from gpt.compare.tables import (
    FittedTable,
    Grid,
    arms_grid,
    average,
    differences_grid,
    keys_grid,
    peak_memory,
    runs_grid,
    with_error,
    wrapped,
)
from gpt.config.values import check_names, did_you_mean
from gpt.errors import InputError
from gpt.files import LAYOUT

OUT = Path("outputs/compare")
PAGE = "compare.html"
WIDE = 1000  # columns of a text that no terminal cuts


@dataclass(slots=True, kw_only=True)
class Comparison:
    """Result of :func:`report`. Means and differences are of final validation losses, by the label of the arm."""

    title: str
    about: dict[str, str]  # question, expected, command, commit, date, as far as they are known
    directory: Path  # of the files
    arms: list[Arm]
    baseline: str | None
    warnings: list[str]
    agreement: str | None  # what the runs have in common, where there are no warnings
    means: dict[str, Mean]
    differences: dict[str, Difference]
    formats: list[str] = field(default_factory=list)  # of the plot, beside PNG
    replaced: bool = False  # another comparison, whose files were there

    @property
    def heading(self) -> str:
        """Question that the runs answer, or else their title."""
        return self.about.get("question", self.title)

    @property
    def text(self) -> str:
        """Output of the command, without colors, and as wide as the tables are."""
        console = Console(file=io.StringIO(), width=WIDE, color_system=None)
        console.print(render(self))
        lines = console.file.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines) + "\n"

    @property
    def files(self) -> dict[str, Path]:
        """Paths of the files, by what they hold."""
        files = {
            "page": self.directory / PAGE,
            "plot": self.directory / "compare.png",
            "text": self.directory / "compare.txt",
            "data": self.directory / "compare.json",
        }
        for name in self.formats:
            files[name] = self.directory / f"compare.{name}"
        return files

    @property
    def notes(self) -> list[str]:
        """Warnings, or else what the runs have in common."""
        if self.agreement is not None:
            return [self.agreement]
        return self.warnings

    @property
    def legend(self) -> list[str]:
        """Text for each arm beside a plot."""
        texts = []
        for arm in self.arms:
            mean = with_error(self.means[arm.label])
            texts.append(f"{arm.label}  val {mean}")
        return texts


def report(
    directories: list[Path],
    baseline: str | None = None,
    out: Path | None = None,
    formats: Sequence[str] = (),
    command: str | None = None,
) -> Comparison:
    """Compare the runs that the directories are or hold, and write compare.html, .png, .txt and .json; prints nothing.

    ``formats`` are those in which the plot is written beside PNG; ``command`` is shown on the page.

    Raises InputError, and then writes nothing.
    """
    comparison = compare(directories, baseline, out)
    comparison.formats = check_formats(formats)
    if command is not None:
        comparison.about["compared by"] = command
    # Make the content of all files, and then write them.
    arms = comparison.arms
    legend = comparison.legend
    html = page(
        comparison.heading,
        comparison.about,
        comparison.notes,
        not comparison.warnings,
        _grids(comparison),
        answer=forest(comparison.differences, comparison.baseline or ""),
        arms=arms,
        legend=legend,
    )
    plots = plot(comparison.heading, arms, legend, ["png", *comparison.formats])
    data = json.dumps(_as_json(comparison), indent=1, allow_nan=False) + "\n"
    files = comparison.files
    contents = {
        files["page"]: html.encode(),
        files["plot"]: plots["png"],
        files["text"]: comparison.text.encode(),
        files["data"]: data.encode(),
    }
    for name in comparison.formats:
        contents[files[name]] = plots[name]
    comparison.replaced = files["page"].exists()
    _write(contents)
    return comparison


def check_formats(formats: Sequence[str]) -> list[str]:
    """Return the formats without the one that is always written. Raises InputError for another one."""
    for name in formats:
        check_names("formats", name, list(FORMATS))
    return [name for name in FORMATS if name in formats and name != "png"]


def compare(directories: list[Path], baseline: str | None, out: Path | None) -> Comparison:
    """Compute the comparison and write nothing. Raises InputError."""
    selection = find(directories)
    arms = find_arms(selection.runs, is_sweep=bool(selection.index))
    # The user's baseline must be there; the sweep's may not have begun.
    chosen = find_baseline(arms, baseline or selection.baseline)
    if chosen is None and baseline:
        raise no_such_arm("baseline", baseline, arms)
    warnings = _warnings(selection, arms, chosen)
    # Statistics are of final losses by seed.
    losses: dict[str, Losses] = {}
    means: dict[str, Mean] = {}
    for arm in arms:
        by_seed = {seed: run.val_loss for seed, run in arm.counted.items()}
        losses[arm.label] = by_seed
        means[arm.label] = summarize(list(by_seed.values()))
    return Comparison(
        title=selection.sweep.resolve().name if selection.sweep else f"{len(selection.runs)} runs",
        about=describe(selection),
        directory=out or selection.sweep or OUT,
        arms=arms,
        baseline=chosen.label if chosen else None,
        warnings=warnings,
        agreement=None if warnings else agreement(arms),
        means=means,
        differences=differences(losses, chosen.label) if chosen else {},
    )


def no_such_arm(key: str, name: str, arms: list[Arm]) -> InputError:
    """Return the refusal of a baseline that is none of the arms."""
    labels = [arm.label for arm in arms]
    return InputError(f"{key}={name} is none of the arms", f"arms: {', '.join(labels)}{did_you_mean(name, labels)}")


def find_baseline(arms: list[Arm], name: str | None) -> Arm | None:
    """Return the arm of this name, in which - may stand for = and _ for a space, as in names of directories."""
    if name is None:
        return None

    def plain(text: str) -> str:
        return text.replace("=", "-").replace(" ", "_")

    # A name that fits exactly comes before one that does so only as the name of a directory.
    exact = [arm for arm in arms if arm.label == name]
    similar = [arm for arm in arms if plain(arm.label) == plain(name)]
    return next(iter(exact + similar), None)


def _warnings(selection: Selection, arms: list[Arm], baseline: Arm | None) -> list[str]:
    """Return what keeps the arms from being compared, or some of their runs from being counted."""
    warnings = check_alike(arms, reference=baseline or arms[0])
    warnings += check_counted(selection, arms)
    if selection.baseline and baseline is None:
        warnings.append(f"the sweep's baseline {selection.baseline} has no run here, so nothing is tested")
    return warnings


def render(comparison: Comparison, with_runs: bool = True) -> Group:
    """Return the output of the command for a rich console: warnings, then the tables, or all but that of the runs."""
    notes = []
    for warning in comparison.warnings:
        notes.append(wrapped(f"warning: {warning}", "yellow"))
    if comparison.agreement:
        notes.append(wrapped(comparison.agreement))
    # A sweep that has just ended has shown its runs already.
    grids = _grids(comparison)
    if not with_runs:
        grids.pop()
    return Group(*notes, *(FittedTable(grid, comparison.files["text"].name) for grid in grids))


def _grids(comparison: Comparison) -> list[Grid]:
    """Return the tables: arms, differences from the baseline, keys that differ, runs."""
    # Differences need a baseline, and keys a second arm.
    arms = comparison.arms
    grids = [arms_grid(arms, comparison.means)]
    if comparison.differences:
        grids.append(differences_grid(comparison.differences, comparison.baseline))
    if arms[0].values:
        grids.append(keys_grid(arms))
    grids.append(runs_grid(arms))
    return grids


def _as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the content of compare.json: everything, unrounded."""
    arms = comparison.arms
    names = metric_names(all_runs(arms))
    return {
        "layout": LAYOUT,
        "title": comparison.title,
        "about": comparison.about,
        "warnings": comparison.warnings,
        "agreement": comparison.agreement,
        "baseline": comparison.baseline,
        "keys": list(arms[0].values),
        "arms": [_arm_as_json(arm, comparison, names) for arm in arms],
        "runs": [_run_as_json(run, arm, names) for arm in arms for run in arm.runs],
    }


def _arm_as_json(arm: Arm, comparison: Comparison, names: list[str]) -> dict[str, Any]:
    difference = comparison.differences.get(arm.label)
    return {
        "arm": arm.label,
        "keys": arm.values,
        "seeds": list(arm.counted),
        "runs": [run.name for run in arm.runs],
        "val_loss": asdict(comparison.means[arm.label]),
        "difference": asdict(difference) if difference else None,
        **_means(list(arm.counted.values()), names),
    }


def _run_as_json(run: Run, arm: Arm, names: list[str]) -> dict[str, Any]:
    return {
        "run": run.name,
        "directory": str(run.path),
        "arm": arm.label,
        "state": run.state,
        "seed": run.seed,
        "is_counted": arm.counts(run),
        "val_loss": run.val_loss,
        "train_loss": run.last(TRAIN),
        "tokens": run.tokens,
        **_means([run], names),
    }


def _means(runs: list[Run], names: list[str]) -> dict[str, float | None]:
    """Return the means of figures of runs, and their largest memory."""
    # Metrics have the keys that they have in result.json.
    metrics = {}
    for name in names:
        metrics[name] = average(run.metric(name) for run in runs)
    return {
        "best_val_loss": average(run.best_val_loss for run in runs),
        **metrics,
        "seconds": average(run.seconds for run in runs),
        "tokens_per_sec": average(run.tokens_per_sec for run in runs),
        "peak_memory_bytes": peak_memory(runs),
    }


def _write(files: dict[Path, bytes]) -> None:
    """Write each file whole, and none where one cannot be written. Raises InputError."""
    parts = {}
    for path in files:
        parts[path] = path.with_name(f".{path.name}")
    try:
        for path in files:
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a directory")
        # Write all of them under other names before the first takes its place.
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
