"""Llama's folders, in and out, against transformers itself."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights import assert_computes_the_same, assert_same, ids, loaded, logits, model_config, pretrained

from gpt.config.load import model_option
from gpt.errors import InputError
from gpt.interop import hf_export, llmc
from gpt.interop.pretrained import architecture_of
from gpt.interop.read import read_header, read_pretrained
from gpt.model import GPT

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

LLAMA = {"position": "rotary", "norm_type": "rmsnorm", "activation": "swiglu", "bias": False, "tie_head": False}
FORMS = [
    {},
    {"n_kv_head": 2},
    {"n_kv_head": 1, "tie_head": True, "rope_theta": 500.0},
    {"bias": True, "activation": "geglu", "mlp_width": 24},
]


def llama(**changes):
    return model_config(width=32, **LLAMA | changes)


@pytest.mark.parametrize("changes", FORMS, ids=str)
def test_weights_come_back_bit_by_bit_and_transformers_computes_the_same(changes, tmp_path):
    weights = pretrained(llama(**changes))
    hf_export.check_holds(weights)
    hf_export.write(weights, tmp_path / "folder", "fp32")
    back = read_pretrained(str(tmp_path / "folder"))
    assert architecture_of(back.model) == architecture_of(weights.model)
    assert_same(back.tensors, weights.tensors)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    assert type(theirs) is transformers.LlamaForCausalLM
    assert_computes_the_same(weights, back, theirs)
    assert "tags: [llama, gptlab]" in (tmp_path / "folder" / "README.md").read_text()


@pytest.fixture
def saved_by_transformers(tmp_path):
    """A folder as transformers writes it."""
    torch.manual_seed(1)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=257, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, initializer_range=0.2,
            rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    return tmp_path, theirs


def test_folders_of_transformers_are_read(saved_by_transformers):
    folder, theirs = saved_by_transformers
    weights = read_pretrained(str(folder))
    model = weights.model
    assert (model.name, model.n_kv_head, model.mlp_width, model.rope_theta) == ("llama", 2, 40, 700.0)
    x = ids()
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded(weights), x), theirs(x).logits, atol=1e-4, rtol=0)


def test_the_tiny_llama_is_an_option_that_is_known_again(tmp_path):
    weights = pretrained(model_option("llama_tiny"))
    hf_export.write(weights, tmp_path / "folder", "fp32")
    assert read_header(str(tmp_path / "folder")).model.name == "llama_tiny"
    with torch.device("meta"):
        count = sum(p.numel() for p in GPT(weights.model, 257).parameters())
    config = transformers.AutoConfig.from_pretrained(tmp_path / "folder")
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    assert count == sum(p.numel() for p in theirs.parameters()) + 2 * (320 - 257) * 128  # rows of padding


# --- wrong input

WRONG = [
    ({"rms_norm_eps": 1e-6}, "has rms_norm_eps=1e-06", "rms_norm_eps=1e-05"),
    ({"hidden_act": "relu"}, "has hidden_act=relu", "known are silu"),
    ({"head_dim": 16}, "has head_dim=16", "head_dim=8"),
    ({"num_key_value_heads": 3}, "its 3 heads of keys and values do not divide its 4 heads", "get it again"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "has rope_type=yarn", "rope_type=default"),
    ({"rope_parameters": {"rope_theta": "wide"}}, "its rope_theta is 'wide'", "get it again"),
    ({"rope_parameters": [1]}, "its rope_parameters are [1]", "get it again"),
    ({"hidden_act": ["silu"]}, "has hidden_act=['silu']", "known are silu"),
    ({"mlp_bias": True}, "has mlp_bias=True", "mlp_bias=False"),
    ({"hidden_size": None}, "has no positive number hidden_size", "fetch it again"),
    ({"num_hidden_layers": 3}, "7 missing: h.2.ln_1.weight", "get it again"),
    ({"intermediate_size": 41}, "of another shape: h.0.mlp.c_fc.weight (40, 32) in place of (41, 32)", "get it again"),
    ({"num_attention_heads": 5}, "has head_dim=8", "head_dim=6"),
    ({"num_attention_heads": 5, "head_dim": None, "num_key_value_heads": 1}, "32 is not divisible by its 5 heads", "get it again"),
    ({"num_attention_heads": 0}, "has no positive number num_attention_heads", "fetch it again"),
]  # fmt: skip


@pytest.mark.parametrize("changes, problem, cure", WRONG, ids=[str(case[0]) for case in WRONG])
def test_folders_that_do_not_fit_are_refused(changes, problem, cure, saved_by_transformers):
    folder, _ = saved_by_transformers
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as refused:
        read_header(str(folder))
    assert problem in refused.value.problem, refused.value
    assert cure in refused.value.cure, refused.value


def test_a_missing_part_of_three_is_told(saved_by_transformers):
    folder, _ = saved_by_transformers
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing: h\.1\.attn\.c_attn\.weight"):
        read_header(str(folder))


NOT_HELD = [
    ({"activation": "relu", "position": "learned"}, "model.norm_type=rmsnorm, which Hugging Face's GPT-2"),
    ({"position": "learned", "norm_type": "layernorm"}, "model.activation=swiglu, which Hugging Face's GPT-2"),
    ({"norm_type": "layernorm"}, "model.norm_type=layernorm, which Hugging Face's Llama"),
    ({"activation": "relu2"}, "model.activation=relu2, which Hugging Face's Llama"),
    ({"rope_fraction": 0.5}, "model.rope_fraction=0.5, which Hugging Face's Llama"),
    ({"qk_norm": True}, "model.qk_norm=true, which Hugging Face's Llama"),
    ({"norm_weight": False}, "model.norm_weight=false, which Hugging Face's Llama"),
    ({"window": 8}, "model.window=8, which Hugging Face's Llama"),
    ({"logit_softcap": 30.0}, "model.logit_softcap=30.0, which Hugging Face's Llama"),
    ({"value_embeddings": 1}, "model.value_embeddings=1, which Hugging Face's Llama"),
    ({"parallel_block": True}, "model.parallel_block=true, which Hugging Face's Llama"),
]  # fmt: skip


@pytest.mark.parametrize("changes, problem", NOT_HELD, ids=[str(case[0]) for case in NOT_HELD])
def test_what_a_format_cannot_hold_is_refused_by_key(changes, problem):
    with pytest.raises(InputError, match=problem):
        hf_export.check_holds(pretrained(llama(**changes)))
    with pytest.raises(InputError, match=r"which llm\.c cannot hold"):
        llmc.check_holds(pretrained(llama(**changes)))
