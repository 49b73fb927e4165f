"""The file of a checkpoint's evaluations."""

import json
from datetime import datetime, timedelta

from gpt.evaluation.results import add_results


def test_an_entry_has_its_date_and_the_tasks_that_ran(tmp_path):
    checkpoint = tmp_path / "step_00000004"
    command = {"tasks": ["val", "exact_match"], "overrides": ["seed=2"]}
    path = add_results(checkpoint, command, {"step": 4, "val": {"val_loss": 2.0}})
    add_results(checkpoint, {"tasks": ["val"], "overrides": []}, {"step": 4, "val": {"val_loss": 3.0}})
    add_results(checkpoint, command, {"step": 4, "val": {"val_loss": 2.5}})  # the same command, at another time

    entries = json.loads(path.read_text())
    assert [(entry["tasks"], entry["overrides"], entry["val"]["val_loss"]) for entry in entries] == [
        (["val"], [], 3.0),
        (["val"], ["seed=2"], 2.5),
    ]
    assert all(datetime.fromisoformat(entry["date"]).utcoffset() == timedelta(0) for entry in entries)
