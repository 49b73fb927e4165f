"""The package in a notebook: docs/python.md runs as it stands, and each object gives what its run has."""

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, environment
from torch.utils.data import DataLoader

import gpt
from gpt.checkpoint.files import list_checkpoints as checkpoints
from gpt.config.load import save
from gpt.tokens.tokenfile import open_tokens

PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def run(saved):
    return gpt.load_run(saved / "run")


@pytest.fixture
def val_file(run, cache):
    """The token file of the run's validation split."""
    for path in cache.rglob("val.h5"):
        if open_tokens(path).sha256 in run.result["data_fingerprint"]:
            return path  # or one like it, which another test has prepared from the same text
    raise AssertionError("the data of the run is not in the cache")


@pytest.mark.slow
def test_the_page_runs_as_it_stands(saved, val_file, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for block in BLOCKS:
        code = block.replace("outputs/2026-11-21/19-49-08-tiny", str(saved / "run"))
        exec(
            compile(
                code.replace("data/cache/stdlib-bytes-63dfd00e3d22/val.h5", str(val_file)), "docs/python.md", "exec"
            ),
            names,
        )
    said = capsys.readouterr().out
    assert f"{saved / 'run'} has no checkpoint 7\nallowed: best, last, a step of " in said
    assert "torch.Size([3, 9, 32])" in said


@pytest.mark.slow
def test_importing_the_package_loads_nothing(tmp_path):
    code = """
import sys
before = set(sys.modules)
import gpt
assert set(sys.modules) - before == {"gpt"}
assert {"load_run", "open_tokens", "InputError"} <= set(dir(gpt))
run = gpt.load_run
assert "torch" not in sys.modules
gpt.open_tokens
assert "torch" in sys.modules
"""
    env = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="module 'gpt' has no attribute 'load_ron'"):
        gpt.load_ron  # noqa: B018


