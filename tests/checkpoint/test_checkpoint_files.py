"""Checkpoints as files, without torch: names, state.json, damage."""

import json
import subprocess
import sys

import pytest

from gpt.checkpoint import files
from gpt.checkpoint.files import (
    check_no_sweep,
    check_whole,
    checkpoint_dir,
    find_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    read_state,
    resume_hint,
    write_state,
)
from gpt.errors import InputError
from gpt.files import ROOT, write_json

CONTENT = {"fingerprint": "a", "tokenizer": {}, "logs": {}, "progress": {"step": 7, "tokens": 448}}


def make(run_dir, step, content=CONTENT):
    """Make a checkpoint without tensors."""
    path = checkpoint_dir(run_dir, step)
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    write_state(path, content, {"model.safetensors": files.file_hash(path / "model.safetensors")})
    return path


def test_a_state_is_read_as_it_was_written(tmp_path):
    path = make(tmp_path, 7)
    state = check_whole(path)
    assert state.pop("sha256").keys() == {"model.safetensors"}
    assert state == {"layout": 1, **CONTENT}


@pytest.mark.parametrize("layout", [2, 17, "b", None, [1]])
def test_another_layout_is_refused_by_its_number_whatever_its_keys(tmp_path, layout):
    path = make(tmp_path, 7)
    (path / "state.json").write_text(json.dumps({"layout": layout}))
    for reader in (read_state, check_whole):
        with pytest.raises(InputError, match=r"state\.json has layout .*, and this version of gptlab reads up to 1"):
            reader(path)


@pytest.mark.parametrize(
    "change",
    [{key: None} for key in CONTENT] + [{"progress": {}}, {"progress": {"step": 7}}, {"logs": 3}, {"sha256": 0}, {"sha256": {}}],
)  # fmt: skip
def test_a_state_of_layout_0_that_lacks_something_is_damaged(tmp_path, change):
    path = make(tmp_path, 7)
    (path / "state.json").write_text(json.dumps(CONTENT))
    assert read_state(path)["progress"]["step"] == 7
    content = {key: value for key, value in {**CONTENT, **change}.items() if value is not None}
    (path / "state.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"state\.json is damaged: "):
        read_state(path)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert resume_hint(tmp_path).startswith("nothing had been saved yet")
    paths = [make(tmp_path, step) for step in (20, 99_999_999, 100_000_000)]
    (tmp_path / "checkpoints" / "step_1").mkdir()
    (tmp_path / "checkpoints" / ".step_00000021").mkdir()
    assert list_checkpoints(tmp_path) == paths
    assert latest_checkpoint(tmp_path) == paths[-1]
    assert "the checkpoint of step 100,000,000 is intact" in resume_hint(tmp_path)


def test_the_newest_older_checkpoint_that_is_whole_is_advised(tmp_path):
    paths = [make(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[1] / "model.safetensors").write_bytes(b"other")
    (paths[2] / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: No such file(.|\n)*step_00000001 is whole"):
        check_whole(paths[2])
    copy = paths[2].rename(paths[2].with_name("copy"))
    with pytest.raises(InputError, match=r"copy/model\.safetensors is damaged"):
        check_whole(copy)
    (paths[0] / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"sha256 is not what state\.json says(.|\n)*step_00000004 is whole"):
        check_whole(paths[1])


def test_a_checkpoint_is_found_by_its_own_path_or_its_run(tmp_path):
    path = make(tmp_path, 7)
    with pytest.raises(InputError, match=r"no config\.yaml in"):
        find_checkpoint(tmp_path)
    (tmp_path / "config.yaml").touch()
    (path.parent / "best").symlink_to(path.name)
    assert find_checkpoint(tmp_path) == find_checkpoint(path) == find_checkpoint(path.parent / "best") == path
    with pytest.raises(InputError, match="no checkpoint there"):
        find_checkpoint(tmp_path / "none")


def test_a_state_is_parsed_once_when_a_run_goes_on(tmp_path, monkeypatch):
    from gpt.cli.compose import compose
    from gpt.cli.resume_checks import check_resumable, check_same_data
    from gpt.config.load import save

    config = compose(["trainer.max_steps=9"])
    save(config, tmp_path / "config.yaml")
    make(tmp_path, 7)
    real, calls = files._parse_state, []
    monkeypatch.setattr(files, "_parse_state", lambda path: calls.append(path) or real(path))
    state = check_resumable(config, tmp_path)
    check_same_data(tmp_path, state, "a", {})
    assert len(calls) == 1


def test_checks_of_a_checkpoint_need_no_torch():
    code = "import sys, gpt.checkpoint.files, gpt.cli.resume_checks, gpt.rundir; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_run_that_has_saved_nothing_is_no_missing_one(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint there\n  give the output directory of a run"):
        find_checkpoint(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match=r"this run has saved nothing\n  give another"):
        find_checkpoint(tmp_path)


def test_a_sweep_is_named_with_its_jobs(tmp_path):
    jobs = {f"seed-{number}": {"overrides": []} for number in range(9)}
    write_json(tmp_path / "sweep.json", {"layout": 1, "jobs": jobs})
    for refuse in (lambda: find_checkpoint(tmp_path), lambda: check_no_sweep("resume", tmp_path)):
        with pytest.raises(InputError, match=r"holds a sweep, not a run\n  give one of its jobs, .*seed-5 and 3 more"):
            refuse()
