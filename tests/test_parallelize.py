"""Blocks that are compiled, or run again for the backward pass, compute the same, and hooks on them run."""

import pytest
import torch
from switches import ALL, ids
from switches import built as modern

from gpt import parallelize
from gpt.cli.compose import compose
from gpt.generate.decode import generate
from gpt.loss import loss_sum
from gpt.model import GPT, init_weights
from gpt.parallelize import checkpoint_activations, compile_blocks

IDS = torch.randint(257, (2, 33), generator=torch.Generator().manual_seed(0))


def built(*changes):
    overrides = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.seq_len=32", "model.dropout=0.1"]
    overrides += ["model.bias=false"]  # fewer kernels to compile
    model = GPT(compose(overrides).model, 257)
    init_weights(model, seed=1)
    names = [name for name, _ in model.named_parameters()]
    for change in changes:
        change(model)
    assert [name for name, _ in model.named_parameters()] == names
    return model


def gradients(model):
    torch.manual_seed(3)  # of dropout
    loss_sum(model, IDS[:, :-1], IDS[:, 1:]).backward()
    return [p.grad for p in model.parameters()]


def counted(model):
    """Count the calls of a hook on the second block."""
    calls = []
    model.h[1].register_forward_hook(lambda module, inputs, output: calls.append(1))
    return calls


def continued(model):
    return generate(model, IDS[:1, :5], 60, temperature=1.0, top_k=None, seed=1)


def test_checkpointing_changes_no_gradient_and_keeps_less():
    saved = {}
    results = {}
    for name, changes in (("plain", []), ("checkpointed", [checkpoint_activations])):
        model, tensors = built(*changes), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=tensors: kept.append(x) or x, lambda x: x):
            torch.manual_seed(3)
            loss = loss_sum(model, IDS[:, :-1], IDS[:, 1:])
        saved[name] = len(tensors)
        del loss
        results[name] = gradients(model)
    assert all(map(torch.equal, results["plain"], results["checkpointed"]))
    assert saved["checkpointed"] < saved["plain"] / 2


def test_hooks_run_in_training_and_in_decoding():
    for changes in ([], [checkpoint_activations]):
        model = built(*changes)
        calls = counted(model)
        gradients(model)
        assert len(calls) == 1
        assert torch.equal(continued(model), continued(built()))
        assert len(calls) == 1 + 60


@pytest.mark.slow
def test_a_compiled_block_runs_its_hooks_and_decodes_without_compiling():
    from torch._dynamo.utils import counters

    results = []
    for changes in ([compile_blocks], [compile_blocks, checkpoint_activations]):
        counters.clear()
        model = built(*changes)
        calls = counted(model)
        results.append(gradients(model))
        graphs = counters["stats"]["unique_graphs"]
        assert (len(calls), graphs) == (1, 1)  # one graph for all blocks
        assert torch.equal(continued(model), continued(built()))
        assert counters["stats"]["unique_graphs"] == graphs
        assert len(calls) == 1 + 60
    assert all(map(torch.equal, *results))


@pytest.mark.slow
def test_compiled_blocks_of_two_kinds_compute_the_same_with_all_switches(monkeypatch):
    """The first block, which gives its values and has a window, and the second one."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(parallelize, "_saving_less", "aot_eager")  # graphs are counted, and need no kernels
    results = []
    for changes in ([], [compile_blocks], [checkpoint_activations]):
        counters.clear()
        model = modern(n_layer=2, **ALL)
        for change in changes:
            change(model)
        loss_sum(model, ids(2, 24), ids(2, 24, seed=1)).backward()
        results.append([p.grad for p in model.parameters()])
        assert counters["stats"]["unique_graphs"] == (2 if compile_blocks in changes else 0)
        assert not counters["graph_break"]
    for gradients in results[1:]:
        for ours, expected in zip(gradients, results[0], strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
