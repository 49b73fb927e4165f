"""Save a view of a sweep in W&B: python -m gpt.mirrors.workspace DIR [project=NAME] [entity=NAME]

DIR is the output directory of a sweep whose runs are in W&B (python -m gpt.mirrors.wandb DIR). The view shows its runs
alone, grouped by what differs between its arms: losses and metrics against tokens and steps, learning rate and batch,
final figures and speeds. project and entity are those to which the runs were sent. Prints the address of the view.
"""

import sys
from pathlib import Path

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from gpt.cli import command
from gpt.compare.arms import find_arms
from gpt.compare.runs import TRAIN, VAL, Run, find, measured_names
from gpt.config.load import read
from gpt.errors import InputError, TrainingError
from gpt.evaluation.metrics import PREFIX
from gpt.mirrors.wandb import destination, sweep_name

OWN = ("project", "entity")  # arguments with a value
USAGE = "python -m gpt.mirrors.workspace DIR [project=NAME] [entity=NAME]"


def _workspace(directory: Path, overrides: dict[str, str]) -> ws.Workspace:
    """Return the view of a sweep. Raises InputError."""
    selection = find([directory])
    if selection.sweep is None:
        raise InputError(f"{directory} is one run", "give the output directory of a sweep")
    # The jobs of a sweep are sent to one project, in one group.
    first = selection.runs[0].path
    tracker = destination(read(first / "config.yaml"), overrides)
    group = tracker.group or sweep_name(first)
    # Columns of the table of runs.
    names = measured_names(selection.runs)
    figures = ["val_loss", "best_val_loss", *names, "tokens_per_sec", "hours"]
    return ws.Workspace(
        name=f"sweep {group}",
        entity=tracker.entity or wandb.Api().default_entity,
        project=tracker.project,
        sections=_sections(names),
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group") == group],
            groupby=[expr.Config(key) for key in _grouping_keys(selection.runs)],
            pinned_columns=[f"summary:{figure}" for figure in figures],
        ),
    )


def _sections(names: list[str]) -> list[ws.Section]:
    """Return the panels, those of validation metrics beside those of losses."""
    losses = [_curve(VAL), _curve(TRAIN), _curve(VAL, "step")]
    outcome = [_bars("val_loss")]
    for name in names:
        losses.append(_curve(PREFIX + name))
        outcome.append(_bars(name))
    outcome += [_bars("tokens_per_sec"), _bars("hours")]
    optimizer = [_curve("optim/lr"), _curve("optim/grad_norm"), _curve("optim/batch_tokens")]
    return [
        ws.Section(name="Losses", panels=losses, is_open=True),
        ws.Section(name="Outcome", panels=outcome, is_open=True),
        ws.Section(name="Optimizer", panels=optimizer),
    ]


def _curve(metric: str, x: str = "tokens") -> wr.LinePlot:
    """Return the plot of a metric: the mean of the runs of every arm, and their spread."""
    return wr.LinePlot(
        title=f"{metric} ({x})",
        x=x,
        y=[metric],
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
    )


def _bars(figure: str) -> wr.BarPlot:
    """Return the plot of a figure of the summary."""
    return wr.BarPlot(title=figure, metrics=[figure])


def _grouping_keys(runs: list[Run]) -> list[str]:
    """Return the keys by which W&B groups runs into arms: the sweep's names of arms, or else the keys that differ."""
    differing = find_arms(runs)[0].values
    return ["sweep.arm"] if "sweep.arm" in differing else sorted(differing)


def main() -> None:
    directories, overrides = command.directories_and_values(sys.argv[1:], OWN, USAGE)
    if len(directories) > 1:
        raise InputError("a view is of one sweep", f"usage: {USAGE}")
    try:
        print(_workspace(directories[0], overrides).save().url)
    except wandb.Error as error:
        raise TrainingError(f"W&B took no view: {error}") from error


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
