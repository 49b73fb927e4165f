"""Options together: every combination trains and resumes; ramps, compilation, debugging and plans do what they say."""

import functools
import itertools
import json
import math
import os
import re
import shutil
import subprocess
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, call, command, environment
from switches import ALL, as_overrides

from data.preparation import prepare
from gpt import parallelize
from gpt.checkpoint import state as checkpoint
from gpt.checkpoint.files import latest_checkpoint
from gpt.cli.compose import compose
from gpt.cli.plan import plan
from gpt.device import Compute
from gpt.errors import InputError, TrainingError
from gpt.optimizer.build import check_optimizer
from gpt.precision import check_precision, loss_scaler
from gpt.tracker.logs import read_metrics
from gpt.tracker.plot import grad_norm_warnings
from gpt.trainer import Trainer

TINY = """
    model=tiny trainer.max_tokens=null trainer.max_steps=20 trainer.eval_every=10_240 trainer.eval_tokens=1024
    trainer.log_every=1 checkpoint.every=10 checkpoint.keep=3 sample.tokens=4 tracker.plot=false device=cpu
    cluster.threads=1
""".split()


@pytest.fixture
def tiny(text_file, cache, tmp_path):
    """A function from overrides to a Trainer of the model ``tiny``, in the given directory or one of its own."""

    def build(*overrides, run_dir=None):
        config = compose(["data=text", f"data.files=[{text_file}]", f"data.cache_dir={cache}", *TINY, *overrides])
        if run_dir is None:
            run_dir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
            run_dir.mkdir()
        return Trainer(config, *prepare(config.data), run_dir)

    return build


def resumed(tiny, run, overrides, step):
    """The same run, continued from an earlier checkpoint in a copy of its directory."""
    copy = run.run_dir.with_name(run.run_dir.name + "_resumed")
    shutil.copytree(run.run_dir, copy, symlinks=True)
    for path in (copy / "checkpoints").glob("step_*"):
        if path.name > f"step_{step:08d}":
            shutil.rmtree(path)
    again = tiny(*overrides, f"resume={copy}", run_dir=copy)
    assert again.state.progress.step == step
    again.fit()
    return again


def assert_same_end(run, again):
    for name in ("model.safetensors", "optimizer.safetensors"):
        ends = [(latest_checkpoint(r.run_dir) / name).read_bytes() for r in (run, again)]
        assert ends[0] == ends[1], name
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(r.run_dir)]
        for r in (run, again)
    ]
    assert rows[0] == rows[1]
    assert run.state.progress == again.state.progress


RAMP = ["batch=ramp", "batch.ramp.start_tokens=256", "batch.ramp.over_tokens=5_000"]


CHOICES = [("fp32", "bf16"), ("adamw", "muon"), ("cosine", "wsd"), ("constant", "ramp"), ("false", "true")]
# Half of all combinations, and among them every combination of any four choices.
HALF = [one for one in itertools.product(*CHOICES) if sum(map(tuple.index, CHOICES, one)) % 2 == 0]


# One shape of a micro-batch, at all stages of a ramp: each of its own would take a compiler half a minute.
COMPILED_ONCE = ["model.n_embd=64", "batch.micro_batch_size=4"]


@pytest.mark.slow
@pytest.mark.parametrize("precision, optimizer, schedule, batch, compiled", HALF)
def test_every_combination_trains_and_fp32_resumes_bitwise(tiny, precision, optimizer, schedule, batch, compiled):
    overrides = [f"precision={precision}", f"optimizer={optimizer}", f"schedule={schedule}", f"compile={compiled}"]
    overrides += COMPILED_ONCE
    overrides += RAMP if batch == "ramp" else []
    run = tiny(*overrides)
    assert run.compiler_problem is None
    run.fit()
    losses = [row["train/loss"] for row in read_metrics(run.run_dir)]
    assert len(losses) == 20
    assert sum(losses[-3:]) / 3 < losses[0] - 1.5
    if precision == "fp32":
        if batch == "ramp":
            assert 256 < read_metrics(run.run_dir)[10]["optim/batch_tokens"] < 1024  # mid-ramp
        assert_same_end(run, resumed(tiny, run, overrides, step=10))


