"""The model against Hugging Face's GPT-2, and against itself in other forms."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from switches import assert_learns

from gpt.cli.compose import compose
from gpt.config.groups import options
from gpt.device import Compute
from gpt.layers.attention import Attention, Shared
from gpt.layers.head import CHUNK_BYTES
from gpt.layers.mlp import gelu_tanh
from gpt.layers.positions import sinusoids
from gpt.loss import loss_sum
from gpt.model import GPT, flops_per_token, init_weights, parameter_count
from gpt.precision import autocast
from gpt.tokens.windows import IGNORE


def model_config(*overrides):
    return compose(["model.n_layer=2", "model.n_head=4", "model.n_embd=64", "model.seq_len=32", *overrides]).model


def built(*overrides, vocab_size=257, seed=1):
    model = GPT(model_config(*overrides), vocab_size)
    init_weights(model, seed)
    return model


def ids(*shape, vocab_size=257, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def hugging_face(config, vocab_size):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab_size,
            n_positions=config.seq_len,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.1,  # so that attention is far from uniform and an error shows
        )
    )
    with torch.no_grad():
        for p in reference.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return reference.eval()


@torch.no_grad()
def copy_weights(model, reference):
    """Hugging Face keeps linear weights as (in, out), we as (out, in); names are otherwise the same."""
    theirs = {name.removeprefix("transformer."): p for name, p in reference.named_parameters()}
    for name, p in model.named_parameters():
        source = theirs.pop(name)
        is_linear = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        p[: source.size(1 if is_linear else 0)] = source.T if is_linear else source
    assert not theirs


@pytest.mark.parametrize("attention", ["sdpa", "naive"])
@pytest.mark.parametrize("vocab_multiple", [1, 64])
def test_logits_equal_hugging_face(attention, vocab_multiple):
    config = model_config(f"model.attention={attention}", f"model.vocab_multiple={vocab_multiple}")
    reference = hugging_face(config, vocab_size=257)
    model = GPT(config, vocab_size=257).eval()
    init_weights(model, 1)
    copy_weights(model, reference)
    x = ids(3, 32)
    with torch.no_grad():
        ours, theirs = model.logits(model(x)), reference(x).logits
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours[..., :257], theirs, atol=1e-4, rtol=0)
    assert (ours[..., 257:] == -math.inf).all()


def on_meta(*overrides, vocab_size=50_257):
    with torch.device("meta"):
        return GPT(compose(list(overrides)).model, vocab_size)


PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "gpt3_small": 125.2e6,
    "gpt3_medium": 355.9e6,
    "gpt3_large": 760.3e6,
    "gpt3_xl": 1315.7e6,
}


@pytest.mark.parametrize("size, count", PUBLISHED.items())
def test_every_size_has_its_published_parameter_count(size, count):
    model = on_meta(f"model={size}", "model.vocab_multiple=1")
    assert parameter_count(model) == pytest.approx(count, rel=0 if isinstance(count, int) else 5e-4)
    assert model.config.seq_len == (1024 if size.startswith("gpt2") else 2048)


@pytest.mark.parametrize("size, vocab_size, count", [("char_cpu", 65, 804_096), ("char_gpu", 65, 10_745_088)])
def test_the_character_models_are_nanogpts(size, vocab_size, count):
    """0.80M and 10.65M by nanoGPT's own count, which leaves the positions out."""
    model = on_meta(f"model={size}", "model.vocab_multiple=1", vocab_size=vocab_size)
    assert parameter_count(model) == count
    assert round((count - model.wpe.weight.numel()) / 1e6, 2) in (0.80, 10.65)


def test_a_size_is_in_the_published_table_or_of_our_own():
    assert set(options("model")) == {*PUBLISHED, "char_cpu", "char_gpu", "tiny", "bigram", "llama_tiny"}