def test_metrics_are_columns_of_one_length(saved, run):
    rows = [json.loads(line) for line in (saved / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {len(column) for column in run.metrics.values()} == {len(rows)}
    for number, row in enumerate(rows):
        values = {name: column[number] for name, column in run.metrics.items()}
        assert {name: value for name, value in values.items() if value is not None} == row
    assert None in run.metrics["val/loss"]
    assert run.result["val_loss"] == run.metrics["val/loss"][-1]
    assert list(run.checkpoints.values()) == checkpoints(saved / "run")
    assert run.samples == []


@pytest.mark.slow
def test_the_model_gives_the_losses_of_the_run(run, val_file):
    model = run.load_model("last")
    assert model.step == run.result["step"]
    dataset = gpt.open_tokens(val_file, seq_len=run.config.model.seq_len)
    total = 0.0
    for inputs, targets in DataLoader(dataset, batch_size=16):
        with torch.no_grad():
            logits = model.model.logits(model.model(inputs)).flatten(0, 1)
        total += torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum").item()
    n_targets = dataset.file.n_tokens - 1
    assert len(dataset) == math.ceil(n_targets / dataset.seq_len)
    text = model.decode(dataset.file.reader()(0, dataset.file.n_tokens).tolist())
    assert model.loss(text) == pytest.approx(total / n_targets, rel=1e-5)


def test_every_name_of_a_checkpoint_gives_its_weights(run):
    step = run.result["step"]
    text = "import os"
    expected = run.load_model(step).hidden_states(text)
    for checkpoint in ("last", run.checkpoints[step], str(run.checkpoints[step])):
        assert torch.equal(run.load_model(checkpoint).hidden_states(text), expected)


def test_hidden_states_lead_to_the_logits(run):
    model = run.load_model()
    ids = model.encode("import os")
    states = model.hidden_states("import os")
    assert states.shape == (run.config.model.n_layer + 1, len(ids), run.config.model.n_embd)
    with torch.no_grad():
        assert torch.equal(model.model.ln_f(states[-1]), model.model(torch.tensor([ids]))[0])
        assert torch.equal(states[0], model.model.embed(torch.tensor([ids]), torch.arange(len(ids)))[0])


def test_a_sample_is_that_of_the_run(trainer):
    training = trainer("trainer.max_steps=2", "trainer.eval_every=256", "checkpoint.every=1", "checkpoint.keep=2",
                       "sample.prompt=def", "sample.top_p=0.9")  # fmt: skip
    training.fit()
    save(training.config, training.run_dir / "config.yaml")
    run = gpt.load_run(training.run_dir)
    assert [step for step, _ in run.samples] == list(run.checkpoints) == [1, 2]
    sample = run.config.sample
    options = {"tokens": sample.tokens, "temperature": sample.temperature, "top_k": sample.top_k, "top_p": sample.top_p}
    for step, text in run.samples:
        assert run.load_model(step).generate("def", **options, seed=run.config.seed) == text


@pytest.mark.parametrize(
    "call, problem, cure",
    [
        (lambda run, cwd: gpt.load_run(cwd), "it has no config.yaml", "the output directory of a run"),
        (lambda run, cwd: gpt.load_run(run.path.parent / "sweep"), "holds a sweep, not a run", "seed-1, seed-2"),
        (lambda run, cwd: run.load_model(3_000), "has no checkpoint 3000", "allowed: best, last, a step of "),
        (lambda run, cwd: run.load_model("bset"), "checkpoint=bset: no checkpoint there", "checkpoints/best"),
        (lambda run, cwd: run.load_model(device="tpu"), "device=tpu is not on this machine", "cpu"),
        (lambda run, cwd: run.load_model().loss("a"), "has too few tokens: 1", "at least 2"),
        (lambda run, cwd: run.load_model().hidden_states("a" * 99), "the text has 99 tokens", "up to 32"),
        (lambda run, cwd: run.load_model().generate(temperature=0), "temperature=0 makes no sense", "above 0"),
        (lambda run, cwd: run.load_model().generate(top_k=0), "top_k=0 makes no sense", "at least 1"),
        (lambda run, cwd: run.load_model().generate(top_p=1.5), "top_p=1.5 makes no sense", "above 0, up to 1"),
        (lambda run, cwd: run.load_model().generate(tokens=-1), "tokens=-1 makes no sense", "0 or more"),
        (lambda run, cwd: gpt.open_tokens(cwd / "none.h5"), "no token file at", "data.prepare"),
        (lambda run, cwd: gpt.open_tokens(cwd, seq_len=0), "seq_len=0 makes no sense", "at least 1"),
        (lambda run, cwd: gpt.open_tokens(cwd), "is a directory", "a token file ends in .h5"),
        (lambda run, cwd: gpt.open_tokens(ROOT / "README.md"), "is not in HDF5", "data.prepare data=text"),
    ],
)
def test_wrong_input_is_refused(run, tmp_path, call, problem, cure):
    with pytest.raises(gpt.InputError) as refusal:
        call(run, tmp_path)
    assert problem in refusal.value.problem
    assert cure in refusal.value.cure


def test_windows_are_those_of_a_sequence(val_file):
    windows = gpt.open_tokens(val_file, 64)
    assert all(torch.equal(a, b) for a, b in zip(windows[-1], windows[len(windows) - 1], strict=True))
    for number in (len(windows), -len(windows) - 1):
        with pytest.raises(IndexError):
            windows[number]
    for wrong in ("a", slice(0, 2)):
        with pytest.raises(TypeError, match="named by an int, not by a "):
            windows[wrong]


def test_what_a_token_file_cannot_give_is_refused(val_file):
    with pytest.raises(gpt.InputError, match=r"seq_len=1,000,000,000 is more than .*\n  allowed: up to "):
        gpt.open_tokens(val_file, 10**9)
    with pytest.raises(gpt.InputError, match=r"is a directory, .*\n  its token files are train.h5 and val.h5"):
        gpt.open_tokens(val_file.parent)
