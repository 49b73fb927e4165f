"""llm.c's .bin, in and out, against a reader written from its format alone."""

import struct

import numpy as np
import pytest
import torch
from weights import SHAPES, assert_same, model_config, pretrained

from gpt.errors import InputError
from gpt.interop import llmc
from gpt.interop.read import read_header, read_pretrained


def independent_reader(path):
    """As llm.c reads it: train_gpt2.c, gpt2_build_from_checkpoint; 16 tensors, one after the other."""
    raw = path.read_bytes()
    magic, version, t, v, layers, heads, c, padded = struct.unpack("<8i", raw[:32])
    assert (magic, version) in ((20240326, 3), (20240326, 5))
    size = 4 if version == 3 else 2
    sizes = [padded * c, t * c, layers * c, layers * c, layers * 3 * c * c, layers * 3 * c, layers * c * c, layers * c]
    sizes += [layers * c, layers * c, layers * 4 * c * c, layers * 4 * c, layers * c * 4 * c, layers * c, c, c]
    at, tensors = 1024, []
    for count in sizes:
        part = raw[at : at + count * size]
        bits = np.frombuffer(part, "<u4") if version == 3 else np.frombuffer(part, "<u2").astype("<u4") << 16
        tensors.append(bits.view("<f4"))
        at += count * size
    assert at == len(raw)
    return {"T": t, "V": v, "L": layers, "H": heads, "C": c, "Vp": padded}, tensors


ORDER = "wte wpe ln_1.weight ln_1.bias attn.c_attn.weight attn.c_attn.bias attn.c_proj.weight attn.c_proj.bias \
ln_2.weight ln_2.bias mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias ln_f.weight ln_f.bias".split()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_come_back_bit_by_bit_and_an_independent_reader_finds_them(shape, dtype, tmp_path):
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    weights = pretrained(model_config(*SHAPES[shape]), dtype=kind)
    path = tmp_path / "model.bin"
    llmc.write(weights, path, dtype)
    assert_same(read_pretrained(str(path)).tensors, weights.tensors)
    n_layer, n_head = SHAPES[shape]
    sizes, tensors = independent_reader(path)
    assert sizes == {"T": 32, "V": 257, "L": n_layer, "H": n_head, "C": 4 * n_head, "Vp": 384}
    for name, found in zip(ORDER, tensors, strict=True):
        if name in ("wte", "wpe"):
            expected = weights.tensors[f"{name}.weight"].float().flatten()
        elif name.startswith("ln_f"):
            expected = weights.tensors[name].float()
        else:
            expected = torch.cat([weights.tensors[f"h.{i}.{name}"].float().flatten() for i in range(n_layer)])
        expected = expected.numpy()
        if name == "wte":
            assert not found[len(expected) :].any()
            found = found[: len(expected)]
        assert np.array_equal(found, expected), name


def test_a_model_without_biases_has_biases_of_zero(tmp_path):
    weights = pretrained(model_config(bias=False))
    llmc.write(weights, tmp_path / "model.bin", "fp32")
    back = read_pretrained(str(tmp_path / "model.bin"))
    assert_same({name: back.tensors[name] for name in weights.tensors}, weights.tensors)
    assert not any(tensor.any() for name, tensor in back.tensors.items() if name not in weights.tensors)


def test_what_is_written_to_a_tensor_stays_in_memory(tmp_path):
    llmc.write(pretrained(model_config()), tmp_path / "model.bin", "fp32")
    before = (tmp_path / "model.bin").read_bytes()
    read_pretrained(str(tmp_path / "model.bin")).tensors["wte.weight"].zero_()
    assert (tmp_path / "model.bin").read_bytes() == before


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"norm": "post"}, "model.norm=post, which llm.c cannot hold"),
        ({"position": "none"}, "model.position=none, which llm.c cannot hold"),
        ({"tie_head": False}, "model.tie_head=false, which llm.c cannot hold"),
        ({"activation": "relu"}, "model.activation=relu, which llm.c cannot hold"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_key(changes, problem):
    with pytest.raises(InputError) as refused:
        llmc.check_holds(pretrained(model_config(**changes)))
    assert problem in refused.value.problem
    assert "it holds model." in refused.value.cure
    llmc.check_holds(pretrained(model_config()))


WRONG = [
    (slice(4, 8), struct.pack("<i", 1), "an llm.c file of version 1", "read are 3 (fp32) and 5 (bf16)"),
    (slice(16, 20), struct.pack("<i", 3), "and its header says", "copy or write it again"),
    (slice(12, 16), struct.pack("<i", 999), "has 999 tokens, padded to 384", "copy or write it again"),
    (slice(20, 24), struct.pack("<i", 0), "its n_head is 0", "at least 1"),
    (slice(16, 20), struct.pack("<i", 1 << 30), "its n_layer is 1073741824", "at most 1,000"),
    (slice(-8, None), b"", "and its header says", "copy or write it again"),
    (slice(500, None), b"", "cut short", "copy or write it again"),
]  # fmt: skip


@pytest.mark.parametrize("where, what, problem, cure", WRONG)
def test_damaged_files_are_refused(where, what, problem, cure, tmp_path):
    path = tmp_path / "model.bin"
    llmc.write(pretrained(model_config()), path, "fp32")
    raw = bytearray(path.read_bytes())
    raw[where] = what
    path.write_bytes(raw)
    with pytest.raises(InputError) as refused:
        read_header(str(path))
    assert problem in refused.value.problem and cure in refused.value.cure, refused.value
