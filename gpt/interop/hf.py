"""Folders of Hugging Face's GPT-2 and Llama, read: config.json and safetensors, in one file or several."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.errors import InputError
from gpt.files import parse_object
from gpt.interop import llama
from gpt.interop.hf_tokenizer import FILES as TOKENIZER_FILES
from gpt.interop.hf_tokenizer import is_gpt2
from gpt.interop.pretrained import Header, Shape, check_tensors, check_vocabulary, model_of, tokenizer_of_size
from gpt.interop.tensorfiles import read_files, read_shapes
from gpt.tokens.tokenizer import VOCAB_SIZES

if TYPE_CHECKING:
    from torch import Tensor

NAME = "Hugging Face"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
OURS = "gptlab"  # in config.json: what GPT-2's format has no place for
PREFIX = "transformer."
HEAD = "lm_head.weight"
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu_exact",
    "relu": "relu",
    "relu2": "relu2",
}
# Keys of config.json that change what GPT-2 computes, each with its default, the one value that is ours.
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
}
SIZES = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "seq_len": "n_positions"}
# The causal mask, which older versions saved.
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
# Conv1D's weights, which are (in, out).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def matches(path: Path) -> bool:
    """Return whether a directory is a folder of Hugging Face."""
    return path.is_dir() and any((path / name).exists() for name in (CONFIG, WEIGHTS, INDEX))


def read_header(source: str, path: Path) -> Header:
    """Read config.json, and check the tensors by name and shape. Raises InputError."""
    config = _read_json(source, path / CONFIG)
    is_llama = config.get("model_type") == llama.KIND
    architecture = llama.architecture(source, config) if is_llama else _architecture(source, config)
    vocab_size, tokenizer, chars = _vocabulary(source, path, config)
    check_vocabulary(source, vocab_size, tokenizer, chars)
    header = Header(
        source=source,
        format=NAME,
        model=model_of(source, architecture, name=llama.KIND if is_llama else "gpt2"),
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        chars=chars,
    )

    # The tensors by our names, with the shapes that they will have.
    found = read_shapes(source, _weight_files(source, path))
    shapes = llama.by_our_names(found, _stacked) if is_llama else _shapes_by_our_names(found)
    if header.model.tie_head:
        shapes.pop(HEAD, None)
    check_tensors(header, shapes)
    return header


def _shapes_by_our_names(found: dict[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of GPT-2's tensors as this model has them."""
    shapes = {}
    for full_name, shape in found.items():
        name = _our_name(full_name)
        if name is not None:
            shapes[name] = shape[::-1] if name.endswith(TRANSPOSED) else shape
    return shapes


def _stacked(shapes: list[Shape]) -> Shape:
    """Return the shape of matrices or vectors one above the other."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def read_tensors(path: Path, header: Header) -> "dict[str, Tensor]":
    """Read the tensors of a folder. Raises InputError."""
    import torch

    files = _weight_files(header.source, path)
    if header.model.position == "rotary":
        tensors = llama.by_our_names(read_files(header.source, files), torch.cat)
    else:
        tensors = _gpt2_tensors(header.source, files)

    # A tied head may be there once more. From a head of its own, transformers makes a model that is not tied.
    head = tensors.pop(HEAD, None) if header.model.tie_head else None
    if head is not None and not head.equal(tensors["wte.weight"]):
        raise InputError(
            f"{header.source} has tie_word_embeddings=True, and a {HEAD} that is not its embedding",
            f"if the head has weights of its own, write tie_word_embeddings: false into its {CONFIG}",
        )
    return tensors


def _gpt2_tensors(source: str, files: list[Path]) -> "dict[str, Tensor]":
    """Read the tensors of a GPT-2 by our names, as this model has them."""
    wanted = {full_name for full_name in read_shapes(source, files) if _our_name(full_name) is not None}
    tensors = {}
    for full_name, tensor in read_files(source, files, wanted).items():
        name = _our_name(full_name)
        tensors[name] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    return tensors


def _our_name(full_name: str) -> str | None:
    """Return our name of a tensor; None for what is no parameter, but a buffer."""
    name = full_name.removeprefix(PREFIX)
    return None if BUFFER.fullmatch(name) else name


# --- config.json


def _read_json(source: str, path: Path) -> dict[str, Any]:
    """Read a JSON file of a folder. Raises InputError."""
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{source} has no {path.name}", "a folder of a model has it: fetch it too") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: {path.name} is damaged: {error}", "copy or fetch it again") from error


def _architecture(source: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of the model that config.json describes. Raises InputError where that is not ours."""
    kind = config.get("model_type")
    if kind != "gpt2":
        raise InputError(
            f"{source} is a model of type {kind}, by its {CONFIG}",
            "read are gpt2 and llama: models of other architectures do not fit into this one",
        )
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise InputError(f"{source} has {key}={config[key]}", f"this model has {key}={value}")
    missing = [name for name in [*SIZES.values(), "vocab_size"] if type(config.get(name)) is not int]
    if missing:
        raise InputError(f"{source}: its {CONFIG} has no number {', '.join(missing)}", "copy or fetch it again")
    inner = config.get("n_inner")
    if inner not in (None, 4 * config["n_embd"]):
        raise InputError(
            f"{source} has n_inner={inner}", f"this model has {4 * config['n_embd']}, four times the width"
        )
    activation = config.get("activation_function", "gelu_new")
    if activation not in list(ACTIVATIONS):  # any JSON, which may be no key of a dict
        raise InputError(f"{source} has activation_function={activation}", f"known are {', '.join(ACTIVATIONS)}")

    # A model of ours without biases was written with biases of zero.
    sizes = {key: config[name] for key, name in SIZES.items()}
    return sizes | {
        "bias": True,
        "tie_head": config.get("tie_word_embeddings", True),
        "position": "learned",
        "norm": "pre",
        "activation": ACTIVATIONS[activation],
    }


def _vocabulary(source: str, path: Path, config: dict[str, Any]) -> tuple[int, str | None, str | None]:
    """Return the size of the vocabulary, the name of its tokenizer where that is one of ours, and its alphabet."""
    vocab_size = config["vocab_size"]
    ours = config.get(OURS)
    if isinstance(ours, dict):
        return vocab_size, ours.get("tokenizer"), ours.get("chars")
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        return vocab_size, tokenizer_of_size(vocab_size), None

    # Any other folder has GPT-2's vocabulary, whose embedding may be padded, or one that is not ours.
    if vocab_size >= VOCAB_SIZES["gpt2"] and is_gpt2(path):
        return VOCAB_SIZES["gpt2"], "gpt2", None
    return vocab_size, None, None


def _weight_files(source: str, path: Path) -> list[Path]:
    """Return the safetensors files of a folder. Raises InputError where there are none."""
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if not (path / INDEX).exists():
        cure = "fetch it too"
        if list(path.glob("*.bin")):
            cure = (
                "its .bin files are pickles, which can run code: write them again as safetensors, with transformers' "
                "from_pretrained(…) and save_pretrained(…)"
            )
        raise InputError(f"{source} has no {WEIGHTS}", cure)

    # The index names the file of every tensor; a name leads nowhere else.
    names = _read_json(source, path / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{source}: {INDEX} has no weight_map", "copy or fetch it again")
    files = [path / Path(name).name for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise InputError(f"{source} lacks {', '.join(missing)}, which {INDEX} names", "fetch the missing files too")
    return files
