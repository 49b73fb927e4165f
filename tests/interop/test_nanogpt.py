"""nanoGPT's ckpt.pt, against a small module of its form; and pickles that would run code."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from weights import ids, loaded, logits

from gpt.errors import InputError
from gpt.interop.load import weights_hash
from gpt.interop.read import read_header, read_pretrained


class Norm(nn.Module):
    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class SelfAttention(nn.Module):
    def __init__(self, a):
        super().__init__()
        width = a["n_embd"]
        self.n_head = a["n_head"]
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, a["bias"]), nn.Linear(width, width, a["bias"])
        self.register_buffer(
            "bias", torch.ones(a["block_size"], a["block_size"]).tril().view(1, 1, *[a["block_size"]] * 2)
        )

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for y in self.c_attn(x).chunk(3, -1))
        scores = (q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))).masked_fill(self.bias[:, :, :t, :t] == 0, -math.inf)
        return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class Layer(nn.Module):
    def __init__(self, a):
        super().__init__()
        width, bias = a["n_embd"], a["bias"]
        self.ln_1, self.attn, self.ln_2 = Norm(width, bias), SelfAttention(a), Norm(width, bias)
        c_fc, c_proj = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)
        self.mlp = nn.ModuleDict({"c_fc": c_fc, "c_proj": c_proj})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    """The modules and the names of nanoGPT's model.py."""

    def __init__(self, a):
        super().__init__()
        wte, wpe = nn.Embedding(a["vocab_size"], a["n_embd"]), nn.Embedding(a["block_size"], a["n_embd"])
        h = nn.ModuleList(Layer(a) for _ in range(a["n_layer"]))
        self.transformer = nn.ModuleDict({"wte": wte, "wpe": wpe, "h": h, "ln_f": Norm(a["n_embd"], a["bias"])})
        self.lm_head = nn.Linear(a["n_embd"], a["vocab_size"], bias=False)
        self.lm_head.weight = wte.weight

    def forward(self, x):
        h = self.transformer.wte(x) + self.transformer.wpe(torch.arange(x.size(1)))
        for block in self.transformer.h:
            h = block(h)
        return self.lm_head(self.transformer.ln_f(h))


def saved(path, prefix="", **changes):
    """A checkpoint as nanoGPT's train.py saves it after a step, and its model."""
    arguments = {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 16,
        "block_size": 32,
        "bias": False,
        "vocab_size": 65,
        "dropout": 0.0,
    }
    arguments |= changes
    torch.manual_seed(3)
    model = NanoGPT(arguments)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    optimizer = torch.optim.AdamW(model.parameters())
    model(ids(65)).mean().backward()
    optimizer.step()
    checkpoint = {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": arguments,
        "iter_num": 1,
        "best_val_loss": torch.tensor(4.2),
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "compile": True},
    }
    torch.save(checkpoint, path)
    return model


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [False, True])
def test_its_logits_are_those_of_nanogpt(prefix, bias, tmp_path):
    theirs = saved(tmp_path / "ckpt.pt", prefix, bias=bias)
    weights = read_pretrained(str(tmp_path / "ckpt.pt"))
    assert (weights.model.bias, weights.model.activation, weights.tokenizer) == (bias, "gelu_exact", None)
    x = ids(65)
    with torch.no_grad():
        expected = theirs(x)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(loaded(weights), x, 65), expected, atol=1e-5, rtol=0)
    assert len(weights_hash(weights)) == 64


def test_rows_behind_gpt2s_tokens_are_cut(tmp_path):
    theirs = saved(tmp_path / "ckpt.pt", vocab_size=50_304)
    weights = read_pretrained(str(tmp_path / "ckpt.pt"))
    assert (weights.tokenizer, weights.vocab_size) == ("gpt2", 50_257)
    assert torch.equal(weights.tensors["wte.weight"], theirs.transformer.wte.weight[:50_257])


class Bomb:
    """A pickle that runs code when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(how, tmp_path):
    path, mark = tmp_path / "ckpt.pt", tmp_path / "ran"
    content = {"model": {}, "model_args": {}, "config": Bomb(mark)}
    if how == "torch.save":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError) as refused:
        read_header(str(path))
    assert not mark.exists()
    assert "could run code" in str(refused.value)
    assert how == "pickle" or "open" in refused.value.problem
    # It does run where one reads it without care.
    if how == "pickle":
        pickle.loads(path.read_bytes())["config"].close()
        assert mark.exists()


def test_other_files_of_torch_are_refused(tmp_path):
    path = tmp_path / "ckpt.pt"

    def refusal(content):
        torch.save(content, path)
        with pytest.raises(InputError) as refused:
            read_header(str(path))
        return str(refused.value)

    assert "is no checkpoint of nanoGPT: it has no model" in refusal([1])
    assert "it has no model_args" in refusal({"model": {}})
    assert "its model_args have no n_layer, n_head" in refusal({"model": {}, "model_args": {}})
    saved(path)
    content = torch.load(path, weights_only=True)
    content["model"]["transformer.h.0.mlp.gate"] = content["model"].pop("transformer.h.0.mlp.c_fc.weight")
    assert "1 missing: h.0.mlp.c_fc.weight; 1 extra: h.0.mlp.gate" in refusal(content)
    saved(path)
    content = torch.load(path, weights_only=True)
    content["model"]["transformer.ln_f.weight"] = [1.0]
    assert "transformer.ln_f.weight is no tensor in float32" in refusal(content)
    assert "1 is no tensor in float32" in refusal(content | {"model": {1: torch.zeros(2)}})
    arguments = content["model_args"] | {"vocab_size": None}
    assert "its vocab_size is None" in refusal({"model": {}, "model_args": arguments})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"is no file that torch.save writes|cannot be read"):
        read_header(str(path))
