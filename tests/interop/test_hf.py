"""Hugging Face folders, in and out, against transformers itself."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights import SHAPES, assert_computes_the_same, assert_same, ids, loaded, logits, model_config, pretrained

from gpt.config.load import model_option
from gpt.errors import InputError
from gpt.interop import hf, hf_export
from gpt.interop.hf_tokenizer import is_gpt2
from gpt.interop.load import load_pretrained, weights_hash
from gpt.interop.pretrained import architecture_of, parameter_shapes
from gpt.interop.read import read_header, read_pretrained
from gpt.model import GPT
from gpt.tokens.tokenizer import encode, get_tokenizer


@pytest.fixture(scope="module")
def transformers():
    """The package, imported where the first test needs it: it takes a second."""
    package = pytest.importorskip("transformers")
    package.logging.set_verbosity_error()
    return package


@pytest.fixture
def folder(tmp_path):
    """A folder that was written from weights, and the weights."""
    weights = pretrained(model_config())
    hf_export.write(weights, tmp_path / "folder", "fp32")
    return tmp_path / "folder"


def rewrite(folder, **changes):
    """Change keys of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if key not in changes or value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


SWITCHES = [{}, {"bias": False}, {"tie_head": False}, {"activation": "gelu_exact"}, {"activation": "relu"}]


@pytest.mark.parametrize("shape, changes", [*((shape, {}) for shape in SHAPES), *(("124m", c) for c in SWITCHES[1:])])
def test_weights_come_back_bit_by_bit_and_transformers_computes_the_same(shape, changes, transformers, tmp_path):
    weights = pretrained(model_config(*SHAPES[shape], **changes))
    hf_export.write(weights, tmp_path / "folder", "fp32")
    back = read_pretrained(str(tmp_path / "folder"))
    with_biases = architecture_of(weights.model) | {"bias": True}
    assert architecture_of(back.model) == with_biases
    kept = {name: tensor for name, tensor in back.tensors.items() if name in weights.tensors}
    assert_same(kept, weights.tensors)
    assert all(not tensor.any() for name, tensor in back.tensors.items() if name not in weights.tensors)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    assert_computes_the_same(weights, back, theirs)


@pytest.mark.slow
def test_the_whole_124m_comes_back_and_computes_the_same(transformers, tmp_path):
    weights = pretrained(model_option("gpt2_124m"), 50_257, None)
    hf_export.write(weights, tmp_path / "folder", "fp32")
    back = read_pretrained(str(tmp_path / "folder"))
    assert (back.model.name, back.vocab_size) == ("gpt2_124m", 50_257)
    assert_same(back.tensors, weights.tensors)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    x = ids(50_257, (1, 64))
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded(back), x, 50_257), theirs(x).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["as saved", "without prefix, with buffers", "sharded", "float16"])
def test_folders_of_transformers_are_read(form, transformers, tmp_path):
    """Also as OpenAI's weights lie on the hub, without the prefix and with the causal masks."""
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=32, n_embd=16, n_layer=2, n_head=4, initializer_range=0.2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    if form == "float16":
        theirs = theirs.half()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if form == "sharded" else "5GB")
    if form == "without prefix, with buffers":
        tensors = {
            name.removeprefix("transformer."): t for name, t in load_file(tmp_path / "model.safetensors").items()
        }
        tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
        tensors |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert len(list(tmp_path.glob("*.safetensors"))) == (
        1 if form != "sharded" else len(set(hf._weight_files("", tmp_path)))
    )
    weights = read_pretrained(str(tmp_path))
    assert weights.tokenizer == "bytes"  # as many tokens
    assert all(tensor.dtype == torch.float32 for tensor in weights.tensors.values())
    x = ids()
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded(weights), x), theirs.float()(x).logits, atol=1e-4, rtol=0)


def test_the_context_is_cropped_and_the_vocabulary_padded(folder):
    weights = read_pretrained(str(folder))
    whole = loaded(weights)
    small = loaded(read_pretrained(str(folder)), seq_len=8, vocab_multiple=128)
    assert small.wte.weight.shape[0] == 384 and not small.wte.weight[257:].any()
    x = ids(shape=(2, 8))
    torch.testing.assert_close(logits(small, x), logits(whole, x))


