"""Muon's matrices, and the optimizers of sweeps."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from gpt.cli.compose import compose
from gpt.config.schema import MuonConfig
from gpt.optim import build_optimizers

SWEEP = Path(__file__).parent.parent / "sweeps" / "optimizers.yaml"
OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5}


@pytest.mark.parametrize("split", [True, False])
def test_muon_takes_query_key_and_value_as_three_matrices(split):
    """As Muon on three parameters of their own, in every step; otherwise as on the one parameter that holds them."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 8, generator=generator, dtype=torch.float64)
    by_hand = [nn.Parameter(part.clone()) for part in (weight.chunk(3) if split else [weight])]
    expected = torch.optim.Muon(by_hand, adjust_lr_fn="match_rms_adamw", **OPTIONS)

    # The parameter of a block, and one beside it that is a single matrix either way.
    model = nn.ModuleDict(
        {"h": nn.ModuleDict({name: nn.Linear(8, 24, dtype=torch.float64) for name in ("c_attn", "c_fc")})}
    )
    for layer in model["h"].values():
        layer.weight.data.copy_(weight)
    config = MuonConfig(
        name="muon", adamw_lr=0.02, betas=[0.9, 0.95], eps=1e-8, fused=False, split_qkv=split, **OPTIONS
    )
    muon, _ = build_optimizers(config, model)
    for _ in range(3):
        gradient = torch.randn(24, 8, generator=generator, dtype=torch.float64)
        for part, of_part in zip(by_hand, gradient.chunk(len(by_hand)), strict=True):
            part.grad = of_part.clone()
        for layer in model["h"].values():
            layer.weight.grad = gradient.clone()
        expected.step()
        muon.step()
        torch.testing.assert_close(model["h"]["c_attn"].weight, torch.cat(by_hand), rtol=1e-12, atol=1e-12)
    assert torch.equal(model["h"]["c_fc"].weight, model["h"]["c_attn"].weight) is not split


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
