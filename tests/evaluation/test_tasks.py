"""Evaluation tasks: a new one needs its file and its row, and its metrics are found everywhere by key."""

import math
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from gpt.compare import compare
from gpt.config.load import save
from gpt.errors import InputError, TrainingError
from gpt.evaluation import tasks
from gpt.evaluation.task import Measurement, Task
from gpt.tracker.logs import read_metrics
from gpt.tracker.tracker import describe


@dataclass
class WeightNorm(Task):
    """A task as one would add it: the norm of the token embedding."""

    every: int

    @classmethod
    def build(cls, subject):
        return cls(subject.config.trainer.eval_every)

    def measure(self, model, step, compute):
        return Measurement({"val/weight_norm": model.wte.weight.norm().item()})

    def closing(self, last):
        return {"weight_norm_squared": last["val/weight_norm"] ** 2}, "the embedding was measured"


def test_a_task_is_logged_shown_summed_up_and_compared_by_its_key(trainer, monkeypatch, capsys):
    module = ModuleType("weight_norm")
    module.WeightNorm = WeightNorm
    monkeypatch.setitem(sys.modules, "weight_norm", module)
    monkeypatch.setitem(tasks.TASKS, "weight_norm", tasks.Entry("weight_norm", "WeightNorm", reads_data=False))
    run = trainer("trainer.max_steps=4", "trainer.eval_every=512", "sample.tokens=0")
    result = run.fit()
    rows = read_metrics(run.run_dir)
    evaluated = [row for row in rows if "val/weight_norm" in row]
    assert [row["step"] for row in evaluated] == [row["step"] for row in rows if "val/loss" in row] == [2, 4]
    norm = run.state.model.wte.weight.norm().item()
    assert result["weight_norm"] == evaluated[-1]["val/weight_norm"] == norm
    assert result["weight_norm_squared"] == norm**2
    assert f"weight norm {norm:.4f}" in describe(evaluated[-1])
    said = capsys.readouterr().out
    assert "the embedding was measured" in said
    assert f"weight norm {norm:.4f}" in said
    save(run.config, run.run_dir / "config.yaml")
    comparison = compare([run.run_dir], None, None)
    assert "weight norm" in comparison.text


def test_samples_are_those_of_their_seed_and_step_on_every_rank(trainer):
    run = trainer("trainer.max_steps=2", "trainer.eval_every=256")
    run.fit()
    task = run.tasks["sample"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        texts = {task.measure(run.state.model, 2, run.compute).text for _ in range(2)}
    assert len(texts) == 1
    assert (run.run_dir / "samples.txt").read_text().endswith(f"--- step 2\n{texts.pop()}\n")


def test_the_table_names_real_tasks():
    for name, entry in tasks.TASKS.items():
        module = __import__(entry.module, fromlist=[entry.name])
        assert issubclass(getattr(module, entry.name), Task), name
    assert next(iter(tasks.TASKS)) == "val"  # by which checkpoints are chosen, so a stop leaves it out last


def test_a_metric_that_is_not_finite_ends_the_run_before_anything_is_logged(trainer, monkeypatch):
    run = trainer("trainer.max_steps=4", "trainer.eval_every=512", "checkpoint.every=1")
    monkeypatch.setattr(run.tasks["val"], "measure", lambda *_: Measurement({"val/loss": math.nan}))
    with pytest.raises(TrainingError, match=r"step 2: val/loss nan\n  the checkpoint of step 2 is intact"):
        run.fit()
    assert [row["step"] for row in read_metrics(run.run_dir)] == [1]


def test_a_task_that_was_chosen_is_measured_or_refused():
    tasks.check_measurable([], {"val": None})  # the default takes what there is
    tasks.check_measurable(["val"], {"val": None})
    with pytest.raises(InputError, match="exact_match has nothing to measure"):
        tasks.check_measurable(["val", "exact_match"], {"val": None})