def test_bfloat16_stays_bfloat16(tmp_path):
    weights = pretrained(model_config(), dtype=torch.bfloat16)
    hf_export.write(weights, tmp_path / "folder", "bf16")
    assert_same(read_pretrained(str(tmp_path / "folder")).tensors, weights.tensors)


TEXT = "The café's naïve 3,141 €→😀 dogs'll\n\n\t run… <b>  it</b>\r\n" * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bytes", "chars", "gpt2"])
def test_the_tokenizer_gives_the_same_ids(name, gpt2_vocabulary, transformers, tmp_path):
    chars = "".join(sorted(set(TEXT))) if name == "chars" else None
    ours = get_tokenizer(name, chars)
    hf_export.write(pretrained(model_config(), ours.n_vocab, name, chars), tmp_path / "folder", "fp32")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    expected = encode(ours, TEXT).tolist()
    assert theirs(TEXT)["input_ids"] == expected
    assert theirs.decode(expected) == TEXT
    assert theirs.eos_token_id == (None if name == "chars" else ours.n_vocab - 1)
    back = read_header(str(tmp_path / "folder"))
    assert (back.tokenizer, back.chars, back.vocab_size) == (name, chars, ours.n_vocab)
    generate = transformers.pipeline("text-generation", model=str(tmp_path / "folder"))
    assert generate("The ", max_new_tokens=3)[0]["generated_text"].startswith("The ")


