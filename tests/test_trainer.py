"""The training loop in one process: gradients, clock, exactness."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from conftest import ROOT

from gpt.checkpoint import state as checkpoint
from gpt.checkpoint.files import latest_checkpoint
from gpt.errors import InputError, TrainingError
from gpt.files import locked
from gpt.tracker.logs import read_metrics
from gpt.tracker.mirror import Mirror
from gpt.tracker.tracker import Tracker


def first_gradients(run):
    """The gradients of step 1, caught before the optimizer uses them."""
    held = {}
    run.state.optimizers[0].step = lambda: held.update(
        {n: p.grad.clone() for n, p in run.state.model.named_parameters()}
    )
    return run.stepper.train_step(run.stepper.batches()).loss.item(), held


def test_micro_batches_divide_the_work_and_nothing_else(trainer):
    same = ["batch.global_tokens=128", "trainer.grad_clip=0"]  # 4 sequences of 32
    whole_loss, whole = first_gradients(trainer(*same, "batch.micro_batch_size=4"))
    for micro in (2, 1):
        loss, gradients = first_gradients(trainer(*same, f"batch.micro_batch_size={micro}"))
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        for name, gradient in gradients.items():
            assert (gradient - whole[name]).norm() <= 1e-5 * whole[name].norm(), name


@pytest.mark.slow
def test_a_run_with_padding_stays_with_the_run_without(trainer):
    def losses(vocab_multiple):
        run = trainer(f"model.vocab_multiple={vocab_multiple}", "trainer.max_steps=200")
        batches = run.stepper.batches()
        values = [run.stepper.train_step(batches).loss.item() for _ in range(200)]
        if vocab_multiple > 1:
            assert (run.state.model.wte.weight[257:] == 0).all()
        return values

    plain, padded = losses(1), losses(128)
    assert plain[-1] < plain[0] - 1
    assert max(abs(a - b) for a, b in zip(plain, padded, strict=True)) < 1e-5


def test_loss_starts_at_ln_vocab_and_falls(trainer):
    run = trainer("model.init_std=0.02", "trainer.max_steps=60", "trainer.eval_every=5120")
    result = run.fit()
    assert result["initial_loss"] == pytest.approx(math.log(257), abs=0.1)
    assert result["val_loss"] < result["initial_loss"] - 1
    assert (result["status"], result["step"], result["tokens"]) == ("done", 60, 60 * 256)
    rows = read_metrics(run.run_dir)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in rows if "val/loss" in row] == [20, 40, 60]
    assert all(row["tokens"] == 256 * row["step"] for row in rows)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_overflow_in_float16_skips_the_step_of_all_optimizers(value, trainer):
    """Muon's gradients are not finite, AdamW's are."""
    run = trainer("precision=fp16", "optimizer=muon", "optimizer.weight_decay=0.1")
    run.state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    batches = run.stepper.batches()
    run.stepper.train_step(batches)
    overflow = run.state.model.h[0].mlp.c_fc.weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    before = {name: p.detach().clone() for name, p in run.state.model.named_parameters()}
    run.stepper.train_step(batches)
    assert all(torch.equal(p, before[name]) for name, p in run.state.model.named_parameters())
    assert run.state.scaler.get_scale() == 2
    overflow.remove()
    run.stepper.train_step(batches)
    assert not any(torch.equal(p, before[name]) for name, p in run.state.model.named_parameters())


def test_golden_losses(trainer):
    """The first losses of a fixed run on a fixed text. A change that moves them must say why."""
    run = trainer(
        f"data.files=[{ROOT / 'LICENSE'}]", "data.val_fraction=0.3", "model.seq_len=16", "batch.global_tokens=64",
        "trainer.eval_tokens=null", "trainer.max_steps=5",
    )  # fmt: skip
    result = run.fit()
    losses = [row["train/loss"] for row in read_metrics(run.run_dir)]
    assert losses == pytest.approx([5.607887, 5.504622, 5.491913, 5.289929, 5.322185], abs=1e-4)
    assert result["val_loss"] == pytest.approx(5.424306, abs=1e-4)
    assert result["data_order_hash"] == "d7ed2f746ede859aad50e70ed21d6edad55f09937bd6efb953aa74e90c66e85f"


def test_only_matrices_decay(trainer):
    run = trainer()
    names = {p: name for name, p in run.state.model.named_parameters()}
    decayed, others = run.state.optimizers[0].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() == 2 for p in decayed["params"])
    assert {names[p].rpartition(".")[2] for p in others["params"]} == {"bias", "weight"}
    assert {names[p] for p in others["params"] if names[p].endswith("weight")} == {
        "h.0.ln_1.weight", "h.0.ln_2.weight", "h.1.ln_1.weight", "h.1.ln_2.weight", "ln_f.weight",
    }  # fmt: skip
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert run.state.optimizers[0].defaults["fused"]


def test_clipping_bounds_the_norm_that_is_used(trainer):
    run = trainer("trainer.grad_clip=0.01")
    used = {}
    run.state.optimizers[0].step = lambda: used.update(
        norm=torch.stack([p.grad.norm() for p in run.state.model.parameters()]).norm().item()
    )
    assert run.stepper.train_step(run.stepper.batches()).grad_norm > 0.1
    assert used["norm"] == pytest.approx(0.01, rel=1e-3)


def test_dropout_draws_from_seed_and_step_alone(trainer):
    run, again = trainer("model.dropout=0.3"), trainer("model.dropout=0.3")
    torch.manual_seed(123)
    first = run.stepper.train_step(run.stepper.batches()).loss
    torch.manual_seed(456)
    assert torch.equal(first, again.stepper.train_step(again.stepper.batches()).loss)
    assert not torch.equal(first, trainer("model.dropout=0.0").stepper.train_step(run.stepper.batches())[0])


@pytest.mark.slow
def test_bf16_trains(trainer):
    result = trainer("precision=bf16", "trainer.max_steps=60").fit()
    assert result["val_loss"] < result["initial_loss"] - 1


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(trainer):
    run = trainer("checkpoint.every=3")
    real, poisoned = run.stepper.train_step, []

    def step(*arguments):
        if run.state.progress.step == 4:
            poisoned.append(True)
            with torch.no_grad():
                run.state.model.wte.weight[0] = math.nan
        return real(*arguments)

    run.stepper.train_step = step
    with pytest.raises(TrainingError, match="step 5: loss nan"):
        run.fit()
    assert poisoned
    assert json.loads((run.run_dir / "result.json").read_text())["status"] == "failed"
    assert latest_checkpoint(run.run_dir).name == "step_00000003"


@pytest.mark.parametrize("moment, last", [("row", 6), ("sample", 6), ("sync", 5)])
def test_whenever_a_signal_comes_the_last_step_is_saved(trainer, moment, last, monkeypatch):
    """Also when it comes after the step was found not to be the last one."""
    run, real = trainer("trainer.eval_every=1280", "checkpoint.every=5"), getattr(Tracker, moment)

    def with_signal(self, *arguments):
        if run.state.progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Tracker, moment, with_signal)
    handlers = signal.getsignal(signal.SIGTERM)
    result = run.fit()
    assert signal.getsignal(signal.SIGTERM) is handlers
    assert (result["status"], result["step"]) == ("interrupted", last)
    assert latest_checkpoint(run.run_dir).name == f"step_{last:08d}"
    assert json.loads((run.run_dir / "result.json").read_text())["status"] == "interrupted"


def test_logs_that_were_cut_report_where_they_end_now(tmp_path):
    """Or a checkpoint saved before the next line would count bytes that are gone."""
    for name in ("metrics.jsonl", "samples.txt"):
        (tmp_path / name).write_text("x" * 90 + "\n" + "y" * 50)
    without = Mirror("local", tmp_path, may_stay=False)
    with Tracker(tmp_path, {"metrics.jsonl": 91, "samples.txt": 91}, 1, 2, without) as tracker:
        assert tracker.sync() == {"metrics.jsonl": 91, "samples.txt": 91}
        tracker.sample(2, "words")
        assert (
            tracker.sync()["samples.txt"]
            == (tmp_path / "samples.txt").stat().st_size
            == 91 + len("--- step 2\nwords\n")
        )


def test_newest_and_best_checkpoints_are_kept(trainer):
    run = trainer("checkpoint.every=2", "checkpoint.keep=2", "trainer.eval_every=100_000")
    run.fit()
    kept = sorted(path.name for path in (run.run_dir / "checkpoints").iterdir())
    assert kept == ["best", "last", "step_00000018", "step_00000020"]
    assert (run.run_dir / "checkpoints" / "last").resolve().name == "step_00000020"


def test_a_checkpoint_restores_everything(trainer):
    run = trainer("checkpoint.every=10", "trainer.eval_every=100_000")
    run.fit()
    again = trainer()
    checkpoint.load(latest_checkpoint(run.run_dir), again.state)
    ours, theirs = again.state.progress, run.state.progress
    assert (ours.step, ours.tokens, ours.samples, ours.order_hash) == (20, 20 * 256, 160, theirs.order_hash)
    assert ours.pending["step"] == 20  # saved before its evaluation
    theirs = dict(run.state.model.named_parameters())
    for name, p in again.state.model.named_parameters():
        assert torch.equal(p, theirs[name])
        for key, value in run.state.optimizers[0].state[theirs[name]].items():
            assert torch.equal(value, again.state.optimizers[0].state[p][key]), (name, key)


def test_a_half_written_checkpoint_is_not_seen(trainer):
    run = trainer("checkpoint.every=10", "checkpoint.keep=5")
    run.fit()
    directory = run.run_dir / "checkpoints"
    shutil.copytree(directory / "step_00000020", directory / ".step_00000030")
    (directory / ".step_00000030" / "optimizer.safetensors").unlink()
    assert latest_checkpoint(run.run_dir).name == "step_00000020"


def test_a_checkpoint_of_another_model_is_refused(trainer):
    run = trainer("trainer.max_steps=1")
    run.fit()
    path = latest_checkpoint(run.run_dir)
    with pytest.raises(InputError, match=r"wte.weight is \(320, 32\) there and \(257, 32\) here"):
        checkpoint.load(path, trainer("model.vocab_multiple=1").state)


def test_a_directory_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="in use"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
