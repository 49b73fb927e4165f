"""The switches of the model, one by one and all together, and small models that have them."""

import torch

from gpt.config.load import model_option
from gpt.loss import loss_sum
from gpt.model import GPT, init_weights

SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 48, "seq_len": 24, "init_std": 0.2}  # attention far from uniform
WINDOW = {"window": 5}
SWITCHES = {
    "rotary": {"position": "rotary"},
    "half of rotary": {"position": "rotary", "rope_fraction": 0.5, "rope_theta": 100.0},
    "rmsnorm": {"norm_type": "rmsnorm"},
    "norms without weights": {"norm_weight": False},
    "qk_norm": {"qk_norm": True},
    "grouped queries": {"n_kv_head": 2},
    "one head of values, written out": {"n_kv_head": 1, "attention": "naive"},
    "window": WINDOW,
    "window of one": {"window": 1},
    "windows in turn": WINDOW | {"window_pattern": "SL", "attention": "naive"},
    "attention_softcap": {"attention_softcap": 2.0},
    "logit_softcap": {"logit_softcap": 2.0},
    "z_loss": {"z_loss": 0.01},
    "value_embeddings": {"value_embeddings": 1},
    "value_residual": {"value_residual": True},
    "relu2": {"activation": "relu2"},
    "swiglu": {"activation": "swiglu"},
    "geglu": {"activation": "geglu", "mlp_matched": True},
    "mlp_width": {"mlp_width": 51},
    "parallel_block": {"parallel_block": True},
    "residual_lambdas": {"residual_lambdas": True},
    "x0_lambdas": {"x0_lambdas": True},
    "zero_init_projections": {"zero_init_projections": True},
}
# As nanochat and modded-nanogpt have them; the last of two keys that differ counts.
ALL = {
    **SWITCHES["half of rotary"], **SWITCHES["rmsnorm"], **SWITCHES["qk_norm"], **SWITCHES["grouped queries"],
    **SWITCHES["swiglu"], **SWITCHES["value_embeddings"], **SWITCHES["value_residual"], **SWITCHES["parallel_block"],
    **SWITCHES["residual_lambdas"], **SWITCHES["x0_lambdas"], **SWITCHES["logit_softcap"], **SWITCHES["z_loss"],
    **WINDOW, "window_pattern": "SL", "attention_softcap": 3.0, "mlp_matched": True, "bias": False, "tie_head": False,
}  # fmt: skip
EACH = {**SWITCHES, "all": ALL}


def config_of(**changes):
    return model_option("gpt2_124m", name="small", **SIZES | changes)


def built(vocab_size=61, seed=1, **changes):
    """A model far from its initialization: every learned factor counts, and every gain and bias."""
    model = GPT(config_of(**changes), vocab_size).eval()
    init_weights(model, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn_like(p))
    return model


def ids(*shape, vocab_size=61, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_learns(model, x, y, lr):
    """A few steps on one batch bring its loss down."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(20):
        loss = loss_sum(model, x, y) / y.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def as_overrides(**changes):
    """The same as one would type it."""
    words = {None: "null", True: "true", False: "false"}
    return [f"model.{key}={words[v] if v is None or isinstance(v, bool) else v}" for key, v in changes.items()]
