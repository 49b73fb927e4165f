"""init_from: a run that starts from weights, of a run or of others; what does not fit is refused before it starts."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, assert_same, call, deterministic, environment
from weights import model_config, pretrained

from gpt.cli.init_from import with_init_from
from gpt.compare import report
from gpt.config.load import read
from gpt.errors import InputError
from gpt.interop import hf_export, llmc
from gpt.interop.card import model_card
from gpt.interop.load import weights_hash
from gpt.interop.read import read_header, read_pretrained
from gpt.tracker.logs import read_metrics

# The small run but for its model, which is that of the weights.
REST = [override for override in SMALL if not override.startswith("model.")]
BRIEF = ["trainer.max_steps=6", "trainer.eval_every=512", "sample.tokens=0", "checkpoint.every=2", "checkpoint.keep=9"]


@pytest.fixture
def home(saved, tmp_path):
    """A directory with a finished run, ``run``, and weights of others."""
    shutil.copytree(saved / "run", tmp_path / "run", symlinks=True)
    weights = pretrained(model_config())
    hf_export.write(weights, tmp_path / "folder", "fp32")
    llmc.write(weights, tmp_path / "model.bin", "fp32")
    return tmp_path


# --- the model of the weights


@pytest.mark.slow
def test_the_weights_choose_the_model_unless_the_command_does(home, monkeypatch):
    monkeypatch.chdir(home)
    run = with_init_from(["init_from=run", "seed=1"])
    assert run[0] == "model=tiny" and run[-2:] == ["init_from=run", "seed=1"]
    assert set(run[1:-2]) == {"model.n_head=2", "model.n_embd=32", "model.seq_len=32"}
    foreign = with_init_from(["--multirun", "init_from=model.bin"])
    assert "model.name='gpt2'" in foreign and "model.n_embd=16" in foreign and "model.bias=true" in foreign
    assert with_init_from(["init_from=hf:gpt2-medium"]) == ["model=gpt2_355m", "init_from=hf:gpt2-medium"]
    for others in (["model=tiny"], ["resume=run"], ["init_from=null"], ["init_from=run,folder"]):
        argv = ["init_from=nowhere", *others]
        assert with_init_from(argv) == argv
    assert with_init_from(["seed=1"]) == ["seed=1"]
    with pytest.raises(InputError, match="nowhere: nothing is there"):
        with_init_from(["init_from=nowhere"])


@pytest.mark.slow
def test_the_recipe_for_finetuning_is_planned_without_a_network(tmp_path):
    none = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "none")}
    for size, parameters in ([], "124,475,904"), (["init_from=hf:gpt2-xl"], "1,557,686,400"):
        done = call("plan=true", "experiment=finetune_shakespeare", *size, cwd=tmp_path, env=none)
        assert done.returncode == 0, done.stderr
        assert f"model       {parameters} parameters, padded vocabulary 50,304" in done.stdout
        assert "20 steps, 655,360 tokens" in done.stdout
        assert "constant: 3e-05" in done.stdout
    refused = call("experiment=finetune_shakespeare", "model=gpt2_355m", cwd=tmp_path, env=none)
    assert refused.returncode == 2
    assert "model.n_layer=24 in place of 12, model.n_head=16 in place of 12" in refused.stderr
    assert not list(tmp_path.iterdir())


# --- the start


@pytest.mark.parametrize("changes", [[], ["model.seq_len=16", "model.vocab_multiple=128"]])
def test_a_run_starts_with_the_weights(changes, trainer, saved):
    run = trainer(f"init_from='{saved / 'run'}'", "optimizer=muon", *changes)
    weights = read_pretrained(str(saved / "run"))
    assert run.facts["init_sha256"] == weights_hash(weights)
    config = run.config.model
    for name, p in run.state.model.named_parameters():
        expected = weights.tensors[name]
        if name == "wpe.weight":
            expected = expected[: config.seq_len]
        assert torch.equal(p[: len(expected)], expected), name
        assert not p[len(expected) :].any() and (name == "wte.weight" or len(p) == len(expected)), name
    assert run.state.model.wte.weight.size(0) == (384 if changes else 320)
    assert run.state.progress.step == 0


def test_a_run_without_it_records_nothing(trainer):
    assert "init_sha256" not in trainer().facts


@pytest.mark.slow
def test_a_run_goes_on_without_what_it_started_from(home, small):
    """Training, result and card; interrupted and resumed it is the same, and what it started from is gone by then."""
    files = [override for override in small if override.startswith("data")]
    done = call("init_from=run", *files, *REST, *BRIEF, "hydra.run.dir=whole", cwd=home)
    assert done.returncode == 0, done.stderr
    expected = weights_hash(read_pretrained(str(home / "run")))
    assert f"weights of run, sha256 {expected[:12]}" in done.stdout
    for name in ("about.json", "result.json"):
        assert json.loads((home / "whole" / name).read_text())["init_sha256"] == expected
    assert read(home / "whole" / "config.yaml").init_from == "run"
    assert "| started from | run |" in model_card(read_header(str(home / "whole")), "finetuned")
    before, after = (read_metrics(home / name) for name in ("run", "whole"))
    assert after[0]["train/loss"] < before[0]["train/loss"] - 0.3

    # Back to step 4, and on from there.
    shutil.copytree(home / "whole", home / "part", symlinks=True)
    shutil.rmtree(home / "part" / "checkpoints" / "step_00000006")
    shutil.rmtree(home / "run")
    resumed = call("resume=part", cwd=home)
    assert resumed.returncode == 0, resumed.stderr
    assert "weights of run" not in resumed.stdout
    assert_same(deterministic(home / "part"), deterministic(home / "whole"))

    # Before its first checkpoint, it starts again, and needs the weights.
    shutil.rmtree(home / "part" / "checkpoints")
    (home / "part" / "result.json").unlink()
    refused = call("resume=part", cwd=home)
    assert refused.returncode == 2 and "run: nothing is there" in refused.stderr, refused.stderr
    refused = call("resume=whole", "init_from=null", "trainer.max_steps=8", cwd=home)
    assert refused.returncode == 2 and "init_from run -> None" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "model.bin"])
def test_two_ranks_start_from_weights_of_others(source, home, small):
    files = [override for override in small if override.startswith("data")]
    ranks = ["cluster=ddp", "cluster.nproc=2"]
    overrides = [*files, *REST, *BRIEF, "trainer.max_steps=2"]
    losses = {}
    for name, cluster in (("one", []), ("two", ranks)):
        done = call(f"init_from={source}", *overrides, *cluster, f"hydra.run.dir={name}", cwd=home)
        assert done.returncode == 0, done.stderr
        losses[name] = json.loads((home / name / "result.json").read_text())["val_loss"]
    assert losses["one"] == pytest.approx(losses["two"], abs=1e-5)


@pytest.mark.slow
def test_text_is_prepared_with_the_alphabet_of_the_weights(tmp_path):
    (tmp_path / "first.txt").write_text("to be or not to be, that is the question\n" * 200)
    (tmp_path / "second.txt").write_text("be it so\n" * 600)
    (tmp_path / "third.txt").write_text("Be it so\n" * 600)
    common = ["data=text", "data.tokenizer=chars", f"data.cache_dir={tmp_path}/cache", *REST, *BRIEF]
    model = [override for override in SMALL if override.startswith("model.")]
    first = call("data.files=[first.txt]", *common, *model, "hydra.run.dir=first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = call("init_from=first", "data.files=[second.txt]", *common, "hydra.run.dir=second", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    names = [json.loads((tmp_path / name / "result.json").read_text())["tokenizer"] for name in ("first", "second")]
    assert names[0] == names[1] and len(names[0]["chars"]) > len(set("be it so\n"))
    again = call("resume=second", "trainer.max_steps=8", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    third = call("init_from=first", "data.files=[third.txt]", *common, cwd=tmp_path)
    assert third.returncode == 2 and "'B'" in third.stderr, third.stderr


# --- refusals


WRONG = [
    (["init_from=nowhere"], "nowhere: nothing is there", "allowed: the output directory of a run"),
    (["init_from=hf:gpt3"], "hf:gpt3 is not known", "hf:gpt2"),
    (["init_from=folder"], "data.tokenizer=chars, and the weights of init_from=folder have bytes", "data.tokenizer=bytes"),
    (["init_from=model.bin", "model=tiny"], "weights of another model: model.n_embd=128 in place of 16", "give model.n_embd=16"),
    (["init_from=run", "model.seq_len=64"], "model.seq_len=64 in place of 32", "model.seq_len may be less"),
    (["init_from=run", "model.n_layer=3", "model.bias=false"], "model.n_layer=3 in place of 2, model.bias=false in place of true", "leave the model keys out"),
    (["init_from=run", "plan=true", "model.norm=post"], "model.norm=post in place of pre", "model.norm=pre"),
    (["init_from=hf:gpt2", "model.seq_len=16", "data.tokenizer=gpt2"], "hf:gpt2 cannot be fetched", "give the folder in place of hf:gpt2"),
    (["init_from=folder", "data.dir=prepared"], "no token file at prepared/train.h5", "correct data.dir"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("arguments, problem, cure", WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_what_does_not_fit_is_refused_before_anything_is_written(arguments, problem, cure, home, gpt2_vocabulary):
    (home / "short.txt").write_text("A short text, of a few words.\n" * 50)
    there = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/none", "TIKTOKEN_CACHE_DIR": str(gpt2_vocabulary)}
    rest = ["data=text", "data.files=[short.txt]", "data.tokenizer=chars", f"data.cache_dir={home}/cache", "device=cpu"]
    before = sorted(home.iterdir())
    refused = call(*rest, *arguments, cwd=home, env=there)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert problem in refused.stderr and cure in refused.stderr, refused.stderr
    assert [path for path in sorted(home.iterdir()) if path.name != "cache"] == before


def test_prepared_data_with_another_tokenizer_is_refused(home, cache, small):
    from data.preparation import prepare
    from gpt.cli.compose import compose

    _, val = prepare(compose(small).data)
    directory = str(val.path).rpartition("/")[0]
    weights = pretrained(model_config(), 65, "chars", "".join(chr(33 + i) for i in range(65)))
    hf_export.write(weights, home / "chars", "fp32")
    refused = call("init_from=chars", f"data.dir='{directory}'", "device=cpu", cwd=home)
    assert refused.returncode == 2
    assert "the data has tokenizer bytes with 257 tokens, and init_from=chars was trained with" in refused.stderr
    assert "chars with 65 tokens" in refused.stderr and "data.tokenizer=chars" in refused.stderr


@pytest.mark.slow
def test_headers_are_read_without_torch(home):
    code = """
import sys
from gpt.interop.read import read_header
for source in ("run", "folder", "model.bin", "hf:gpt2"):
    read_header(source)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_other_weights_of_the_same_name_are_named_by_the_comparison(home, small):
    files = [override for override in small if override.startswith("data")]
    for seed in (1, 2):
        overrides = [*files, *REST, *BRIEF, "trainer.max_steps=2", f"seed={seed}", f"hydra.run.dir=runs/{seed}"]
        done = call("init_from=model.bin", *overrides, cwd=home)
        assert done.returncode == 0, done.stderr
        if seed == 1:
            assert "other weights" not in report([home / "runs"], None, home / "compared").text
            weights = pretrained(model_config(n_layer=2, init_std=0.05))
            llmc.write(weights, home / "other.bin", "fp32")
            (home / "other.bin").replace(home / "model.bin")
    said = report([home / "runs"], None, home / "compared").text
    assert "init_from=model.bin were other weights: 1; another for 2" in said
