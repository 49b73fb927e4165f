"""nanoGPT's ckpt.pt (nanoGPT, train.py and model.py), read without running what a pickle may hold."""

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.errors import InputError
from gpt.interop.pretrained import Header, check_tensors, check_vocabulary, model_of, tokenizer_of_size
from gpt.tokens.tokenizer import VOCAB_SIZES

if TYPE_CHECKING:
    from torch import Tensor

NAME = "nanoGPT"
PADDED_GPT2 = 50_304  # nanoGPT's default vocabulary for GPT-2's tokens: 50,257 of them, the rest padding
ARGUMENTS = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "seq_len": "block_size", "bias": "bias"}
COMPILED = "_orig_mod."  # what torch.compile puts before a name
BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, in versions and on machines without flash attention


def matches(path: Path) -> bool:
    """Return whether a file is one that torch.save or pickle wrote."""
    return path.is_file() and (zipfile.is_zipfile(path) or path.suffix in (".pt", ".pth", ".pkl"))


def read_header(source: str, path: Path) -> Header:
    """Read the header, and check the tensors by name and shape. Raises InputError."""
    checkpoint = _load(source, path)
    arguments = checkpoint["model_args"]
    missing = [name for name in [*ARGUMENTS.values(), "vocab_size"] if name not in arguments]
    if missing:
        raise InputError(
            f"{source}: its model_args have no {', '.join(missing)}",
            "a ckpt.pt of nanoGPT has them; older ones are saved again with resume by the nanoGPT of today",
        )

    # nanoGPT's model is GPT-2 with another GELU, nn.GELU().
    architecture = {key: arguments[name] for key, name in ARGUMENTS.items()}
    architecture |= {"tie_head": True, "position": "learned", "norm": "pre", "activation": "gelu_exact"}
    vocab_size = arguments["vocab_size"]
    check_vocabulary(source, vocab_size, None, None)
    if vocab_size == PADDED_GPT2:
        vocab_size = VOCAB_SIZES["gpt2"]
    header = Header(
        source=source,
        format=NAME,
        model=model_of(source, architecture),
        vocab_size=vocab_size,
        tokenizer=tokenizer_of_size(vocab_size),
        chars=None,
    )
    check_tensors(header, {name: tuple(tensor.shape) for name, tensor in _by_our_names(checkpoint).items()})
    return header


def read_tensors(path: Path, header: Header) -> "dict[str, Tensor]":
    """Map the tensors of a checkpoint into memory. Raises InputError."""
    return _by_our_names(_load(header.source, path))


def _load(source: str, path: Path) -> dict[str, Any]:
    """Load a checkpoint, which may hold tensors and plain values, and no code. Raises InputError."""
    import torch

    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{source} is no file that torch.save writes, and anything else in a pickle could run code",
            "a ckpt.pt of nanoGPT is such a file: copy it again, or save it again with torch.save",
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{source} holds more than tensors and plain values, which could run code, and is not read: "
            f"{_reason(error)}",
            "save it again without that: torch.save({'model': …, 'model_args': …}, 'ckpt.pt')",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"{source} cannot be read: {_reason(error)}", "copy it again") from error

    # Of all that nanoGPT saves, these two are read.
    for key in ("model", "model_args"):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
            raise InputError(f"{source} is no checkpoint of nanoGPT: it has no {key}", "give the ckpt.pt of a run")
    for name, tensor in checkpoint["model"].items():
        is_tensor = isinstance(name, str) and isinstance(tensor, torch.Tensor)
        if not is_tensor or tensor.dtype not in (torch.float32, torch.bfloat16):
            raise InputError(
                f"{source}: {name} is no tensor in float32 or bfloat16", "nanoGPT has such tensors alone: copy it again"
            )
    return checkpoint


def _reason(error: Exception) -> str:
    """Return the line of torch's message that names what it refuses, or else its first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines)[0]


def _by_our_names(checkpoint: dict[str, Any]) -> "dict[str, Tensor]":
    """Return the tensors of a checkpoint by our names, without buffers and the head, which is the embedding again."""
    tensors = {}
    for full_name, tensor in checkpoint["model"].items():
        name = full_name.removeprefix(COMPILED).removeprefix("transformer.")
        if name != "lm_head.weight" and not name.endswith(BUFFERS):
            tensors[name] = tensor
    return tensors