def test_padded_124m():
    model = on_meta("model=gpt2_124m")
    assert parameter_count(model) == 124_475_904
    assert flops_per_token(model) == pytest.approx(0.855e9, rel=1e-3)
    untied = on_meta("model=gpt2_124m", "model.tie_head=false", "model.position=none")
    assert parameter_count(untied) == 124_475_904 + 50_304 * 768 - 1024 * 768
    assert flops_per_token(untied) == flops_per_token(model)  # an embedding is only looked up


def test_weights_depend_on_seed_and_name_alone():
    small, padded, deeper = built("model.vocab_multiple=1"), built("model.vocab_multiple=128"), built("model.n_layer=3")
    assert torch.equal(small.wte.weight, padded.wte.weight[:257])
    assert (padded.wte.weight[257:] == 0).all()
    for name, p in small.named_parameters():
        if "wte" not in name and "c_proj" not in name:  # residual projections are scaled by depth
            assert torch.equal(p, dict(deeper.named_parameters())[name]), name
    assert not torch.equal(small.wte.weight, built("model.vocab_multiple=1", seed=2).wte.weight)
    assert padded.h[0].mlp.c_fc.weight.std().item() == pytest.approx(small.config.init_std, rel=0.05)
    assert padded.h[0].mlp.c_proj.weight.std().item() == pytest.approx(small.config.init_std / 2, rel=0.05)


def relative_l2(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("tie_head", ["true", "false"])
@pytest.mark.parametrize("vocab_multiple", [64, 128])
def test_padding_changes_neither_loss_nor_gradient(vocab_multiple, tie_head):
    head = f"model.tie_head={tie_head}"
    plain, padded = built("model.vocab_multiple=1", head), built(f"model.vocab_multiple={vocab_multiple}", head)
    x, y = ids(4, 32), ids(4, 32, seed=1)
    losses = []
    for model in (plain, padded):
        loss = loss_sum(model, x, y) / y.numel()
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-6)
    theirs = dict(plain.named_parameters())
    for name, p in padded.named_parameters():
        grad = p.grad[:257] if name in ("wte.weight", "lm_head.weight") else p.grad
        assert relative_l2(grad, theirs[name].grad) < 2e-6, name
    assert (padded.wte.weight.grad[257:] == 0).all()


def test_loss_is_a_sum_over_targets_that_count():
    model = built()
    x, y = ids(2, 32), ids(2, 32, seed=1)
    logits = model.logits(model(x))[..., :257]
    by_hand = -logits.log_softmax(-1).gather(-1, y[..., None]).squeeze(-1)
    assert loss_sum(model, x, y).item() == pytest.approx(by_hand.sum().item(), rel=1e-5)
    masked = y.clone()
    masked[:, :20] = IGNORE
    assert loss_sum(model, x, masked).item() == pytest.approx(by_hand[:, 20:].sum().item(), rel=1e-5)


def test_loss_is_computed_in_float32_under_bf16():
    model = built("model.init_std=0.02")
    with autocast("bf16", torch.device("cpu")):
        loss = loss_sum(model, ids(2, 32), ids(2, 32, seed=1))
    assert loss.dtype == torch.float32
    assert loss.item() / 64 == pytest.approx(math.log(257), rel=0.01)


def plain_loss_sum(model, x, y):
    logits = model.logits(model(x)).float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, y.flatten(), ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("chunk_rows", [64, 24, 20, 1])  # whole; 3 chunks, the last one shorter; 4; 64
@pytest.mark.parametrize("precision, tolerance", [("fp32", 2e-6), ("bf16", 5e-3)])
def test_chunked_loss_has_the_values_and_gradients_of_the_plain_one(chunk_rows, precision, tolerance, monkeypatch):
    model, plain = built("model.vocab_multiple=64"), built("model.vocab_multiple=64")
    itemsize = 4 if precision == "fp32" else 2
    monkeypatch.setitem(CHUNK_BYTES, itemsize, chunk_rows * model.padded_vocab_size * itemsize)
    monkeypatch.setattr("gpt.layers.head.SOFTMAX_BYTES", 7 * model.padded_vocab_size * 4)
    x, y = ids(2, 32), ids(2, 32, seed=1)
    y[0, 3:30], y[1] = IGNORE, IGNORE  # chunks in which some count, in which one does, in which none does
    for scale in (1.0, 1024.0):  # two micro-batches, the second as a loss scaler would have it
        with autocast(precision, torch.device("cpu")):
            ours, theirs = loss_sum(model, x, y), plain_loss_sum(plain, x, y)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
        (ours * scale).backward()
        (theirs * scale).backward()
    expected = dict(plain.named_parameters())
    for name, p in model.named_parameters():
        assert relative_l2(p.grad, expected[name].grad) < tolerance, name
    assert (model.wte.weight.grad[257:] == 0).all()
    with torch.no_grad(), autocast(precision, torch.device("cpu")):
        assert loss_sum(model, x, y).item() == ours.item()


