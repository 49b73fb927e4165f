"""Optimizers of a library, and of users, that keep other things than tensors."""

import pytest
import torch
from conftest import SMALL
from interrupted import assert_same_end, twice

from gpt.cli.compose import compose
from gpt.config.optimizer import OPTIMIZERS
from gpt.errors import InputError
from gpt.model import GPT, init_weights
from gpt.optimizer import custom
from gpt.optimizer.build import build_optimizers, check_optimizer
from gpt.optimizer.groups import group_names
from gpt.optimizer.packing import pack, unpack

LIBRARY = ["soap", "lion"]  # schedule_free is in test_averages.py
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", LIBRARY)
def test_an_optimizer_of_the_library_learns_and_goes_on_bitwise(name, trainer):
    options = ["optimizer.options.precondition_frequency=2"] if name == "soap" else []
    run, again = twice(trainer, f"optimizer={name}", *options)
    assert_same_end(run, again)
    assert run.state.progress.best_loss < 5.4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plan_counts_what_the_optimizer_keeps(name):
    """Every tensor of the state, but for counters."""
    config = compose([*SMALL, f"optimizer={name}", *(["optimizer.normuon=true"] if name == "muon" else [])])
    model = GPT(config.model, 97)
    init_weights(model, 1)
    optimizers = build_optimizers(config.optimizer, model)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for optimizer in optimizers:
            optimizer.step()
    states = [values for optimizer in optimizers for values in optimizer.state.values()]
    tensors = [tensor for values in states for tensor in pack(values)[0].values()]
    groups = group_names(model)
    planned = sum(config.optimizer.kept_numbers(groups[p], tuple(p.shape)) for p in model.parameters())
    assert planned == sum(tensor.numel() for tensor in tensors if tensor.dim())


def test_lists_and_transposed_matrices_come_back_as_they_were():
    column = torch.arange(6.0).reshape(2, 3).t()
    state = {"p/step": 3, "p/none": None, "p/m": torch.ones(2), "p/Q": [torch.eye(2), [], column, "x"], "p/t": column}
    tensors, others = pack(state)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    back = unpack(tensors, others)
    assert set(back) == set(state)
    assert (back["p/step"], back["p/none"], back["p/Q"][1], back["p/Q"][3]) == (3, None, [], "x")
    for found in (back["p/t"], back["p/Q"][2]):
        assert torch.equal(found, column)
        assert found.stride() == column.stride()
    with pytest.raises(InputError, match="keeps p/f as a set, which a checkpoint cannot hold"):
        pack({"p/f": {1}})


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(custom, "LIBRARY", "not_there")
    config = compose(["optimizer=lion", "optimizer._target_=not_there.Lion"]).optimizer
    with pytest.raises(InputError, match="optimizer=lion is a class of the package not_there, which is not installed"):
        check_optimizer(config, CPU)


def test_betas_of_a_group_need_a_class_that_has_betas():
    overrides = ["optimizer=custom", "optimizer._target_=torch.optim.SGD", "optimizer.groups.scalars.betas=[0.9,0.95]"]
    with pytest.raises(InputError, match=r"torch.optim.SGD takes no betas"):
        check_optimizer(compose(overrides).optimizer, CPU)