@pytest.mark.slow
def test_compile_changes_neither_losses_nor_names(tiny):
    results = {}
    for compiled in ("false", "true"):
        run = tiny(f"compile={compiled}", *COMPILED_ONCE, "trainer.max_steps=5")
        result = run.fit()
        results[compiled] = result["val_loss"]
        names = set(checkpoint.load_file(latest_checkpoint(run.run_dir) / "model.safetensors"))
        assert names == {name for name, _ in tiny(*COMPILED_ONCE).state.model.named_parameters()}
    assert results["true"] == pytest.approx(results["false"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "inverse_sqrt", "constant"])
def test_other_schedules_reach_the_optimizer(trainer, name):
    run = trainer(f"schedule={name}", "schedule.warmup_tokens=1280", "trainer.max_steps=10", "sample.tokens=0")
    run.fit()
    rates = [row["optim/lr"] / 2e-3 for row in read_metrics(run.run_dir)]
    assert rates == pytest.approx([run.config.schedule.multiplier(256 * (i + 1), 2560) for i in range(10)])
    assert rates[4] == pytest.approx(1.0)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(tiny):
    run = tiny("optimizer=muon", "optimizer.adamw_lr=5e-3", "trainer.max_steps=3")
    names = {p: name for name, p in run.state.model.named_parameters()}
    muon, adamw = ({names[p] for g in o.param_groups for p in g["params"]} for o in run.state.optimizers)
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert muon == {f"h.{i}.{kind}.weight" for i in range(2) for kind in kinds}
    assert adamw == set(names.values()) - muon
    run.fit()
    rates = [group["lr"] for optimizer in run.state.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([2e-4, 5e-4, 5e-4])  # one schedule: both at a tenth of their peaks


@pytest.mark.slow
def test_all_switches_of_the_model_together_resume_bitwise(tiny):
    overrides = [*as_overrides(**ALL), "model.n_embd=48", "optimizer=muon", "model.activation_checkpointing=blocks"]
    overrides += ["trainer.max_steps=8", "checkpoint.every=4"]
    run = tiny(*overrides)
    run.fit()
    losses = [row["train/loss"] for row in read_metrics(run.run_dir)]
    assert losses[-1] < losses[0] - 0.5
    assert_same_end(run, resumed(tiny, run, overrides, step=4))


@pytest.mark.slow
def test_a_custom_optimizer_trains_and_resumes_bitwise(tiny):
    overrides = ["optimizer=custom", "optimizer._target_=torch.optim.NAdam", "optimizer.betas=[0.8,0.99]",
                 "+optimizer.options.decoupled_weight_decay=true"]  # fmt: skip
    run = tiny(*overrides)
    group = run.state.optimizers[0].param_groups[0]
    assert type(run.state.optimizers[0]) is torch.optim.NAdam
    assert (group["betas"], group["decoupled_weight_decay"], group["weight_decay"]) == ((0.8, 0.99), True, 0.1)
    run.fit()
    assert_same_end(run, resumed(tiny, run, overrides, step=10))


def test_fused_where_there_is_none_is_refused():
    with pytest.raises(InputError, match=r"optimizer=adamw does not work on meta: .*fused"):
        check_optimizer(compose([]).optimizer, torch.device("meta"))
    check_optimizer(compose(["optimizer.fused=false"]).optimizer, torch.device("meta"))


def test_bf16_where_the_device_has_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(InputError, match="precision=bf16 is not supported on cuda here\n  allowed here: fp32, fp16"):
        check_precision("bf16", torch.device("cuda"))
    check_precision("fp16", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        check_precision(precision, torch.device("cuda"))


@pytest.mark.slow
def test_fp16_scales_the_loss_skips_what_overflows_and_keeps_the_scale_in_the_checkpoint(trainer):
    """On the CPU, where the scaler works as on a GPU."""
    overrides = [
        "precision=fp16",
        "sample.tokens=0",
        "optimizer.lr=1e-2",
        "trainer.eval_tokens=512",
        "trainer.max_steps=40",
    ]
    run = trainer(*overrides)
    run.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=4)
    run.fit()
    rows = read_metrics(run.run_dir)
    skipped = [row for row in rows if "optim/grad_norm" not in row]
    assert skipped
    assert rows[0]["optim/loss_scale"] == 2.0**29  # halved after the first overflow
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 1
    state = json.loads((latest_checkpoint(run.run_dir) / "state.json").read_text())
    assert state["scaler"]["scale"] == run.state.scaler.get_scale() != 2.0**16
    again = trainer(*overrides)
    assert again.state.scaler.get_scale() == 2.0**16
    checkpoint.load(latest_checkpoint(run.run_dir), again.state)
    assert again.state.scaler.state_dict() == run.state.scaler.state_dict()
    assert not loss_scaler("bf16", torch.device("cpu")).is_enabled()


@pytest.fixture(scope="module")
def ramped(text_file, cache, tmp_path_factory):
    """A finished run with a ramp."""
    overrides = ["data=text", f"data.files=[{text_file}]", f"data.cache_dir={cache}", *TINY, "sample.tokens=0"]
    config = compose([*overrides, *RAMP, "batch.ramp.multiple_of=128", "trainer.max_steps=30"])
    run = Trainer(config, *prepare(config.data), tmp_path_factory.mktemp("ramp"))
    run.fit()
    return run


@pytest.mark.slow
def test_a_ramp_takes_the_tokens_it_specifies(ramped):
    run, tokens = ramped, 0
    for row in read_metrics(run.run_dir):
        exact = 256 + (1024 - 256) * min(tokens, 5000) / 5000
        assert row["optim/batch_tokens"] == exact // 128 * 128
        tokens += row["optim/batch_tokens"]
        assert row["tokens"] == tokens
    assert (run.state.progress.step, run.state.progress.tokens) == (30, tokens)
    assert (run.total_steps, run.stepper.total_tokens) == (30, tokens)
    assert run.state.progress.samples * 64 == tokens


@pytest.mark.slow
def test_a_ramp_reads_the_same_samples_in_the_same_order(ramped, tiny):
    """The order hash of a run without ramp is the same after the same samples."""
    ramp, constant = ramped.state.progress, tiny("trainer.max_steps=1000")
    order = constant.stepper.dataset.order
    after_whole_steps = functools.reduce(
        lambda digest, first: order.chain_hash(digest, first, min(16, ramp.samples - first)),
        range(0, ramp.samples, 16),
        order.empty_hash(),
    )
    assert after_whole_steps == ramp.order_hash
    batches = constant.stepper.batches()
    for _ in range(5):
        constant.stepper.train_step(batches)
    assert constant.state.progress.order_hash == order.chain_hash(order.empty_hash(), 0, 80)


def test_ramp_steps_are_those_given(trainer):
    run = trainer("batch=ramp_steps", "batch.ramp.stages=[[500,128],[1000,256]]", "batch.global_tokens=512",
                  "batch.micro_batch_size=null", "trainer.max_steps=9", "trainer.eval_every=512", "sample.tokens=0")  # fmt: skip
    run.fit()
    sizes = [row["optim/batch_tokens"] for row in read_metrics(run.run_dir)]
    assert sizes == [128] * 4 + [256] * 2 + [512] * 3


@pytest.mark.slow
def test_nothing_is_compiled_again_after_the_warm_up(tiny, monkeypatch):
    """Through the stages of a ramp, evaluation with a short last batch, and sampling."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(parallelize, "_saving_less", "aot_eager")  # graphs are counted, and need no kernels
    run = tiny("compile=true", *RAMP, "trainer.eval_tokens=1600", "trainer.eval_every=2048", "sample.tokens=70")
    compiled, real = [], run.stepper.train_step

    def step(*arguments):
        compiled.append(counters["stats"]["unique_graphs"])
        return real(*arguments)

    monkeypatch.setattr(run.stepper, "train_step", step)
    run.fit()
    sizes = {row["optim/batch_tokens"] for row in read_metrics(run.run_dir)}
    assert len(sizes) >= 3
    evaluated = [row["step"] for row in read_metrics(run.run_dir) if "val/loss" in row]
    assert len(evaluated) > 5
    warm = evaluated[0] + 1
    assert compiled[0] == compiled[1] - 1  # one graph for all blocks in training
    assert set(compiled[warm:]) == {compiled[warm]}
    assert compiled[warm] - compiled[0] == 2  # and one in evaluation


@pytest.mark.slow
def test_a_missing_compiler_costs_one_line(small, tmp_path):
    missing = {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(  # torch reads CXX when it is imported
        command(*small, "compile=true", "trainer.max_steps=2", "trainer.eval_every=256"), cwd=tmp_path,
        env=environment(**missing), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        sum("torch.compile does not work here, so it goes on without" in line for line in done.stdout.splitlines()) == 1
    )
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_overfit_brings_one_batch_to_near_zero(tiny):
    run = tiny("debug=overfit", "batch.global_tokens=256", "trainer.max_steps=120", "trainer.eval_every=10_000_000")
    result = run.fit()
    assert result["train_loss"] < 0.01
    first = run.stepper.dataset.order.starts(0, 4)
    assert (run.stepper.dataset.order.starts(4 * 100, 4) == first).all()


@pytest.mark.slow
def test_bigram_converges_to_the_bigram_entropy_of_the_corpus(tiny):
    run = tiny("model=bigram", "trainer.max_steps=250", "trainer.eval_every=10_000_000", "trainer.eval_tokens=64",
               "optimizer.weight_decay=0", "trainer.log_every=100", "optimizer.lr=0.05")  # fmt: skip
    run.fit()
    file = run.stepper.dataset.windows.file
    ids = file.reader()(0, file.n_tokens).astype(np.int64)
    pairs, counts = np.unique(ids[:-1] * 257 + ids[1:], return_counts=True)
    of_first = np.bincount(pairs // 257, weights=counts, minlength=257)
    entropy = -(counts / counts.sum() * np.log(counts / of_first[pairs // 257])).sum()
    windows = run.stepper.dataset.windows
    validation = replace(run.tasks["val"], windows=windows, max_tokens=None, micro_batch_size=64)
    loss = validation.measure(run.state.model, 0, Compute(torch.device("cpu"), nullcontext())).metrics["val/loss"]
    assert entropy <= loss < 1.02 * entropy


def test_sequential_order_is_the_lectures_loader(tiny):
    """DataLoaderLite of build-nanogpt: B x T tokens after B x T tokens, targets one further."""
    run = tiny("data.shuffle=false", "batch.micro_batch_size=4")
    file = run.stepper.dataset.windows.file
    ids = torch.from_numpy(file.reader()(0, file.n_tokens).astype(np.int64))
    batches = (micro_batch for batch in run.stepper.batches() for micro_batch in batch.micro_batches)
    for number, batch in enumerate(itertools.islice(batches, 12)):
        at = number * 4 * 64
        assert torch.equal(batch[:, :-1], ids[at : at + 256].view(4, 64))
        assert torch.equal(batch[:, 1:], ids[at + 1 : at + 257].view(4, 64))
    n = run.stepper.dataset.order.n_windows
    assert run.stepper.dataset.order.starts(n - 1, 3).tolist() == [(n - 1) * 64, 0, 64]


def test_random_order_is_uniform_over_all_offsets(tiny):
    order = tiny("data.order=random").stepper.dataset.order
    starts = order.starts(0, 100_000)
    assert starts.min() >= 0
    n_tokens = order.windows.file.n_tokens
    assert starts.max() + 64 + 1 <= n_tokens
    counts = np.histogram(starts, 50, (0, n_tokens - 64))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 95  # chi-square, 49 degrees: p = 1e-4
    assert len(set((starts % 64).tolist())) == 64
    assert (order.starts(5000, 10) == starts[5000:5010]).all()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_profile_writes_a_trace_and_a_table(small, tmp_path, ranks):
    cluster = ["cluster=ddp", f"cluster.nproc={ranks}"]
    done = call(*small, *cluster, "debug=profile", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = json.loads((tmp_path / "run" / "profile.json").read_text())["traceEvents"]
    assert any("scaled_dot_product" in str(event.get("name")) for event in events)
    table = (tmp_path / "run" / "profile.txt").read_text()
    assert "aten::addmm" in table
    share = float(re.match(r"([\d.]+)% of these steps had a collective under way\n", table)[1])
    assert 0 < share < 100 if ranks > 1 else share == 0


@pytest.mark.slow
def test_fast_does_everything_twice(text_file, cache, tmp_path):
    done = call(
        "data=text",
        f"data.files=[{text_file}]",
        f"data.cache_dir={cache}",
        "debug=fast",
        f"hydra.run.dir={tmp_path}/run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "val/loss" in row] == [1, 2]
    assert (tmp_path / "run" / "samples.txt").read_text().count("--- step") == 2
    assert (tmp_path / "run" / "loss.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where, said", [("wte", "the output of wte"), ("h.1.mlp.c_fc", "the output of h.1.mlp.c_fc")])
def test_anomaly_names_the_module(tiny, where, said):
    run = tiny("debug=anomaly", "compile=true")
    with torch.no_grad():
        run.state.model.get_submodule(where).weight[:] = math.nan
    with pytest.raises(TrainingError, match=said):
        run.fit()


@pytest.mark.slow
def test_anomaly_names_the_operation_of_a_gradient(tiny):
    run = tiny("debug=anomaly")
    run.state.model.ln_f.register_forward_hook(lambda module, inputs, output: output + (output * 0).sqrt())
    with (
        pytest.warns(UserWarning, match="Error detected in"),
        pytest.raises(TrainingError, match=r"a gradient is not finite: Function '\w+' returned nan"),
    ):
        run.fit()
    assert not torch.is_anomaly_enabled()


def test_a_spiking_and_a_climbing_gradient_norm_are_told():
    def rows(norms):
        return [{"step": i + 1, "tokens": 100 * (i + 1), "optim/grad_norm": norm} for i, norm in enumerate(norms)]

    calm = [1 + 0.3 * math.sin(i) for i in range(200)]
    assert grad_norm_warnings(rows(calm)) == []
    assert grad_norm_warnings(rows([50.0, *calm])) == []  # the first step of all
    (spike,) = grad_norm_warnings(rows([*calm[:120], 12.0, *calm[120:]]))
    assert spike.tokens == 12_100
    assert spike.text.startswith("gradient norm 12.00 at step 121, 1")
    (climb,) = grad_norm_warnings(rows([math.exp(i / 60) for i in range(200)]))
    assert "climbs" in climb.text
    assert grad_norm_warnings([]) == []


@pytest.mark.slow
def test_the_unigram_entropy_is_that_of_the_validation_tokens(tiny):
    run = tiny("trainer.eval_tokens=null", "trainer.max_steps=1")
    tokens = run.tasks["val"].windows.file.reader()(1, run.tasks["val"].windows.file.n_tokens)
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    expected = -(shares * np.log(shares)).sum()
    assert run.tasks["val"].unigram_entropy() == pytest.approx(expected)
    references = run.fit()["references"]
    assert references == {"ln(vocab_size)": math.log(257), "unigram entropy": pytest.approx(expected)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment", ["gpt2_124m", "gpt3_small", "shakespeare_char", "shakespeare", "shakespeare_char_cpu"]
)
def test_experiments_are_planned_where_their_data_is_still_to_be_prepared(experiment, tmp_path):
    directory = [] if experiment == "shakespeare" else ["hydra.run.dir=plan"]
    done = call("plan=true", f"experiment={experiment}", "data.cache_dir=none", *directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"plan of {experiment}; nothing is trained")
    if not directory:
        assert not list(tmp_path.iterdir())
        return
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]
    assert {path.name for path in (tmp_path / "plan").iterdir()} == {".hydra", "plan.json", "plan.png"}
    about = json.loads((tmp_path / "plan" / "plan.json").read_text())
    if experiment == "gpt2_124m":
        assert (about["steps"], about["tokens"], about["parameters"]) == (19_073, 19_073 * 524_288, 124_475_904)
        assert about["hours"]["H100"] == pytest.approx(0.855e9 * 19_073 * 524_288 / (0.4 * 989e12) / 3600, rel=1e-3)
        assert about["memory_bytes"]["optimizer"] == 8 * 124_475_904
        assert "124,475,904 parameters" in done.stdout
    if experiment == "gpt3_small":
        assert [size for _, size in about["stages"]] == [32_768 * n for n in range(1, 17)]
        assert 0 <= about["stages"][-1][0] - 4_000_000_000 < 524_288  # on whole batches


@pytest.mark.slow
def test_a_plan_counts_ranks_and_what_checkpointing_keeps(tmp_path):
    common = ["model.n_layer=4", "model.seq_len=256", "device=cpu", "batch.global_tokens=16384"]
    abouts = []
    for more in ([], ["cluster=ddp", "cluster.nproc=4", "model.activation_checkpointing=blocks"]):
        plan(compose([*common, *more]), 257, tmp_path)
        abouts.append(json.loads((tmp_path / "plan.json").read_text()))
    one, four = abouts
    assert four["hours"]["H100"] == pytest.approx(one["hours"]["H100"] / 4)
    assert one["micro_batch_size"] == four["micro_batch_size"] == 16
    activations = [about["memory_bytes"]["activations"] for about in abouts]
    assert 0.2 * activations[0] < activations[1] < 0.5 * activations[0]  # one block of four, and the head


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A finished run on the real text."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    done = call(*small, "trainer.eval_every=2560", "checkpoint.keep=5", "checkpoint.every=10", "sample.prompt=def",
                f"hydra.run.dir={run_dir}", cwd=run_dir.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return run_dir


def evaluated(*arguments, cwd):
    return call(*arguments, cwd=cwd, script="eval.py")


@pytest.mark.slow
def test_eval_gives_what_training_gave(finished, text_file, cache, tmp_path):
    done = evaluated(f"checkpoint={finished}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((finished / "checkpoints" / "eval-step_00000020.json").read_text())
    result = json.loads((finished / "result.json").read_text())
    assert entry["val"]["val_loss"] == result["val_loss"]
    assert entry["val"]["bpb"] == result["bpb"]
    assert "gzip_bpb" not in entry["val"].keys() | result.keys()  # of some windows it is no mark
    assert (finished / "samples.txt").read_text().endswith(f"--- step 20\n{entry['sample']}\n")
    assert f"{result['val_loss']:.4f}" in done.stdout
    earlier = evaluated(f"checkpoint={finished}/checkpoints/step_00000010", "tasks=[val]", cwd=tmp_path)
    assert earlier.returncode == 0, earlier.stderr
    (entry,) = json.loads((finished / "checkpoints" / "eval-step_00000010.json").read_text())
    assert entry["val"]["val_loss"] == read_metrics(finished)[9]["val/loss"]
    assert "sample" not in entry

    other = evaluated(f"checkpoint={finished}", "tasks=[val]", "data=shakespeare", f"data.files=[{ROOT / 'README.md'}]",
                      f"data.cache_dir={cache}", "trainer.eval_tokens=null", cwd=tmp_path)  # fmt: skip
    assert other.returncode == 0, other.stderr
    entries = json.loads((finished / "checkpoints" / "eval-step_00000020.json").read_text())
    assert entries[1]["val"]["tokens"] == len((ROOT / "README.md").read_bytes())  # end-of-text first, and then all
    choice = ["sample.prompt='class A'", "sample.temperature=0.1", "sample.top_k=5", "sample.tokens=9", "seed=3"]
    sampled = [evaluated(f"checkpoint={finished}", "tasks=[sample]", *choice, cwd=tmp_path) for _ in range(2)]
    assert sampled[0].returncode == 0, sampled[0].stderr
    entries = json.loads((finished / "checkpoints" / "eval-step_00000020.json").read_text())
    assert len(entries) == 3  # the same again replaced its own
    assert entries[2]["sample"].startswith("class A")
    assert entries[1]["data_fingerprint"] != entries[0]["data_fingerprint"]


WRONG_EVALUATIONS = [
    ([], "no checkpoint is given", "checkpoint=DIR"),
    (["checkpoint=nothing"], "nothing: nothing is there", "the output directory of a run"),
    (["checkpoint=RUN", "tasks=[hellaswg]"], "tasks=['hellaswg'] is not known", "val, exact_match, sample"),
    (["checkpoint=RUN", "model.tie_head=false"], "model.tie_head belongs to the run", "allowed: data"),
    (["checkpoint=RUN", "data.tokenizer=chars"], "data.tokenizer=chars, and ", "prepared with bytes"),
    (["checkpoint=RUN", "precision=fp16"], "precision=fp16 is not supported on cpu", "fp32, bf16"),
    (["checkpoint=RUN", "sample.top_k=0"], "sample.top_k=0 makes no sense", "at least 1"),
    (["checkpoint=RUN", "sampel.top_k=1"], "sampel.top_k belongs to the run", "allowed: data"),
    (["checkpoint=RUN", "data=nothing"], "data=nothing: no such option", "stdlib"),
    (["checkpoint=RUN", "data.files=[none.txt]"], "no file matches none.txt", "correct the path"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, problem, cure", WRONG_EVALUATIONS, ids=[" ".join(a) for a, *_ in WRONG_EVALUATIONS]
)
def test_a_wrong_evaluation_is_refused(finished, tmp_path, arguments, problem, cure):
    done = evaluated(*(a.replace("RUN", str(finished)) for a in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert problem in done.stderr.splitlines()[0]
    assert cure in done.stderr.splitlines()[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_is_not_resumed_with_an_untied_head_or_other_tokens(finished, tmp_path):
    untied = call(f"resume={finished}", "model.tie_head=false", "trainer.max_steps=30", cwd=tmp_path)
    assert untied.returncode == 2
    assert "model.tie_head True -> False" in untied.stderr
    (tmp_path / "data").mkdir()
    config = compose(["data=text", f"data.files=[{ROOT / 'README.md'}]", "data.tokenizer=chars",
                      f"data.cache_dir={tmp_path}/cache"])  # fmt: skip
    for split, file in zip(("train", "val"), prepare(config.data), strict=True):
        shutil.copy(file.path, tmp_path / "data" / f"{split}.h5")
    other = call(f"resume={finished}", f"data.dir={tmp_path}/data", "trainer.max_steps=30", cwd=tmp_path)
    assert other.returncode == 2
    assert "the data has tokenizer chars" in other.stderr


def test_an_untied_head_is_not_loaded_from_a_tied_checkpoint(tiny):
    run = tiny("trainer.max_steps=1")
    run.fit()
    with pytest.raises(InputError, match=r"lm_head.weight is missing there and \(320, 128\) here"):
        checkpoint.load(latest_checkpoint(run.run_dir), tiny("model.tie_head=false").state)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_its_last_checkpoint_intact(small, tmp_path):
    """No file may grow beyond a size under which the first checkpoint fits and metrics.jsonl soon does not."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        pytest.skip("the file of coverage would not fit either")
    prepare(compose(small).data)  # whose files are larger
    arguments = [*small, "trainer.max_steps=100_000", "trainer.eval_every=256", "trainer.eval_tokens=32", "checkpoint.every=1",
                 "model.n_layer=1", "model.n_embd=8", f"hydra.run.dir={tmp_path}/run"]  # fmt: skip
    done = call(*arguments, cwd=tmp_path, file_size=45_000, timeout=240)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    last = latest_checkpoint(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "run" / "checkpoints").glob(".step*"))
    step = json.loads((last / "state.json").read_text())["progress"]["step"]
    more = call(f"resume={tmp_path}/run", f"trainer.max_steps={step + 3}", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, step + 4))


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tiny, monkeypatch):
    run, real = tiny("checkpoint.every=5"), checkpoint.save_file

    def save_file(tensors, path):
        if run.state.progress.step > 5 and "optimizer" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, os.strerror(28))
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(TrainingError, match="No space left on device") as failure:
        run.fit()
    assert f"resume={run.run_dir}" in str(failure.value)
    assert {path.name for path in (run.run_dir / "checkpoints").iterdir()} == {"last", "step_00000005"}


def test_a_directory_that_cannot_be_written_is_told(tiny):
    run = tiny()
    (run.run_dir / "checkpoints").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        run.fit()