def test_no_target_that_counts_gives_zero_loss_and_gradients():
    model = built()
    total = loss_sum(model, ids(2, 32), torch.full((2, 32), IGNORE))
    total.backward()
    assert total.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())


SWITCHES = [
    "model.attention=naive", "model.attention=sdpa", "model.position=sinusoidal", "model.position=none", "model.norm=post",
    "model.bias=false", "model.tie_head=false", "model.activation=relu", "model.activation=gelu_exact", "model.n_layer=0",
    "model.residual_scaling=false", "model.dropout=0.1",
]  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_trains(switch):
    """A few steps on one batch bring its loss down."""
    model = built(switch, "model.vocab_multiple=64")
    x, y = ids(4, 32), ids(4, 32, seed=1)
    assert_learns(model, x, y, lr=3e-3)
    assert (model.wte.weight[257:] == 0).all()
    assert (model.lm_head.weight[257:] == 0).all()


def test_switches_do_what_they_say():
    plain, x = built().eval(), ids(2, 32)

    def outcome(switch):
        model = built(switch).eval()
        theirs = dict(model.named_parameters())
        assert all(torch.equal(p, theirs[n]) for n, p in plain.named_parameters() if n in theirs and "c_proj" not in n)
        with torch.no_grad():
            return model, model.logits(model(x))[..., :257]

    with torch.no_grad():
        ours = plain.logits(plain(x))[..., :257]
    for switch in SWITCHES[2:-1]:
        is_same = switch == "model.bias=false"  # biases start at zero
        assert torch.allclose(ours, outcome(switch)[1], rtol=0, atol=1e-6) is is_same, switch
    assert not {"ln_f.weight", "ln_f.bias"} & {n for n, _ in outcome("model.norm=post")[0].named_parameters()}
    assert "lm_head.weight" in {n for n, _ in outcome("model.tie_head=false")[0].named_parameters()}
    assert not any(n.endswith("bias") for n, _ in outcome("model.bias=false")[0].named_parameters())
    residual = outcome("model.residual_scaling=false")[0].h[0].mlp.c_proj.weight.std().item()
    assert residual == pytest.approx(plain.config.init_std, rel=0.05)


def test_without_positions_only_the_causal_mask_tells_order():
    """Swapping two earlier tokens changes nothing for a later one in a single block without positions."""
    swapped = ids(1, 32)
    swapped[0, [3, 7]] = swapped[0, [7, 3]]
    for position, same in (("none", True), ("learned", False), ("sinusoidal", False)):
        model = built(f"model.position={position}", "model.n_layer=1").eval()
        with torch.no_grad():
            assert torch.allclose(model(ids(1, 32))[0, -1], model(swapped)[0, -1], atol=1e-5) is same


def test_sinusoids_are_vaswanis():
    table = sinusoids(32, 6)
    for position, i in ((0, 0), (5, 1), (31, 2)):
        angle = position / 10_000 ** (2 * i / 6)
        assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_post_norm_normalises_what_leaves_a_block():
    out = built("model.norm=post").eval()(ids(2, 32))
    assert out.mean(-1).abs().max() < 1e-5
    assert out.std(-1, correction=0).sub(1).abs().max() < 1e-3