@pytest.mark.slow
def test_a_folder_with_gpt2s_tokens_is_known_by_its_vocabulary(gpt2_vocabulary, tmp_path):
    """Its embedding may be padded; with another vocabulary nothing is known."""
    hf_export.write(pretrained(model_config(), 50_304, "gpt2"), tmp_path / "folder", "fp32")
    rewrite(tmp_path / "folder", gptlab=None)
    weights = read_pretrained(str(tmp_path / "folder"))
    assert (weights.tokenizer, weights.vocab_size, len(weights.tensors["wte.weight"])) == ("gpt2", 50_257, 50_257)
    (tmp_path / "folder" / "vocab.json").unlink()
    assert is_gpt2(tmp_path / "folder")
    (tmp_path / "folder" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    unknown = read_header(str(tmp_path / "folder"))
    assert (unknown.tokenizer, unknown.vocab_size) == (None, 50_304)


def test_the_parameters_are_those_of_the_model():
    switches = [*SWITCHES, {"norm": "post"}, {"position": "none"}, {"position": "sinusoidal"}, {"n_layer": 0}]
    for changes in switches:
        config = model_config(**{"vocab_multiple": 1} | changes)
        with torch.device("meta"):
            expected = {name: tuple(p.shape) for name, p in GPT(config, 257).named_parameters()}
        assert parameter_shapes(config, 257) == expected, changes


def test_the_hash_tells_weights_apart_and_not_their_files(folder, tmp_path):
    one = read_pretrained(str(folder))
    assert weights_hash(one) == weights_hash(pretrained(model_config()))
    one.tensors["h.1.ln_2.bias"] = one.tensors["h.1.ln_2.bias"].clone()
    one.tensors["h.1.ln_2.bias"][3] += 1e-6
    assert weights_hash(one) != weights_hash(read_pretrained(str(folder)))


def test_a_model_without_a_tokenizer_is_exported_without_one(tmp_path):
    hf_export.write(pretrained(model_config(), 65, None), tmp_path / "folder", "fp32")
    assert not (tmp_path / "folder" / "tokenizer.json").exists()
    assert "did not say which tokenizer" in (tmp_path / "folder" / "README.md").read_text()
    load_pretrained(GPT(model_config(), 65), read_pretrained(str(tmp_path / "folder")))


# --- wrong input

WRONG = [
    ({"model_type": "mamba"}, "is a model of type mamba", "read are gpt2 and llama"),
    ({"model_type": None}, "is a model of type None", "read are gpt2 and llama"),
    ({"activation_function": "silu"}, "has activation_function=silu", "known are gelu_new"),
    ({"n_inner": 100}, "has n_inner=100", "this model has 64"),
    ({"layer_norm_epsilon": 1e-6}, "has layer_norm_epsilon=1e-06", "layer_norm_epsilon=1e-05"),
    ({"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx=True", "this model has"),
    ({"n_head": None}, "has no number n_head", "fetch it again"),
    ({"n_head": 3}, "16 is not divisible by its 3 heads", "equal part"),
    ({"n_layer": -1}, "its n_layer is -1", "at least 1"),
    ({"n_layer": "2"}, "has no number n_layer", "fetch it again"),
    ({"n_layer": 3}, "12 missing: h.2.ln_1.weight, ", "get it again"),
    ({"n_layer": 1}, "12 extra: h.1.attn.c_attn.bias, ", "get it again"),
    ({"n_positions": 64}, "1 of another shape: wpe.weight (32, 16) in place of (64, 16)", "get it again"),
    ({"vocab_size": 300, "gptlab": {}}, "1 of another shape: wte.weight (257, 16) in place of (300, 16)", "get it"),
    ({"vocab_size": 258}, "its tokenizer bytes does not have its 258 tokens", "get it again"),
    ({"vocab_size": 0, "gptlab": {}}, "its vocab_size is 0", "a token at least"),
    ({"gptlab": {"tokenizer": ["bytes"]}}, "its tokenizer ['bytes'] does not have", "get it again"),
    ({"gptlab": {"tokenizer": "chars", "chars": 5}}, "its tokenizer chars does not have", "get it again"),
    ({"tie_word_embeddings": "no"}, "its tie_head is 'no'", "true or false"),
    ({"activation_function": ["gelu"]}, "has activation_function=['gelu']", "known are gelu_new"),
    ({"n_head": 0}, "its n_head is 0", "at most 16"),
    ({"tie_word_embeddings": False}, "1 missing: lm_head.weight", "get it again"),
]  # fmt: skip


@pytest.mark.parametrize("changes, problem, cure", WRONG, ids=[str(case[0]) for case in WRONG])
def test_folders_that_do_not_fit_are_refused(changes, problem, cure, folder):
    rewrite(folder, **changes)
    with pytest.raises(InputError) as refused:
        read_header(str(folder))
    assert problem in refused.value.problem, refused.value
    assert cure in refused.value.cure, refused.value


def test_a_head_of_its_own_is_not_taken_for_the_embedding(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "lm_head.weight" not in read_pretrained(str(folder)).tensors
    tensors["lm_head.weight"][3, 2] += 0.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"a lm_head\.weight that is not its embedding"):
        read_pretrained(str(folder))


def test_folders_that_are_not_whole_are_refused(folder, tmp_path):
    def refusal(path):
        with pytest.raises(InputError) as refused:
            read_header(str(path))
        return str(refused.value)

    # A tensor renamed: missing and extra, both listed.
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.mlp.gate"] = tensors.pop("transformer.h.0.mlp.c_fc.bias")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "1 missing: h.0.mlp.c_fc.bias; 1 extra: h.0.mlp.gate" in refusal(folder)

    # Files cut short, damaged, and not there.
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    assert "model.safetensors cannot be read" in refusal(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has no model.safetensors" in refusal(folder) and "pickles, which can run code" in refusal(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "fetch it too" in refusal(folder)
    index = {"weight_map": {"wte.weight": "../model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-1.safetensors, which model.safetensors.index.json names" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is damaged: no JSON" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)
    shutil.rmtree(folder)
    assert "nothing is there" in refusal(folder) and "nanoGPT's ckpt.pt" in refusal(folder)
    assert "an empty name is no source of weights" in refusal("")
    (tmp_path / "empty").mkdir()
    assert "holds no weights that can be read" in refusal(tmp_path / "empty")
    save_file({"wte.weight": torch.zeros(2, 2, dtype=torch.int64)}, tmp_path / "some.safetensors")
    assert "holds no weights that can be read" in refusal(tmp_path / "some.safetensors")
