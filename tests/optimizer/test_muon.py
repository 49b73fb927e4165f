"""Muon's matrices and the changes of its update, and the optimizers of sweeps."""

import math

import pytest
import torch
import yaml
from conftest import ROOT
from torch import nn

from gpt.cli.compose import compose
from gpt.optimizer import muon as ours
from gpt.optimizer.build import build_optimizers, set_rates

SWEEP = ROOT / "sweeps" / "optimizers.yaml"
OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5}
GIVEN = [f"optimizer.{key}={value}".lower() for key, value in OPTIONS.items()]


def muon_config(*overrides):
    return compose(["optimizer=muon", "optimizer.fused=false", *GIVEN, *overrides]).optimizer


def blocks(weight):
    """A model whose c_attn and c_fc are this matrix, and its optimizer Muon."""
    rows, width = weight.shape
    layers = {name: nn.Linear(width, rows, dtype=torch.float64) for name in ("c_attn", "c_fc")}
    for layer in layers.values():
        layer.weight.data.copy_(weight)
    return nn.ModuleDict({"h": nn.ModuleDict(layers)})


@pytest.mark.parametrize("heights", [(8, 8, 8), (8, 4, 4), (8, 2, 2), None])
def test_muon_takes_query_key_and_value_as_three_matrices(heights):
    """As Muon on three parameters of their own, in every step; otherwise as on the one parameter that holds them.

    Key and value of grouped queries have fewer rows.
    """
    rows = sum(heights or [24])
    parts = heights or [rows]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    by_hand = [nn.Parameter(part.clone()) for part in weight.split(parts)]
    expected = torch.optim.Muon(by_hand, adjust_lr_fn="match_rms_adamw", **OPTIONS)

    # The parameter of a block, and one beside it that is a single matrix either way.
    model = blocks(weight)
    muon, _ = build_optimizers(muon_config(f"optimizer.split_qkv={heights is not None}".lower()), model)
    for _ in range(3):
        gradient = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
        for part, of_part in zip(by_hand, gradient.split(parts), strict=True):
            part.grad = of_part.clone()
        for layer in model["h"].values():
            layer.weight.grad = gradient.clone()
        expected.step()
        muon.step()
        torch.testing.assert_close(model["h"]["c_attn"].weight, torch.cat(by_hand), rtol=1e-12, atol=1e-12)
    assert torch.equal(model["h"]["c_fc"].weight, model["h"]["c_attn"].weight) is (heights is None)


def orthogonalized_together(matrices, _):
    return torch.stack([orthogonalized(matrix) for matrix in matrices])


