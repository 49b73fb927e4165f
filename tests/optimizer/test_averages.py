"""Averages of the weights: beside them, and by the optimizer itself."""

import json

import pytest
import torch
from interrupted import assert_same_end, twice
from safetensors.torch import load_file
from torch import nn

from gpt.checkpoint.files import latest_checkpoint
from gpt.cli import generation
from gpt.cli.compose import compose
from gpt.cli.evaluation import read_arguments
from gpt.errors import InputError
from gpt.interop.card import model_card
from gpt.interop.load import load_pretrained
from gpt.interop.read import read_pretrained
from gpt.model import GPT
from gpt.notebook.run import load_run
from gpt.optimizer.averages import Average, build_averages
from gpt.tracker.logs import read_metrics

SCHEDULE_FREE = """
class Anchored(__import__("torch").optim.SGD):
    '''Evaluates half of the weights.'''

    def train(self): self.scale(2)
    def eval(self): self.scale(0.5)
    def scale(self, factor):
        for p in self.param_groups[0]["params"]:
            p.data.mul_(factor)
"""


def loss_of(run, path):
    """The validation loss of weights in a file, by a model that the run does not know."""
    model = GPT(run.config.model, run.state.model.vocab_size)
    load_pretrained(model, read_pretrained(str(path)))
    return run.tasks["val"].measure(model, 0, run.compute).metrics["val/loss"]


