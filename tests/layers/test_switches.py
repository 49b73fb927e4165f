"""Every switch by itself and with every other: decoding, documents, likelihoods, training, sizes."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from switches import ALL, EACH, SWITCHES, as_overrides, assert_learns, built, config_of, ids

from gpt.cli.compose import compose
from gpt.config.model_checks import check_model
from gpt.debug.anomaly import detect_anomaly
from gpt.device import Compute
from gpt.errors import InputError, NotFinite
from gpt.evaluation.likelihood import Question, log_likelihoods
from gpt.generate.decode import generate
from gpt.interop.pretrained import parameter_shapes
from gpt.layers.cache import WindowCache
from gpt.layers.head import CHUNK_BYTES
from gpt.layers.masks import document_layout, window_mask
from gpt.loss import loss_sum
from gpt.model import GPT, flops_per_token, init_weights, parameter_count
from gpt.precision import autocast
from gpt.tokens.windows import IGNORE

CPU = Compute(torch.device("cpu"), nullcontext())


@torch.no_grad()
def assert_decodes(model):
    """The cache changes nothing, whichever parts a text is read in."""
    x = ids(2, 24)
    whole = model.logits(model(x))
    for parts in ([5, 1, 13, 4, 1], [1] * 24, [24]):
        cache = model.new_cache(2, torch.float32)
        ends = list(itertools.accumulate(parts))
        read = [model(x[:, a:b], cache) for a, b in itertools.pairwise([0, *ends])]
        torch.testing.assert_close(model.logits(torch.cat(read, 1)), whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("switch", EACH)
def test_decoding_with_the_cache_gives_the_same_logits(switch):
    model = built(**EACH[switch])
    assert_decodes(model)
    drawn = generate(model, ids(2, 3), 12, temperature=1.0, top_k=1, seed=0)
    with torch.no_grad():
        assert torch.equal(drawn[:, 3:], model.logits(model(drawn))[:, 2:-1, :61].argmax(-1))


@pytest.mark.parametrize("switch", EACH)
@torch.no_grad()
def test_a_document_is_read_as_if_it_stood_alone(switch):
    model = built(**EACH[switch])
    begins = [0, 5, 6, 17]
    documents = torch.tensor([[0] * 5 + [5] + [6] * 11 + [17] * 7])
    x = ids(1, 24)
    together = model(x, layout=document_layout(documents))
    for begin, end in itertools.pairwise([*begins, 24]):
        torch.testing.assert_close(together[:, begin:end], model(x[:, begin:end]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("switch", ["window", "rotary", "all"])
@torch.no_grad()
def test_likelihoods_of_branches_are_those_of_whole_texts(switch):
    model = built(**EACH[switch])
    context, branches = ids(9).tolist(), [ids(n, seed=n).tolist() for n in (7, 1, 4)]
    (found,) = log_likelihoods([Question(context, branches)], model, CPU, 1000)
    for branch, likelihood in zip(branches, found, strict=True):
        text = torch.tensor([context + branch])
        log_p = model.logits(model(text))[0, :, :61].log_softmax(-1)[8:-1]
        expected = log_p.gather(1, text[0, 9:, None]).sum().item()
        assert likelihood.log_probability == pytest.approx(expected, abs=1e-4)


def test_windows_hide_what_lies_before_them():
    """The first token reaches as far as a window in each layer goes: 3 layers of 5 tokens, 12 further in all."""
    x, other = ids(1, 24), ids(1, 24)
    other[0, 0] = (x[0, 0] + 1) % 61
    for changes, reached in ({"window": 5}, 13), ({"window": 5, "window_pattern": "SSL"}, 24), ({"window": 1}, 1):
        model = built(**changes)
        differs = (model(x) - model(other)).abs().amax(-1)[0] > 1e-6
        assert differs.tolist() == [True] * reached + [False] * (24 - reached)


def test_a_window_is_a_mask_and_a_short_cache():
    mask = window_mask(3, 2, 2, torch.device("cpu"))
    assert mask.tolist() == [[True, True, True, False], [False, True, True, True]]
    assert window_mask(3, 1, 2, torch.device("cpu")) is None
    cache = built(window=5).new_cache(2, torch.float32)
    assert all(isinstance(layer, WindowCache) for layer in cache.layers)
    for layer in cache.layers:
        for _ in range(9):
            layer.append(torch.zeros(2, 4, 3, 12), torch.zeros(2, 4, 3, 12))
        assert layer.keys.size(2) == layer.values.size(2) == 4
    model = built(n_kv_head=2)
    assert model.new_cache(3, torch.float32).layers[0].keys.shape == (3, 2, 24, 12)


def pairs_of_switches():
    """Sets of switches that hold every pair of them; of two that set one key, the other comes in another set."""
    left = {pair for pair in itertools.combinations(SWITCHES, 2) if fit(pair)}
    rows = []
    while left:
        row = list(min(left))
        for name in SWITCHES:
            if name not in row and fit([*row, name]):
                row.append(name)
        row = max((row, list(reversed(row))), key=lambda r: len(left & set(itertools.combinations(r, 2))))
        left -= {pair for pair in left if set(pair) <= set(row)}
        rows.append(row)
    return rows


def fit(names):
    keys = [key for name in names for key in SWITCHES[name]]
    return len(keys) == len(set(keys))


def test_every_pair_of_switches_decodes_and_learns():
    rows = pairs_of_switches()
    assert 5 < len(rows) < 40
    for row in rows:
        changes = {key: value for name in row for key, value in SWITCHES[name].items()}
        model = built(**changes)
        check_model(model.config)
        assert_decodes(model)
        loss = loss_sum(model, ids(2, 24), ids(2, 24, seed=1))
        loss.backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing, (row, missing)


def test_all_switches_together_learn():
    model = GPT(config_of(**ALL), 61)
    init_weights(model, 1)
    x, y = ids(4, 24), ids(4, 24, seed=1)
    assert_learns(model, x, y, lr=5e-3)
    assert not model.lm_head.weight[61:].any()
    with autocast("bf16", torch.device("cpu")):
        low = loss_sum(model, x, y) / y.numel()
    assert low.item() == pytest.approx((loss_sum(model, x, y) / y.numel()).item(), abs=0.05)


@pytest.mark.parametrize("switch", EACH)
def test_parameters_and_flops_are_counted(switch):
    config = config_of(vocab_multiple=1, **EACH[switch])
    with torch.device("meta"):
        model = GPT(config, 61)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert parameter_shapes(config, 61) == shapes
    matrices = [math.prod(shape) for name, shape in shapes.items() if name.startswith("h.") and len(shape) == 2]
    assert sum(matrices) == config.n_layer * config.block_matrices
    looked_up = sum(math.prod(shapes[name]) for name in shapes if name.startswith(("wpe", "wve")))
    looked_up += 0 if config.tie_head else math.prod(shapes["wte.weight"])
    attended = {"window": 15, "window of one": 3, "windows in turn": 34, "all": 34}.get(switch, 72)
    assert flops_per_token(model) == 6 * (parameter_count(model) - looked_up) + 12 * 48 * attended


def test_anomalies_are_found_where_blocks_give_their_values():
    model = built(value_residual=True)
    with detect_anomaly(model, enabled=True):
        model(ids(2, 24))
    with torch.no_grad():
        model.h[1].attn.value_lambdas[0] = math.nan
    with detect_anomaly(model, enabled=True), pytest.raises(NotFinite, match=r"the output of h\.1\.attn\.c_proj"):
        model(ids(2, 24))


def test_matched_widths_have_the_parameters_of_two_matrices():
    plain, matched = config_of(), config_of(activation="swiglu", mlp_matched=True)
    assert matched.block_matrices == plain.block_matrices == 12 * 48**2
    assert config_of(mlp_matched=True).inner_width == plain.inner_width  # nothing to match
    assert config_of(activation="geglu").inner_width == 192


def test_what_begins_as_the_identity_does():
    """Factors of 1 and 0 change nothing before the first step, and weights are those of the same names."""
    x = ids(2, 24)
    plain = GPT(config_of(), 61).eval()
    init_weights(plain, 1)
    with torch.no_grad():
        expected = plain(x)
        for name, changes in SWITCHES.items():
            model = GPT(config_of(**changes), 61).eval()
            init_weights(model, 1)
            theirs = dict(model.named_parameters())
            for key, p in plain.named_parameters():
                if key in theirs and theirs[key].shape == p.shape and "c_proj" not in key:
                    assert torch.equal(theirs[key], p), (name, key)
            is_same = name in ("residual_lambdas", "x0_lambdas", "z_loss", "logit_softcap", "norms without weights")
            assert torch.allclose(model(x), expected, atol=1e-5) is is_same, name
        residual = GPT(config_of(**SWITCHES["zero_init_projections"], position="none"), 61).eval()
        init_weights(residual, 1)
        assert torch.equal(residual(x), residual.ln_f(residual.wte(x)))


# --- the loss


def plain_losses(model, x, y):
    """Cross-entropy, and what its gradient is taken of (PaLM, section 5: z_loss log^2 Z)."""
    logits = model.logits(model(x)).float().flatten(0, 1)
    counts = y.flatten() != IGNORE
    cross_entropy = torch.nn.functional.cross_entropy(logits, y.flatten(), ignore_index=IGNORE, reduction="sum")
    return cross_entropy, cross_entropy + model.config.z_loss * logits.logsumexp(-1)[counts].square().sum()


@pytest.mark.parametrize("changes", [{"z_loss": 0.02}, {"logit_softcap": 1.5}, {"z_loss": 0.02, "logit_softcap": 1.5}])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 5e-6), ("bf16", 2e-2)])
def test_caps_and_z_loss_are_in_the_gradient_and_z_loss_is_not_in_the_value(changes, precision, tolerance, monkeypatch):
    model, plain = built(**changes), built(**changes)
    itemsize = 4 if precision == "fp32" else 2
    monkeypatch.setitem(CHUNK_BYTES, itemsize, 20 * model.padded_vocab_size * itemsize)
    monkeypatch.setattr("gpt.layers.head.SOFTMAX_BYTES", 7 * model.padded_vocab_size * 4)
    x, y = ids(2, 24), ids(2, 24, seed=1)
    y[0, 3:20] = IGNORE
    with autocast(precision, torch.device("cpu")):
        ours = loss_sum(model, x, y)
        value, total = plain_losses(plain, x, y)
    assert ours.item() == pytest.approx(value.item(), rel=1e-5 if precision == "fp32" else 1e-2)
    ours.backward()
    total.backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).norm() < tolerance * q.grad.norm() + 1e-6, name
    assert not model.wte.weight.grad[61:].any()
    with torch.no_grad(), autocast(precision, torch.device("cpu")):
        assert loss_sum(model, x, y).item() == ours.item()


# --- wrong input

WRONG = [
    ({"n_kv_head": 3}, "model.n_kv_head=3 does not divide model.n_head=4", "model.n_kv_head=1, 2, 4"),
    ({"n_kv_head": 8}, "model.n_kv_head=8 is more than model.n_head=4", "model.n_kv_head=1, 2, 4"),
    ({"position": "rotary", "n_embd": 20}, "a head of model.n_embd=20 and model.n_head=4 has 5 numbers", "16 or 24"),
    ({"position": "rotary", "rope_fraction": 0.3}, "model.rope_fraction=0.3 of the 16 pairs", "0.25 or 0.3125"),
    ({"rope_fraction": 0}, "model.rope_fraction=0.0 makes no sense", "more than 0, up to 1"),
    ({"window": 64}, "model.window=64 hides nothing in a context of model.seq_len=64", "up to model.window=63"),
    ({"window": 0}, "model.window=0 makes no sense", "at least 1"),
    ({"window": 8, "window_pattern": "LL"}, "model.window=8 is in no layer of model.window_pattern=LL", "letter S"),
    ({"window": 8, "window_pattern": "LLS"}, "model.window=8 is in no layer of model.window_pattern=LLS", "letter S"),
    ({"window_pattern": "SLX"}, "model.window_pattern='SLX' has other letters than L and S", "such as SSSL"),
    ({"window_pattern": "''"}, "model.window_pattern='' has other letters", "such as SSSL"),
    ({"norm": "post", "parallel_block": True}, "model.norm=post one after each", "take model.norm=pre"),
    ({"activation": "swiglu", "mlp_matched": True}, "two thirds of the feed-forward's width, and 512", "510 or 513"),
    ({"activation": "silu"}, "model.activation=silu is not known", "relu2, swiglu"),
    ({"value_embeddings": 2}, "model.value_embeddings=2 tables", "up to model.value_embeddings=1"),
    ({"value_residual": True, "n_layer": 1}, "model.n_layer=1 has none", "model.n_layer of at least 2"),
    ({"attention_softcap": 0}, "model.attention_softcap=0.0 makes no sense", "more than 0"),
    ({"logit_softcap": -1}, "model.logit_softcap=-1.0 makes no sense", "more than 0"),
    ({"z_loss": -1}, "model.z_loss=-1.0 makes no sense", "0 or more"),
]  # fmt: skip


@pytest.mark.parametrize("changes, problem, cure", WRONG, ids=[str(case[0]) for case in WRONG])
def test_what_makes_no_sense_is_refused_with_the_nearest_that_does(changes, problem, cure):
    with pytest.raises(InputError) as refused:
        compose(as_overrides(**changes))
    assert problem in refused.value.problem, refused.value
    assert cure in refused.value.cure, refused.value


def test_keys_that_say_more_of_a_switch_may_stay_where_it_is_off():
    """So that leaving a switch out is one key: the model is the one without them."""
    keys = ["model.rope_theta=500", "model.rope_fraction=0.5", "model.window_pattern=SSSL", "model.mlp_matched=true"]
    models = [GPT(compose(given).model, 61) for given in ([], keys)]
    for model in models:
        init_weights(model, 1)
    x = ids(2, 24)
    assert torch.equal(models[0](x), models[1](x))