def test_a_loop_a_product_a_softmax_heads_and_a_batch_of_heads_are_one_attention():
    """The steps of "Let's build GPT": five ways to average over the past."""
    torch.manual_seed(0)
    b, t, c, heads = 2, 8, 12, 3
    x = torch.randn(b, t, c)
    loop = torch.stack([torch.stack([x[i, : j + 1].mean(0) for j in range(t)]) for i in range(b)])
    triangle = torch.tril(torch.ones(t, t))
    product = (triangle / triangle.sum(1, keepdim=True)) @ x
    softmax = torch.zeros(t, t).masked_fill(triangle == 0, -math.inf).softmax(-1) @ x
    torch.testing.assert_close(product, loop)
    torch.testing.assert_close(softmax, loop)

    def one_head(q, k, v):  # (B, T, D)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        return scores.masked_fill(triangle == 0, -math.inf).softmax(-1) @ v

    same = torch.zeros(b, t, c // heads)  # all scores equal: the same averages, head by head
    torch.testing.assert_close(torch.cat([one_head(same, same, part) for part in x.split(c // heads, -1)], -1), loop)
    for attention in ("naive", "sdpa"):
        config = compose([f"model.n_embd={c}", f"model.n_head={heads}", f"model.attention={attention}"]).model
        layer = Attention(config)
        per_head = [part.split(c // heads, -1) for part in layer.c_attn(x).split(c, -1)]
        together = torch.cat([one_head(q, k, v) for q, k, v in zip(*per_head, strict=True)], -1)
        torch.testing.assert_close(layer(x, Shared())[0], layer.c_proj(together))
        with torch.no_grad():
            layer.c_attn.weight[: 2 * c] = 0  # queries and keys: uniform attention again
            layer.c_attn.weight[2 * c :] = torch.eye(c)
            layer.c_attn.bias.zero_()
            layer.c_proj.weight.copy_(torch.eye(c))
            layer.c_proj.bias.zero_()
            torch.testing.assert_close(layer(x, Shared())[0], loop)


@pytest.mark.parametrize("switch", SWITCHES)
def test_decoding_with_the_cache_gives_the_same_hidden_states(switch):
    model = built(switch).eval()
    x = ids(2, 32)
    whole = model(x)
    cache = model.new_cache(2, torch.float32)
    parts = [model(x[:, a:b], cache) for a, b in [(0, 5), (5, 6), (6, 20), (20, 31), (31, 32)]]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_tokens, windows", [(None, None), (1, 1), (700, 22)])
def test_validation_counts_every_token_once_for_any_micro_batch(trainer, max_tokens, windows):
    run = trainer(f"trainer.eval_tokens={max_tokens or 'null'}")
    model, file, starts = run.state.model, run.tasks["val"].windows.file, run.tasks["val"].starts
    n = file.n_tokens - 1
    tokens = torch.from_numpy(file.reader()(0, n + 1).astype("int64"))
    assert len(set(starts)) == len(starts) == (windows or math.ceil(n / 32))
    assert (starts % 32 == 0).all()
    taken = [(tokens[i : i + 32][: n - i], tokens[i + 1 : i + 33]) for i in starts]
    targets = sum(len(y) for _, y in taken)
    assert targets == (n if max_tokens is None else windows * 32)
    with torch.no_grad():
        expected = sum(loss_sum(model, x[None], y[None]).item() for x, y in taken) / targets
    for micro in (1, 3, 64):
        validation = replace(run.tasks["val"], micro_batch_size=micro)
        assert validation.n_targets == targets
        loss = validation.measure(model, 0, Compute(torch.device("cpu"), nullcontext())).metrics["val/loss"]
        assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_compiled_gelu_is_that_of_gpt2():
    """Compiled, the model writes it with a sigmoid; both against the formula in float64."""
    x = torch.linspace(-8, 8, 4001)
    wide = x.double()
    formula = 0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    compiled = torch.compile(gelu_tanh)(x)
    assert (compiled - formula).abs().max() < 1e-6
    assert (gelu_tanh(x) - formula).abs().max() < 1e-6
