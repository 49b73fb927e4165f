"""The file of a checkpoint's evaluations."""

import json
from contextlib import nullcontext
from datetime import datetime, timedelta

import torch
from interop.weights import model_config
from rich.console import Console

from gpt.cli.compose import compose
from gpt.device import Compute
from gpt.evaluation import evaluate
from gpt.evaluation.results import add_results
from gpt.evaluation.task import Measurement, Task
from gpt.interop.pretrained import Header
from gpt.signals import Stopped


class Constant(Task):
    """A task that finds a number, or is left before it has found any."""

    def __init__(self, value):
        self.value = value

    @classmethod
    def build(cls, subject):
        return None

    def measure(self, model, step, compute):
        if self.value is None:
            raise Stopped
        return Measurement({"val/constant": self.value})


def test_what_was_found_before_a_signal_is_kept_until_the_command_runs_again(tmp_path):
    header = Header(source="m.bin", format="test", model=model_config(), vocab_size=257, tokenizer="bytes", chars=None)
    command = evaluate.Evaluation(compose([]), header, tmp_path / "m.bin", [], [], ["seed=2"], None)
    compute = Compute(torch.device("cpu"), nullcontext())

    def run(second):
        tasks = {"hellaswag": Constant(0.5), "perplexity": Constant(second)}
        is_whole = evaluate._run(command, tasks, None, compute, Console(quiet=True))
        (entry,) = json.loads((tmp_path / "eval-m.bin.json").read_text())
        assert (entry["tasks"], entry["overrides"]) == (["hellaswag", "perplexity"], ["seed=2"])
        return is_whole, entry["hellaswag"], entry.get("perplexity")

    assert run(None) == (False, {"constant": 0.5}, None)
    assert run(0.25) == (True, {"constant": 0.5}, {"constant": 0.25})


def test_an_entry_has_its_date_and_replaces_that_of_the_same_command(tmp_path):
    checkpoint = tmp_path / "step_00000004"
    command = {"tasks": ["val"], "overrides": ["seed=2"]}
    path = add_results(checkpoint, command, {"step": 4, "val": {"val_loss": 2.0}})
    add_results(checkpoint, {"tasks": ["val"], "overrides": []}, {"step": 4, "val": {"val_loss": 3.0}})
    add_results(checkpoint, command, {"step": 4, "val": {"val_loss": 2.5}})  # the same command, at another time

    entries = json.loads(path.read_text())
    assert [(entry["tasks"], entry["overrides"], entry["val"]["val_loss"]) for entry in entries] == [
        (["val"], [], 3.0),
        (["val"], ["seed=2"], 2.5),
    ]
    assert all(datetime.fromisoformat(entry["date"]).utcoffset() == timedelta(0) for entry in entries)
