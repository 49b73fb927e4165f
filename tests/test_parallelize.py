"""Blocks that are compiled, or run again for the backward pass, compute the same, and hooks on them run."""

import pytest
import torch

from gpt.cli.compose import compose
from gpt.generate.decode import generate
from gpt.loss import loss_sum
from gpt.model import GPT, init_weights
from gpt.parallelize import checkpoint_activations, compile_blocks

IDS = torch.randint(257, (2, 33), generator=torch.Generator().manual_seed(0))


def built(*changes):
    overrides = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.seq_len=32", "model.dropout=0.1"]
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
