"""Runs of a few steps that are interrupted and go on."""

import shutil

from data.preparation import prepare
from gpt.checkpoint.files import latest_checkpoint
from gpt.config.load import save
from gpt.tracker.logs import read_metrics
from gpt.trainer import Trainer

FEW = """
    trainer.max_steps=6 trainer.eval_every=768 trainer.eval_tokens=256 sample.tokens=0 checkpoint.every=3
    checkpoint.keep=9
""".split()


def twice(trainer, *overrides):
    """Train six steps, and again with an interruption after three; returns both runs."""
    run = trainer(*FEW, *overrides)
    save(run.config, run.run_dir / "config.yaml")
    run.fit()
    copy = run.run_dir.with_name(f"{run.run_dir.name}_again")
    shutil.copytree(run.run_dir, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / "step_00000006")
    run.config.resume = str(copy)
    again = Trainer(run.config, *prepare(run.config.data), copy)
    assert again.state.progress.step == 3
    again.fit()
    return run, again


def assert_same_end(run, again):
    """All tensors and metrics of two runs are equal, bit by bit; returns the names of the files with tensors."""
    here, there = (latest_checkpoint(r.run_dir) for r in (run, again))
    names = sorted(path.name for path in here.glob("*.safetensors"))
    for name in names:
        is_same = (here / name).read_bytes() == (there / name).read_bytes()
        assert is_same, name
    rows = [
        [{k: v for k, v in row.items() if "perf/" not in k} for row in read_metrics(r.run_dir)] for r in (run, again)
    ]
    assert rows[0] == rows[1]
    assert run.state.progress == again.state.progress
    return names
