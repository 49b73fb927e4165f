"""Save a view of a sweep in W&B: python -m gpt.mirrors.workspace DIR [project=NAME] [entity=NAME]

DIR is the output directory of a sweep whose runs are in W&B (python -m gpt.mirrors.wandb DIR). The view shows its runs
alone, grouped by what differs between its arms: losses against tokens and steps, learning rate and batch, final losses
and speeds. project and entity are those to which the runs were sent. Prints the address of the view.
"""

import sys
from pathlib import Path

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from gpt.cli import command
from gpt.compare.runs import find, find_arms
from gpt.config.load import read
from gpt.errors import InputError, TrainingError
from gpt.mirrors.wandb import sweep_name, target

OWN = ("project", "entity")  # arguments with a value
USAGE = "python -m gpt.mirrors.workspace DIR [project=NAME] [entity=NAME]"


def curve(metric: str, x: str = "tokens") -> wr.LinePlot:
    """A metric of every arm: the mean of its runs, and their spread."""
    return wr.LinePlot(title=f"{metric} ({x})", x=x, y=[metric], groupby_aggfunc="mean", groupby_rangefunc="stderr")


def workspace(directory: Path, given: dict[str, str]) -> ws.Workspace:
    """The view of a sweep. Raises InputError."""
    found = find([directory])
    if found.sweep is None:
        raise InputError(f"{directory} is one run", "give the output directory of a sweep")
    first = found.runs[0].path
    to = target(read(first / "config.yaml"), given)
    group = to.group or sweep_name(first)
    differing = {key for arm in find_arms(found.runs) for key in arm.values}
    return ws.Workspace(
        name=f"sweep {group}",
        entity=to.entity or wandb.Api().default_entity,
        project=to.project,
        sections=[
            ws.Section(
                name="Losses", panels=[curve("val/loss"), curve("train/loss"), curve("val/loss", "step")], is_open=True
            ),
            ws.Section(
                name="Outcome",
                panels=[wr.BarPlot(title=key, metrics=[key]) for key in ("val_loss", "tokens_per_sec", "hours")],
                is_open=True,
            ),
            ws.Section(name="Optimizer", panels=[curve(f"optim/{key}") for key in ("lr", "grad_norm", "batch_tokens")]),
        ],
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group") == group],
            groupby=[expr.Config(key) for key in sorted({"sweep.arm"} & differing or differing)],
            pinned_columns=["summary:val_loss", "summary:best_val_loss", "summary:tokens_per_sec", "summary:hours"],
        ),
    )


def main() -> None:
    directories, given = command.directories_and_values(sys.argv[1:], OWN, USAGE)
    if len(directories) > 1:
        raise InputError("a view is of one sweep", f"usage: {USAGE}")
    try:
        print(workspace(directories[0], given).save().url)
    except wandb.Error as error:
        raise TrainingError(f"W&B took no view: {error}") from error


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
