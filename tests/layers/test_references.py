"""The switches against plain references: written out from their sources, and Gemma 2 of transformers."""

import math

import pytest
import torch
import torch.nn.functional as F
from switches import ALL, WINDOW, built, config_of, ids

from gpt.layers.positions import rotate, rotations
from gpt.model import GPT


def rms(x, weight=None):
    """Root mean square norm (Zhang & Sennrich 2019, eq. 4)."""
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)
    return x if weight is None else x * weight


def turned(x, position, theta, fraction):
    """Pairs as complex numbers, turned by an angle (Su et al. 2021, eq. 12); half-truncated as in modded-nanogpt."""
    n = x.size(-1) // 2
    turning = int(fraction * n)
    angles = torch.tensor([position * theta ** (-i / turning) if i < turning else 0.0 for i in range(n)])
    z = torch.complex(x[..., :n], x[..., n:]) * torch.polar(torch.ones(n), angles)
    return torch.cat([z.real, z.imag], -1)


def attended(q, keys, values, softcap):
    """One query over keys and values (Vaswani et al. 2017, eq. 1), capped as in Gemma 2, section 2."""
    scores = keys @ q / math.sqrt(len(q))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return scores.softmax(0) @ values


def plain_logits(model, tokens):
    """One text, token by token and head by head; the parts are those of nanochat and modded-nanogpt."""
    c, w = model.config, dict(model.named_parameters())
    d, group = c.n_embd // c.n_head, c.n_head // (c.n_kv_head or c.n_head)
    n_kv = c.n_head // group
    x = x0 = w["wte.weight"][tokens]
    last, first_values = c.n_layer - c.value_embeddings, None
    for i in range(c.n_layer):
        h = f"h.{i}."
        if c.residual_lambdas:  # x = self.lambdas[0] * x + self.lambdas[1] * x0
            x = w[h + "residual_lambda"] * x
        if c.x0_lambdas:
            x = x + w[h + "x0_lambda"] * x0
        y = rms(x, w.get(h + "ln_1.weight"))
        q, k, v = (y @ w[h + "attn.c_attn.weight"].T).split([c.n_embd, n_kv * d, n_kv * d], -1)
        q, k, v = q.view(-1, c.n_head, d), k.view(-1, n_kv, d), v.view(-1, n_kv, d)
        if c.qk_norm:  # q, k = norm(q), norm(k)
            q, k = rms(q, w.get(h + "attn.q_norm.weight")), rms(k, w.get(h + "attn.k_norm.weight"))
        if c.position == "rotary":
            q, k = (torch.stack([turned(r, t, c.rope_theta, c.rope_fraction) for t, r in enumerate(z)]) for z in (q, k))
        if c.value_residual:  # ResFormer: the first layer's values, before anything is mixed into them
            first_values = v if i == 0 else first_values
            v = v if i == 0 else w[h + "attn.value_lambdas"][0] * v + w[h + "attn.value_lambdas"][1] * first_values
        table = i if i < c.value_embeddings else i - last if i >= last else None
        if table is not None:  # v = self.lambdas[0] * v + self.lambdas[1] * ve.view_as(v)
            ve = w[f"wve.{table}.weight"][tokens].view_as(v)
            v = w[h + "attn.embedding_lambdas"][0] * v + w[h + "attn.embedding_lambdas"][1] * ve
        has_window = c.window and c.window_pattern[i % len(c.window_pattern)] == "S"
        rows = []
        for t in range(len(tokens)):
            seen = slice(max(0, t + 1 - c.window) if has_window else 0, t + 1)
            heads = [
                attended(q[t, j], k[seen, j // group], v[seen, j // group], c.attention_softcap)
                for j in range(c.n_head)
            ]
            rows.append(torch.cat(heads))
        out = torch.stack(rows) @ w[h + "attn.c_proj.weight"].T
        if not c.parallel_block:
            x = x + out
        z = y if c.parallel_block else rms(x, w.get(h + "ln_2.weight"))
        up = z @ w[h + "mlp.c_fc.weight"].T
        if c.activation == "relu2":  # F.relu(x).square()
            inner = torch.where(up > 0, up, 0 * up) ** 2
        else:  # Shazeer 2020, eq. 6: Swish(xW) * xV; GeGLU by tanh, as Gemma
            gate = z @ w[h + "mlp.c_gate.weight"].T
            gate = gate / (1 + torch.exp(-gate)) if c.activation == "swiglu" else F.gelu(gate, approximate="tanh")
            inner = gate * up
        x = x + inner @ w[h + "mlp.c_proj.weight"].T + (out if c.parallel_block else 0)
    head = w["lm_head.weight"] if "lm_head.weight" in w else w["wte.weight"]
    logits = (rms(x, w.get("ln_f.weight")) @ head.T)[..., : model.vocab_size]
    return logits if c.logit_softcap is None else c.logit_softcap * torch.tanh(logits / c.logit_softcap)


BASE = {"norm_type": "rmsnorm", "bias": False, "position": "none", "activation": "relu2"}
REFERENCES = {
    "relu2": {},
    "qk_norm": {"qk_norm": True},
    "norms without weights": {"norm_weight": False, "qk_norm": True},
    "rotary": {"position": "rotary", "rope_theta": 50.0},
    "value_embeddings": {"value_embeddings": 1},
    "value_residual": {"value_residual": True},
    "lambdas": {"residual_lambdas": True, "x0_lambdas": True},
    "geglu": {"activation": "geglu"},
    "window": WINDOW | {"window_pattern": "SL", "n_kv_head": 2},
    "all": ALL,
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("attention", ["naive", "sdpa"])
@torch.no_grad()
def test_logits_equal_those_that_are_written_out(name, attention):
    model = built(**BASE | REFERENCES[name] | {"attention": attention})
    tokens = ids(12)
    expected = plain_logits(model, tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(model.logits(model(tokens[None]))[0, :, :61], expected, atol=1e-4, rtol=0)


def test_rotations_keep_lengths_and_know_distances_alone():
    rotation = rotations(64, 8, 100.0, 0.5)
    assert torch.equal(rotation[:, :, 2:], torch.tensor([1.0, 0.0])[:, None, None].expand(2, 64, 2))  # stand still
    q, k = torch.randn(2, 1, 1, 1, 8)
    scores = [(rotate(q, rotation[:, [i]]) * rotate(k, rotation[:, [i - 3]])).sum() for i in (3, 20, 63)]
    torch.testing.assert_close(scores[1:], [scores[0], scores[0]], atol=1e-5, rtol=0)
    assert rotate(q, rotation[:, [9]]).norm() == pytest.approx(q.norm().item())


def test_half_of_the_pairs_can_have_the_frequencies_of_modded_nanogpt():
    """angular_freq = (1 / 1024) ** linspace(0, 1, dim // 4), then dim // 4 zeros."""
    theirs = torch.cat([(1 / 1024) ** torch.linspace(0, 1, 8, dtype=torch.float64), torch.zeros(8)])
    angles = torch.arange(20)[:, None] * theirs
    expected = torch.stack([angles.cos(), angles.sin()]).float()
    torch.testing.assert_close(rotations(20, 32, 1024 ** (8 / 7), 0.5), expected)


@torch.no_grad()
def test_caps_and_windows_equal_gemma_2():
    """Its norms after each part, which this model lacks, are taken out; its norms multiply by 1 + weight."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    theirs = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=12, max_position_embeddings=24, sliding_window=5,
            attn_logit_softcapping=3.0, final_logit_softcapping=2.0, rms_norm_eps=1e-5, initializer_range=0.2,
            attn_implementation="eager", layer_types=["sliding_attention", "full_attention"] * 2, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    for layer in theirs.model.layers:
        layer.post_attention_layernorm = layer.post_feedforward_layernorm = torch.nn.Identity()
    config = config_of(
        n_layer=4, n_kv_head=2, mlp_width=64, position="rotary", norm_type="rmsnorm", activation="geglu", bias=False,
        window=5, window_pattern="SL", attention_softcap=3.0, logit_softcap=2.0, tie_head=False,
    )  # fmt: skip
    model = GPT(config, 61).eval()
    w = dict(model.named_parameters())
    tokens = theirs.model.embed_tokens.weight
    w["wte.weight"][:61] = tokens * math.sqrt(48)  # Gemma scales what it looks up
    w["lm_head.weight"][:61] = tokens
    w["ln_f.weight"].copy_(1 + theirs.model.norm.weight)
    for i, layer in enumerate(theirs.model.layers):
        part, h = layer.self_attn, f"h.{i}."
        w[h + "attn.c_attn.weight"].copy_(torch.cat([p.weight for p in (part.q_proj, part.k_proj, part.v_proj)]))
        w[h + "attn.c_proj.weight"].copy_(part.o_proj.weight)
        w[h + "mlp.c_gate.weight"].copy_(layer.mlp.gate_proj.weight)
        w[h + "mlp.c_fc.weight"].copy_(layer.mlp.up_proj.weight)
        w[h + "mlp.c_proj.weight"].copy_(layer.mlp.down_proj.weight)
        w[h + "ln_1.weight"].copy_(1 + layer.input_layernorm.weight)
        w[h + "ln_2.weight"].copy_(1 + layer.pre_feedforward_layernorm.weight)
    x = ids(2, 24)
    expected = theirs(x).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(model.logits(model(x))[..., :61], expected, atol=1e-4, rtol=0)
