"""An optimizer of one's own, from the directory where the command runs, which a plan checks too."""

import sys

import pytest

from gpt.cli import command as cli
from train import train

MODULE = '''
import torch

class Own(torch.optim.SGD):
    """Takes fewer arguments than SGD."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
'''
PLAN = ["plan=true", "data=text", "data.files=[none.txt]", "optimizer=custom", "device=cpu"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["optimizer._target_=own_class.Own", "+optimizer.options.twist=1"],
            "error: own_class.Own takes no twist\n  it takes: lr, weight_decay\n",
        ),
        (
            ["-m", "seed=1,2", "optimizer._target_=own_class.Other"],
            "error: job 1 of 2 (seed-1): optimizer._target_=own_class.Other cannot be imported: module 'own_class' has",
        ),
    ],
)
def test_a_plan_checks_a_class_where_the_command_runs(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_class.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr("sys.argv", ["train.py", *PLAN, *arguments])
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    assert cli.run(train) == 2
    assert capsys.readouterr().err.startswith(message)
