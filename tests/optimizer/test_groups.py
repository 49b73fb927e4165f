"""Groups of parameters: who belongs to which, and with which options."""

import pytest
import torch
from conftest import SMALL
from torch import nn

from gpt.cli.compose import compose
from gpt.errors import InputError
from gpt.model import GPT
from gpt.optimizer.build import build_optimizers
from gpt.optimizer.groups import group_names
from gpt.tracker.logs import read_metrics


def built(*overrides):
    """The options of every parameter, by its name."""
    config = compose([*SMALL, *overrides])
    model = GPT(config.model, 97)
    names = {p: name for name, p in model.named_parameters()}
    options = {}
    for optimizer in build_optimizers(config.optimizer, model):
        for group in optimizer.param_groups:
            for p in group["params"]:
                options[names[p]] = group
    assert set(options) == set(names.values())
    return options


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_its_group(tied):
    model = GPT(compose([*SMALL, f"model.tie_head={tied}".lower()]).model, 97)
    model.lambdas = nn.Parameter(torch.ones(2))
    names = group_names(model)
    found = {name: names[p] for name, p in model.named_parameters()}
    assert found["wte.weight"] == found["wpe.weight"] == "embedding"
    assert found.get("lm_head.weight") == (None if tied else "head")
    matrices = {name for name, group in found.items() if group == "matrices"}
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert matrices == {f"h.{i}.{part}.weight" for i in range(2) for part in parts}
    assert {"lambdas", "ln_f.weight", "h.0.attn.c_attn.bias"} <= {n for n, group in found.items() if group == "scalars"}


def test_without_keys_there_are_two_groups_as_ever():
    groups = {id(group): group for group in built().values()}
    assert [(g["lr"], g["betas"], g["weight_decay"]) for g in groups.values()] == [
        (2e-3, (0.9, 0.95), 0.1), (2e-3, (0.9, 0.95), 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "soap", "lion", "schedule_free"])
def test_a_group_has_its_own_rate_betas_and_decay(optimizer):
    given = ["optimizer.groups.embedding.lr=0.01", "optimizer.groups.embedding.betas=[0.8,0.9]",
             "optimizer.groups.head.weight_decay=0", "optimizer.groups.scalars.lr=0.02",
             "optimizer.groups.scalars.weight_decay=0.3", "optimizer.groups.matrices.weight_decay=0.2"]  # fmt: skip
    options = built("model.tie_head=false", f"optimizer={optimizer}", "optimizer.lr=0.5", *given)
    for name in ("wte.weight", "wpe.weight"):
        assert (options[name]["lr"], options[name]["betas"]) == (0.01, (0.8, 0.9))
    assert (options["lm_head.weight"]["lr"], options["lm_head.weight"]["weight_decay"]) == (0.5, 0)
    assert (options["ln_f.bias"]["lr"], options["ln_f.bias"]["weight_decay"]) == (0.02, 0.3)
    matrix = options["h.0.mlp.c_fc.weight"]
    assert (matrix["lr"], matrix["weight_decay"]) == (0.5, 0.2)


def test_groups_under_muon_have_adamws_rate_unless_told_otherwise():
    options = built("optimizer=muon", "optimizer.adamw_lr=0.03", "optimizer.groups.scalars.lr=0.02",
                    "optimizer.lr=0.02", "optimizer.groups.matrices.lr=0.04")  # fmt: skip
    rates = [options[name]["lr"] for name in ("wte.weight", "ln_f.weight", "h.0.mlp.c_fc.weight")]
    assert rates == [0.03, 0.02, 0.04]


def test_rates_that_differ_are_logged(trainer):
    run = trainer("trainer.max_steps=2", "optimizer.groups.embedding.lr=0.02", "sample.tokens=0")
    run.fit()
    for row in read_metrics(run.run_dir):
        assert row["optim/lr/embedding"] == pytest.approx(10 * row["optim/lr"])
        assert {key for key in row if key.startswith("optim/lr")} == {"optim/lr", "optim/lr/embedding"}


REFUSED = [
    (["optimizer.groups.head.lr=1"], "optimizer.groups.head.lr=1.0 has nothing to work on with model.tie_head=true"),
    (["model=bigram", "optimizer.groups.matrices.lr=1"], "has nothing to work on with model.n_layer=0"),
    (["optimizer.groups.tables.lr=1"], "unknown key optimizer.groups.tables"),
    (["optimizer.groups.scalars.betas=[0.9]"], r"optimizer.groups.scalars.betas=\[0.9\] are not Adam's"),
    (["optimizer=muon", "optimizer.groups.matrices.betas=[0.9,0.9]"], "with optimizer=muon matrices have a momentum"),
    (["optimizer=muon", "optimizer.momentum_warmup=9", "optimizer.momentum_start=0.96"], "is above optimizer.momentum"),
    (["optimizer=schedule_free", "schedule=wsd"], "in place of a learning rate that falls, and schedule=wsd falls"),
    (["optimizer=schedule_free", "schedule.decay_fraction=0.1"], "schedule.decay_fraction=0.1 falls"),
    (["optimizer=schedule_free", "trainer.ema=0.9"], "averages its weights itself, and trainer.ema=0.9 asks"),
    (["trainer.ema=1"], "trainer.ema=1.0 makes no sense"),
    (["trainer.average_from=1"], "trainer.average_from=1.0 makes no sense"),
]


@pytest.mark.parametrize("overrides, reason", REFUSED)
def test_what_makes_no_sense_is_refused(overrides, reason):
    with pytest.raises(InputError, match=reason):
        compose(overrides)


def test_a_group_without_parameters_is_refused_when_they_are_known():
    config = compose(["optimizer.groups.scalars.lr=1"])
    with pytest.raises(
        InputError, match=r"groups.scalars.lr=1.0: the model has no parameters in this group\n.*matrices"
    ):
        build_optimizers(config.optimizer, nn.Linear(2, 2, bias=False))
