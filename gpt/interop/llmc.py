"""llm.c's .bin: a header of 256 numbers, then all parameters in one order (llm.c, train_gpt2.py and train_gpt2.cu).

A tensor of the blocks stands there once for each layer, one after the other. Matrices are (out, in), as ours.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt.errors import InputError
from gpt.interop.pretrained import (
    GPT2_ONLY,
    PLAIN_ONLY,
    Header,
    Pretrained,
    check_keys,
    model_of,
    parameter_shapes,
    tokenizer_of_size,
)

if TYPE_CHECKING:
    from torch import Tensor

NAME = "llm.c"
HEADER = 256  # int32 numbers, little-endian
MAGIC = 20240326
DTYPES = {3: "<f4", 5: "<u2"}  # by version; numpy has no bfloat16, so its bits are read
VERSIONS = {"fp32": 3, "bf16": 5}
PADDED_TO = 128  # rows of the vocabulary, of which those behind it are zero
BLOCK = [
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
]
HELD = {"position": ["learned"], "tie_head": [True], "activation": ["gelu_tanh"], **GPT2_ONLY, **PLAIN_ONLY}


def matches(path: Path) -> bool:
    """Return whether a file is llm.c's by its first number."""
    return path.is_file() and _numbers(path)[:1].tolist() == [MAGIC]


def _numbers(path: Path) -> np.ndarray:
    return np.fromfile(path, "<i4", HEADER)


def _names(n_layer: int) -> Iterator[str]:
    """Yield the names of all parameters in the order of the file."""
    yield "wte.weight"
    yield "wpe.weight"
    for part in BLOCK:
        for layer in range(n_layer):
            yield f"h.{layer}.{part}"
    yield "ln_f.weight"
    yield "ln_f.bias"


# --- reading


def read_header(source: str, path: Path) -> Header:
    """Read and check the header, and the size of the file. Raises InputError."""
    numbers = _numbers(path)
    if len(numbers) < HEADER:
        raise InputError(f"{source} is cut short: it ends in its header", "copy or write it again")
    version, seq_len, vocab_size, n_layer, n_head, n_embd, padded = numbers[1:8].tolist()
    if version not in DTYPES:
        raise InputError(
            f"{source} is an llm.c file of version {version}",
            "read are 3 (fp32) and 5 (bf16), as llm.c writes today: write it again with its train_gpt2.py",
        )
    architecture = {
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "seq_len": seq_len,
        "bias": True,
        "tie_head": True,
        "position": "learned",
        "norm": "pre",
        "activation": "gelu_tanh",
    }
    header = Header(
        source=source,
        format=NAME,
        model=model_of(source, architecture),
        vocab_size=vocab_size,
        tokenizer=tokenizer_of_size(vocab_size),
        chars=None,
    )

    # Its length follows from the header.
    if not 0 < vocab_size <= padded:
        raise InputError(f"{source} has {vocab_size} tokens, padded to {padded}", "copy or write it again")
    counts = [int(np.prod(shape)) for shape in parameter_shapes(header.model, padded).values()]
    expected = 4 * HEADER + sum(counts) * np.dtype(DTYPES[version]).itemsize
    size = os.path.getsize(path)
    if size != expected:
        raise InputError(
            f"{source} has {size:,} bytes, and its header says {expected:,}",
            "copy or write it again",
        )
    return header


def read_tensors(path: Path, header: Header) -> "dict[str, Tensor]":
    """Map the tensors of a file into memory: they are read when they are used."""
    import torch

    version = int(_numbers(path)[1])
    padded = int(_numbers(path)[7])
    shapes = parameter_shapes(header.model, padded)
    # A private map: what is written to a tensor never reaches the file.
    flat = torch.from_numpy(np.memmap(path, DTYPES[version], mode="c", offset=4 * HEADER))
    if version == VERSIONS["bf16"]:
        flat = flat.view(torch.bfloat16)
    tensors = {}
    begin = 0
    for name in _names(header.model.n_layer):
        shape = shapes[name]
        end = begin + int(np.prod(shape))
        tensors[name] = flat[begin:end].view(shape)
        begin = end
    return tensors


# --- writing


def check_holds(header: Header) -> None:
    """Check that the format can hold a model. Raises InputError, by key."""
    check_keys(header, HELD, NAME)


def write(pretrained: Pretrained, out: Path, dtype: str) -> None:
    """Write a file, under another name until it is whole. Raises OSError."""
    import torch

    model = pretrained.model
    padded = -(-pretrained.vocab_size // PADDED_TO) * PADDED_TO
    numbers = np.zeros(HEADER, "<i4")
    numbers[:8] = [
        MAGIC,
        VERSIONS[dtype],
        model.seq_len,
        pretrained.vocab_size,
        model.n_layer,
        model.n_head,
        model.n_embd,
        padded,
    ]
    shapes = parameter_shapes(model, padded)
    part = out.with_name(f".{out.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(numbers.tobytes())
            for name in _names(model.n_layer):
                # A model without biases has biases of zero, and rows of padding are zero.
                shape = shapes.get(name) or (shapes[name.replace("bias", "weight")][0],)
                written = torch.zeros(shape, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
                if name in pretrained.tensors:
                    tensor = pretrained.tensors[name]
                    written[: len(tensor)] = tensor
                file.write(written.view(torch.uint8).numpy().data)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
