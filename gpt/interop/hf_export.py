"""A folder that Hugging Face's transformers opens: AutoModelForCausalLM, pipeline("text-generation")."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.config.model import ModelConfig
from gpt.interop import hf, llama
from gpt.interop.card import CARD, model_card
from gpt.interop.hf_tokenizer import write_tokenizer
from gpt.interop.pretrained import GPT2_ONLY, PLAIN_ONLY, Header, Pretrained, check_keys, parameter_shapes
from gpt.tokens.tokenizer import end_of_text, get_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = {ours: theirs for theirs, ours in hf.ACTIVATIONS.items() if theirs != "gelu_pytorch_tanh"}
HELD = {"position": ["learned"], "activation": list(ACTIVATIONS), **GPT2_ONLY, **PLAIN_ONLY}


def check_holds(header: Header) -> None:
    """Check that the format can hold a model. Raises InputError, by key."""
    if _is_llama(header):
        check_keys(header, llama.HELD, llama.NAME)
    else:
        check_keys(header, HELD, "Hugging Face's GPT-2")


def _is_llama(header: Header) -> bool:
    """True for the models that are written as Llama: GPT-2's format has no rotary positions."""
    return header.model.position == "rotary"


def write(pretrained: Pretrained, out: Path, dtype: str) -> None:
    """Write a folder, under another name until it is whole. Raises OSError."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        _write_tensors(pretrained, part / hf.WEIGHTS, dtype)
        _write_json(part / hf.CONFIG, _config(pretrained, dtype))
        # safetensors writes files for their owner alone; all get the mode that follows the umask.
        (part / hf.WEIGHTS).chmod((part / hf.CONFIG).stat().st_mode)
        _write_json(part / "generation_config.json", _special_ids(pretrained))
        if pretrained.knows_tokens:
            write_tokenizer(part, pretrained.tokenizer, pretrained.chars, pretrained.model.seq_len)
        (part / CARD).write_text(model_card(pretrained, out.name), encoding="utf-8")
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(pretrained: Pretrained, dtype: str) -> dict[str, Any]:
    """Return config.json, with what only we read in a section of its own."""
    model = pretrained.model
    return {
        **(llama.config_of(model) if _is_llama(pretrained) else _gpt2_config(model)),
        "vocab_size": pretrained.vocab_size,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_head,
        **_special_ids(pretrained),
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[dtype],
        hf.OURS: {"tokenizer": pretrained.tokenizer, "chars": pretrained.chars},
    }


def _gpt2_config(model: ModelConfig) -> dict[str, Any]:
    """Return what config.json says of the architecture of a GPT-2."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(model, ours) for ours, theirs in hf.SIZES.items()},
        "n_inner": None,
        "activation_function": ACTIVATIONS[model.activation],
        "layer_norm_epsilon": hf.FIXED["layer_norm_epsilon"],
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout),
    }


def _special_ids(header: Header) -> dict[str, int | None]:
    """Return the ids that begin and end a text; None for both where the vocabulary has none."""
    id_ = None
    if header.knows_tokens:
        id_ = end_of_text(get_tokenizer(header.tokenizer, header.chars))
    return {"bos_token_id": id_, "eos_token_id": id_}


def _write_tensors(pretrained: Pretrained, path: Path, dtype: str) -> None:
    """Write the weights by Hugging Face's names."""
    import torch
    from safetensors.torch import save_file

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    if _is_llama(pretrained):
        tensors = llama.by_their_names(pretrained.tensors, pretrained.model)
    else:
        tensors = _gpt2_tensors(pretrained)
    written = {name: tensor.to(kind).contiguous() for name, tensor in tensors.items()}
    save_file(written, path, metadata={"format": "pt"})


def _gpt2_tensors(pretrained: Pretrained) -> "dict[str, Tensor]":
    """Return the weights by GPT-2's names: matrices are (in, out), and there are always biases."""
    import torch

    tensors = {}
    for name, tensor in pretrained.tensors.items():
        theirs = tensor.t() if name.endswith(hf.TRANSPOSED) else tensor
        full_name = name if name == "lm_head.weight" else hf.PREFIX + name
        tensors[full_name] = theirs

    # A model without biases has biases of zero.
    if not pretrained.model.bias:
        for name, shape in parameter_shapes(pretrained.model, pretrained.vocab_size).items():
            if name not in ("wte.weight", "wpe.weight", "lm_head.weight"):
                bias = hf.PREFIX + name.removesuffix("weight") + "bias"
                tensors[bias] = torch.zeros(shape[0])
    return tensors