@pytest.mark.parametrize("decay, start", [(0.9, 0), (0.5, 0), (1.0, 0), (1.0, 2)])
def test_averages_are_what_they_say(decay, start):
    """A plain mean until a step counts 1 - decay, and exponential from then on."""
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(30, 3, 2, generator=generator, dtype=torch.float64)
    model = nn.ParameterDict({"w": nn.Parameter(steps[0].clone())})
    average = Average("ema", model, decay, start=start)
    expected = steps[start]
    for step, weights in enumerate(steps, 1):
        model["w"].data.copy_(weights)
        average.update(step)
        if step > start:
            share = max(1 - decay, 1 / (step - start))
            expected = (1 - share) * expected + share * weights
    torch.testing.assert_close(average.tensors["w"], expected, rtol=1e-12, atol=1e-12)
    if decay == 1:
        torch.testing.assert_close(average.tensors["w"], steps[start:].mean(0), rtol=1e-12, atol=1e-12)
    with average.applied():
        torch.testing.assert_close(model["w"].detach(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(model["w"], steps[-1])


def test_averages_are_evaluated_beside_the_weights_saved_and_go_on_bitwise(trainer):
    run, again = twice(trainer, "trainer.ema=0.6", "trainer.average_from=0.7")
    assert assert_same_end(run, again) == [f"{n}.safetensors" for n in ("average", "ema", "model", "optimizer")]
    rows = {row["step"]: row for row in read_metrics(run.run_dir)}
    assert "val/ema_loss" in rows[3]
    assert "val/average_loss" not in rows[3]  # it has not begun
    last = latest_checkpoint(run.run_dir)
    for key, name in {"val/loss": "model", "val/ema_loss": "ema", "val/average_loss": "average"}.items():
        path = last if name == "model" else last / f"{name}.safetensors"
        assert loss_of(run, path) == pytest.approx(rows[6][key], abs=1e-6)
    result = json.loads((run.run_dir / "result.json").read_text())
    assert result["ema_loss"] == rows[6]["val/ema_loss"] != result["val_loss"]
    assert result["average_bpb"] == rows[6]["val/average_bpb"]
    assert json.loads((last / "state.json").read_text())["averages"] == {"ema": 6, "average": 2}

    # All that reads checkpoints can take them.
    file = str(last / "ema.safetensors")
    assert read_arguments([str(run.run_dir), "weights=ema"]) == (file, None, [])
    assert str(generation.read_arguments([str(run.run_dir), "weights=ema"]).source) == file
    ema = load_run(run.run_dir).load_model("last", weights="ema").model
    assert torch.equal(ema.wte.weight, load_file(file)["wte.weight"])
    card = model_card(read_pretrained(file), "ema")
    assert f"| validation loss | {rows[6]['val/ema_loss']:.4f} nats per token |" in card
    assert "| weights | an average over the steps (trainer.ema) |" in card
    with pytest.raises(InputError, match=r"weights=swa: .*has no such average\n  it has weights=ema, average"):
        read_arguments([str(run.run_dir), "weights=swa"])
    for name in ("ema", "average"):
        (last / f"{name}.safetensors").unlink()
    with pytest.raises(InputError, match=r"no such average\n  leave weights= out; a run keeps them with trainer.ema"):
        read_arguments([str(run.run_dir), "weights=ema"])


def test_averages_change_nothing_of_what_is_trained(trainer):
    few = ["trainer.max_steps=3", "sample.tokens=0"]
    plain, averaged = trainer(*few), trainer(*few, "trainer.ema=0.9")
    for run in (plain, averaged):
        run.fit()
    for name in ("model", "optimizer"):
        files = [(latest_checkpoint(run.run_dir) / f"{name}.safetensors").read_bytes() for run in (plain, averaged)]
        assert files[0] == files[1]


def test_a_schedule_free_run_evaluates_and_saves_its_averaged_weights(trainer):
    """The loss is that of what any reader of the checkpoint gets, training goes on from other weights."""
    run, again = twice(trainer, "optimizer=schedule_free", "schedule.warmup_tokens=0")
    assert assert_same_end(run, again) == ["model.safetensors", "optimizer.safetensors", "trained.safetensors"]
    last = latest_checkpoint(run.run_dir)
    rows = read_metrics(run.run_dir)
    assert loss_of(run, run.run_dir) == pytest.approx(rows[-1]["val/loss"], abs=1e-6)

    # x = y + (1 - 1 / beta) (z - y): the average, from the weights of training and the fast ones (Defazio et al. 2024).
    trained, averaged = load_file(last / "trained.safetensors"), load_file(last / "model.safetensors")
    fast = load_file(last / "optimizer.safetensors")
    for name, y in trained.items():
        x = y + (1 - 1 / 0.9) * (fast[f"{name}/z"] - y)
        torch.testing.assert_close(averaged[name], x, rtol=1e-5, atol=1e-6)
        assert torch.equal(run.state.model.get_parameter(name), y)
    assert not torch.equal(averaged["wte.weight"], trained["wte.weight"])


def test_any_optimizer_that_switches_is_evaluated_with_its_other_weights(trainer, tmp_path, monkeypatch):
    (tmp_path / "anchored.py").write_text(SCHEDULE_FREE)
    monkeypatch.syspath_prepend(tmp_path)
    chosen = ["optimizer=custom", "optimizer._target_=anchored.Anchored", "optimizer.weight_decay=0"]
    with pytest.raises(InputError, match=r"Anchored averages weights in place of .* schedule=cosine falls"):
        trainer(*chosen)
    chosen.append("schedule=constant")
    with pytest.raises(InputError, match=r"Anchored averages its weights itself, and trainer.ema asks"):
        trainer(*chosen, "trainer.ema=0.9")
    run = trainer(*chosen, "trainer.max_steps=1", "sample.tokens=0")
    run.fit()
    last = latest_checkpoint(run.run_dir)
    trained, saved = load_file(last / "trained.safetensors"), load_file(last / "model.safetensors")
    assert torch.equal(saved["wte.weight"], trained["wte.weight"] / 2)


def test_the_weights_are_the_runs_own_again_after_an_error():
    model = nn.Linear(2, 2)
    config = compose(["trainer.ema=0.9"])
    averages = build_averages(config, model, [])
    averages.update(1)
    own = model.weight.detach().clone()
    averages.kept[0].tensors["weight"].zero_()
    with pytest.raises(ZeroDivisionError), averages.kept[0].applied():
        assert not model.weight.any()
        raise ZeroDivisionError
    assert torch.equal(model.weight, own)
