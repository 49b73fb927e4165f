"""The file sweep.json, and the command of a job."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from gpt.sweep import index as index_module
from gpt.sweep.index import Index, _hash_yaml_files
from gpt.sweep.jobs import Job, State
from gpt.sweep.sweep import _job_arguments


@pytest.fixture
def config(tmp_path):
    """A sweep's config, composed from the files in ``conf``."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 1\n")
    sources = [{"path": str(tmp_path / "conf"), "schema": "file"}, {"path": "hydra.conf", "schema": "pkg"}]
    (tmp_path / "conf" / "sweeps").mkdir()
    (tmp_path / "conf" / "sweeps" / "lr.yaml").write_text(
        "# @package _global_\n# Which one?\n#\n# Expected  That one.\n"
    )
    runtime = {"config_sources": sources, "choices": {"sweeps": "lr"}}
    return OmegaConf.create({"sweep": {"baseline": "lr-1"}, "hydra": {"runtime": runtime}})


def build(sweep_dir, name, state, note=""):
    return Job(name, [f"seed={name}"], None, None, sweep_dir / name, State(state), note)


def test_finished_jobs_are_noted_with_their_files_and_others_without(config, tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_this_machine", lambda: "here, 0 GPUs")
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py", "sweeps=lr", "seed=1,2"])
    sweep_dir = tmp_path / "sweep"
    index = Index(sweep_dir, config)
    assert index.content == {} and index.left_out_here() == {}
    jobs = [
        build(sweep_dir, "1", "waiting"),
        build(sweep_dir, "2", "kept"),
        build(sweep_dir, "3", "left out", "no GPU"),
    ]
    index.add("lr", jobs, sweep_dir)
    files = _hash_yaml_files([tmp_path / "conf"])
    expected = {
        "layout": 1,
        "name": "lr",
        "baseline": "lr-1",
        "about": {"command": "python train.py sweeps=lr seed=1,2", "question": "Which one?", "expected": "That one."},
        "jobs": {"1": {"overrides": ["seed=1"]}, "2": {"overrides": ["seed=2"], "configs": files}},
        "left_out": {"3": "no GPU"},
        "machine": "here, 0 GPUs",
    }
    assert index.content == expected and list(index.content) == list(expected)
    assert index.left_out_here() == {"3": "no GPU"}

    sweep_dir.mkdir()
    index.write(sweep_dir)
    assert json.loads((sweep_dir / "sweep.json").read_text()) == expected
    again = Index(sweep_dir, config)
    assert again.has("2", ["seed=2"])
    assert not again.has("1", ["seed=1"])  # it was not done
    assert not again.has("2", ["seed=3"])

    # Jobs of a later command are added; a job that runs again is not finished any more.
    again.add("lr", [build(sweep_dir, "2", "waiting"), build(sweep_dir, "4", "done")], sweep_dir)
    assert list(again.content["jobs"]) == ["1", "2", "4"]
    assert not again.has("2", ["seed=2"]) and again.has("4", ["seed=4"])
    assert again.content["left_out"] == {}


def test_a_finished_job_is_composed_again_when_a_file_has_changed(config, tmp_path):
    sweep_dir = tmp_path / "sweep"
    index = Index(sweep_dir, config)
    index.add("lr", [build(sweep_dir, "1", "done")], sweep_dir)
    sweep_dir.mkdir()
    index.write(sweep_dir)
    assert Index(sweep_dir, config).has("1", ["seed=1"])
    (tmp_path / "conf" / "config.yaml").write_text("seed: 2\n")
    assert not Index(sweep_dir, config).has("1", ["seed=1"])


def test_what_another_machine_has_left_out_is_asked_again(config, tmp_path, monkeypatch):
    index = Index(tmp_path / "sweep", config)
    index.add("lr", [build(tmp_path / "sweep", "1", "left out", "no GPU")], tmp_path / "sweep")
    monkeypatch.setattr(index_module, "_this_machine", lambda: "there, 8 GPUs")
    assert index.left_out_here() == {}


@pytest.mark.parametrize("resume", [None, "sweep/it's"])
def test_a_job_runs_as_the_command_that_one_would_type(resume, tmp_path):
    config = OmegaConf.create(
        {"hydra": {"overrides": {"hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir=x", "hydra/launcher=local",
         "hydra.launcher.slots=2", "hydra.sweeper.ladder=true", "hydra.searchpath=[file://y]"]}}}
    )  # fmt: skip
    job = Job("a", ["seed=1"], None, SimpleNamespace(resume=resume), tmp_path / "it's")
    quoted = "'" + str(tmp_path) + r"/it\'s'"
    on = [f"++resume={quoted}"] if resume else []
    assert _job_arguments(job, config) == [
        "seed=1",
        "hydra.searchpath=[file://y]",
        *on,
        f"hydra.run.dir={quoted}",
        "hydra.mode=RUN",
    ]
