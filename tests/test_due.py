"""What is due after a step, at exact values."""

from types import SimpleNamespace

from gpt.checkpoint.state import Progress
from gpt.cli.compose import compose
from gpt.evaluation.task import due_tasks
from gpt.trainer import Due, due_after, histograms_due

TASKS = {"val": SimpleNamespace(every=2_000), "hellaswag": SimpleNamespace(every=5_000)}


def due(step: int, total_steps: int = 100, tokens_per_step: int = 1_000, *overrides: str) -> Due:
    config = compose(["trainer.log_every=10", "checkpoint.every=25", *overrides])
    progress = Progress(step=step, tokens=step * tokens_per_step)
    return due_after(config, total_steps, TASKS, progress, tokens_per_step)


def test_tasks_are_due_when_their_tokens_are_reached():
    assert due_tasks(TASKS, 999, 1_999, is_last=False) == []
    assert due_tasks(TASKS, 1_000, 2_000, is_last=False) == ["val"]
    assert due_tasks(TASKS, 2_000, 3_000, is_last=False) == []
    assert due_tasks(TASKS, 4_999, 5_000, is_last=False) == ["hellaswag"]
    assert due_tasks(TASKS, 9_000, 10_001, is_last=False) == ["val", "hellaswag"]
    assert due_tasks(TASKS, 0, 1, is_last=True) == ["val", "hellaswag"]


def test_first_and_every_tenth_step_are_logged_every_25th_is_saved_and_the_last_is_both():
    assert due(1) == Due(tasks=[], log=True, save=False)
    assert due(3) == Due(tasks=[], log=False, save=False)
    assert due(4) == Due(tasks=["val"], log=True, save=False)
    assert due(20) == Due(tasks=["val", "hellaswag"], log=True, save=False)
    assert due(25) == Due(tasks=["hellaswag"], log=True, save=True)
    assert due(33, 33) == Due(tasks=["val", "hellaswag"], log=True, save=True)


def test_histograms_are_logged_with_their_step():
    config = compose(["tracker.histograms_every=7"])
    assert [step for step in range(1, 30) if histograms_due(config, step)] == [7, 14, 21, 28]
    assert not histograms_due(compose([]), 7)
    assert due(7, 100, 10, "tracker.histograms_every=7") == Due(tasks=[], log=True, save=False)
