"""Muon's matrices."""

import pytest
import torch
from torch import nn

from gpt.config.schema import MuonConfig
from gpt.optim import build_optimizers

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
