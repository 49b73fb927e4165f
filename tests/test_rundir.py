"""Names and readers of an output directory, and the locks on it."""

import pytest

from gpt.errors import InputError
from gpt.files import write_json
from gpt.rundir import lock_run_dir, read_result, write_result


def test_any_metric_may_stand_in_a_result_as_a_number(tmp_path):
    write_result(tmp_path, {"status": "done", "val_loss": 2.5, "exact_match": 1, "hellaswag": None, "some/metric": 0.5})
    assert read_result(tmp_path)["some/metric"] == 0.5
    for key in ("val_loss", "exact_match", "some/metric"):
        for value in ("0.5", [0.5], {"a": 0.5}):
            write_json(tmp_path / "result.json", {"layout": 1, "status": "done", key: value})
            with pytest.raises(InputError, match=f"is damaged, or none of ours: {key} is"):
                read_result(tmp_path)


def test_an_error_inside_a_lock_is_not_taken_for_a_lock_of_another(tmp_path):
    with pytest.raises(BlockingIOError), lock_run_dir(tmp_path):
        raise BlockingIOError
    with lock_run_dir(tmp_path), pytest.raises(InputError, match="is in use"), lock_run_dir(tmp_path):
        pass