def orthogonalized(matrix):
    """Five quintic Newton-Schulz iterations (Jordan et al. 2024), in float64 where they run them in bfloat16."""
    x = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.size(0) > matrix.size(1) else x


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("normuon, cautious", [(True, False), (False, True), (True, True)])
def test_steps_equal_a_reference_in_float64_from_the_papers(normuon, cautious, split, monkeypatch):
    """Li et al. 2025, algorithm 1 with the norm restored as in their code, and Chen et al. 2025, algorithm 1."""
    real = ours._orthogonalize
    monkeypatch.setattr(ours, "_orthogonalize", orthogonalized_together)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(24, 8, generator=generator, dtype=torch.float64)
    model = blocks(weight)
    switches = {"normuon": normuon, "cautious_weight_decay": cautious, "split_qkv": split}
    config = muon_config(*(f"optimizer.{key}={value}".lower() for key, value in switches.items()))
    muon, _ = build_optimizers(config, model)

    lr, decay, beta1, beta2 = 0.02, 0.1, 0.95, 0.95
    heights = [8, 8, 8] if split else [24]
    matrices = list(weight.split(heights))
    momenta = [torch.zeros_like(part) for part in matrices]
    moments = [torch.zeros(len(part), 1, dtype=torch.float64) for part in matrices]
    for _ in range(3):
        gradient = torch.randn(24, 8, generator=generator, dtype=torch.float64)
        model["h"]["c_attn"].weight.grad = gradient.clone()
        muon.step()
        for i, g in enumerate(gradient.split(heights)):
            w = matrices[i]
            momenta[i] = beta1 * momenta[i] + (1 - beta1) * g
            direction = (1 - beta1) * g + beta1 * momenta[i]
            o = orthogonalized(direction)
            (found,) = real(direction[None], muon.param_groups[0])
            torch.testing.assert_close(found.double(), o, rtol=0, atol=0.05)
            if normuon:
                moments[i] = beta2 * moments[i] + (1 - beta2) * (o * o).mean(1, keepdim=True)
                normalized = o / moments[i].sqrt()
                o = normalized * o.norm() / normalized.norm()
            update = 0.2 * math.sqrt(max(w.shape)) * o  # Liu et al. 2025, eq. 4
            mask = (update * w >= 0).double() if cautious else torch.ones_like(w)
            assert 0 < mask.mean() < 1 or not cautious
            matrices[i] = w - lr * (update + decay * mask * w)
        found = model["h"]["c_attn"].weight.detach()
        torch.testing.assert_close(found, torch.cat(matrices), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("at_once", [1, 500])
def test_few_matrices_at_a_time_are_updated_as_all_together(at_once, monkeypatch):
    """Of one shape, 192 numbers each; some have no gradient."""

    def updated():
        generator = torch.Generator().manual_seed(3)
        layers = [nn.Linear(8, 24) for _ in range(7)]
        model = nn.ModuleDict({"h": nn.ModuleList(layers)})
        muon, _ = build_optimizers(muon_config("optimizer.normuon=true", "optimizer.cautious_weight_decay=true"), model)
        for i, layer in enumerate(layers):
            layer.weight.data.normal_(generator=generator)
            gradient = torch.randn(24, 8, generator=generator)
            layer.weight.grad = None if i in (0, 4) else gradient
        for _ in range(3):
            muon.step()
        assert len(muon.state) == 5
        return torch.stack([layer.weight.detach() for layer in layers])

    together = updated()
    monkeypatch.setattr(ours, "NUMBERS_AT_ONCE", at_once)
    torch.testing.assert_close(updated(), together, rtol=0, atol=1e-4)


def test_the_momentum_warms_up_over_tokens():
    config = muon_config("optimizer.momentum_warmup=1000", "optimizer.momentum_start=0.85")
    optimizers = build_optimizers(config, blocks(torch.ones(6, 2)))
    momenta = []
    for tokens in (100, 500, 1000, 5000):
        set_rates(config, optimizers, 1.0, tokens)
        momenta.append(optimizers[0].param_groups[0]["momentum"])
    assert momenta == pytest.approx([0.86, 0.90, 0.95, 0.95])


def test_the_arm_nesterov_is_adamw_with_nesterovs_momentum_alone():
    """Dozat's step with one momentum throughout, by hand; torch's NAdam by itself begins with half of it."""
    overrides = yaml.safe_load(SWEEP.read_text())["hydra"]["sweeper"]["arms"]["nesterov"]
    config = compose(overrides).optimizer
    p = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    (optimizer,) = build_optimizers(config, nn.ParameterList([p]))
    (b1, b2), lr = config.betas, config.lr

    generator = torch.Generator().manual_seed(1)
    expected = p.detach().clone()
    mean = torch.zeros_like(expected)
    square = torch.zeros_like(expected)
    for step in range(1, 6):
        p.grad = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        optimizer.step()
        # AdamW, where the mean is looked up one step ahead.
        mean = b1 * mean + (1 - b1) * p.grad
        square = b2 * square + (1 - b2) * p.grad**2
        ahead = b1 * mean / (1 - b1 ** (step + 1)) + (1 - b1) * p.grad / (1 - b1**step)
        expected *= 1 - lr * config.weight_decay
        expected -= lr * ahead / ((square / (1 - b2**step)).sqrt() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-8, atol=0)  # NAdam keeps products in 32 bits
