"""A run is composed, checked and prepared once: alone, as a rank that follows, and as a job that a sweep submits."""

import json
import shutil
import sys
from collections import Counter

import pytest
from conftest import BRIEF

from data.preparation import prepare
from gpt.cli import command as cli
from gpt.cluster.machine import check_machine, resolve_ranks
from gpt.config.load import load, read
from train import train

STEPS = {"load": load, "prepare": prepare, "check_machine": check_machine, "resolve_ranks": resolve_ranks}
DONE = {"status": "done", "val_loss": 2.5}


@pytest.fixture
def passes(monkeypatch, tmp_path):
    """A function that runs the command in this process, without training; returns how often each step was taken."""
    monkeypatch.chdir(tmp_path)
    names = {step.__code__: name for name, step in STEPS.items()}

    def count(*arguments: str) -> Counter:
        calls = Counter()

        def profile(frame, event, argument):
            is_saved = frame.f_back and frame.f_back.f_code is read.__code__  # a config.yaml that is compared
            if event == "call" and frame.f_code in names and not is_saved:
                calls[names[frame.f_code]] += 1

        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        sys.setprofile(profile)
        try:
            assert cli.run(train) == 0
        finally:
            sys.setprofile(None)
        return calls

    return count


@pytest.fixture
def launched(monkeypatch):
    """What the runs are started with."""
    calls = []
    monkeypatch.setattr("gpt.cluster.rank.run", lambda world, *arguments: calls.append(arguments) or DONE)
    return calls


ONCE = dict.fromkeys(STEPS, 1)


@pytest.mark.slow
@pytest.mark.parametrize("directory", ["fresh", "named", "existing"])
def test_a_single_run_passes_once(directory, passes, launched, small, tmp_path):
    if directory == "existing":
        (tmp_path / "run").mkdir()
    assert passes(*small, *BRIEF, *([] if directory == "fresh" else ["hydra.run.dir=run"])) == ONCE
    ((config, train_file, val_file, run_dir),) = launched
    assert train_file.n_tokens > val_file.n_tokens
    assert not run_dir.is_absolute() and (run_dir / "config.yaml").is_file()
    assert config.trainer.max_steps == 4


@pytest.mark.slow
def test_a_rank_that_follows_passes_once(passes, launched, small, tmp_path, monkeypatch):
    for key, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(key, "2")
    assert passes(*small, *BRIEF) == ONCE
    ((config, *_, run_dir),) = launched
    assert config.cluster.nproc == 2
    assert run_dir is None
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_that_goes_on_passes_once(passes, launched, small, saved, tmp_path):
    shutil.copytree(saved / "run", tmp_path / "run", symlinks=True)
    assert passes("resume=run", "trainer.max_steps=6") == ONCE
    ((config, *_, run_dir),) = launched
    assert config.resume and config.trainer.max_steps == 6
    assert str(run_dir) == "run"


class Submitted:
    """A SLURM job that has ended when it is asked for the first time."""

    job_id = "1"

    def __init__(self, config, train_file, val_file, run_dir):
        assert train_file.n_tokens > val_file.n_tokens
        assert (run_dir / "config.yaml").is_file()
        (run_dir / "result.json").write_text(json.dumps({"layout": 1, **DONE}))

    def ended(self):
        return "done", ""


@pytest.mark.slow
def test_jobs_that_a_sweep_submits_pass_once(passes, small, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt.cluster.slurm.check_sbatch", lambda config, run_dir: None)
    monkeypatch.setattr("gpt.cluster.slurm.submit", Submitted)
    slurm = ["cluster=slurm", "cluster.gpus=0", "cluster.nproc=1"]
    calls = passes("--multirun", "seed=1,2", *small, *BRIEF, *slurm, "hydra.sweep.dir=sweep")
    assert calls == {"load": 2, "prepare": 2}
    for seed in (1, 2):
        assert (tmp_path / "sweep" / f"seed-{seed}" / "result.json").is_file()
