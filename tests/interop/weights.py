"""What the tests of weights share: models with weights in which every error shows, as one writes and reads them."""

import torch

from gpt.config.load import model_option
from gpt.interop.load import load_pretrained
from gpt.interop.pretrained import Header, Pretrained
from gpt.model import GPT, init_weights

# GPT-2's sizes with heads of width 4: layers, heads.
SHAPES = {"124m": (12, 12), "355m": (24, 16), "774m": (36, 20), "1558m": (48, 25)}


def model_config(n_layer=2, n_head=4, width=None, **changes):
    small = {"n_layer": n_layer, "n_head": n_head, "n_embd": width or 4 * n_head, "seq_len": 32, "init_std": 0.1}
    return model_option("gpt2_124m", name="small", **small | changes)


def built(config, vocab_size=257, seed=1):
    """A model far from its initialization: no bias is zero, no gain is one."""
    model = GPT(config, vocab_size).eval()
    init_weights(model, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


def pretrained(config, vocab_size=257, tokenizer="bytes", chars=None, dtype=torch.float32):
    """Weights as they are read, without rows of padding."""
    about = {"model": config, "vocab_size": vocab_size, "tokenizer": tokenizer, "chars": chars}
    tensors = {name: p.detach().to(dtype) for name, p in built(config, vocab_size).named_parameters()}
    return Pretrained.of(Header(source="made", format="test", **about), tensors)


def loaded(weights, **changes):
    """The model of some weights, with other keys than they say."""
    config = weights.model
    for key, value in changes.items():
        setattr(config, key, value)
    model = GPT(config, weights.vocab_size).eval()
    load_pretrained(model, weights)
    return model


def ids(vocab_size=257, shape=(2, 32), seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, x, vocab_size=257):
    return model.logits(model(x))[..., :vocab_size]


def assert_same(found, expected):
    """Bit by bit, name by name."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def assert_computes_the_same(weights, back, theirs):
    """The model that was written, what was read back, and the one of transformers have equal logits."""
    x = ids()
    with torch.no_grad():
        expected = theirs(x).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(built(weights.model), x), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(loaded(back), x), expected, atol=1e-4, rtol=0)
