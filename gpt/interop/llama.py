"""Llama as Hugging Face has it (transformers' LlamaForCausalLM): config.json and names of tensors, both ways."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from gpt.config.model import ModelConfig
from gpt.errors import InputError
from gpt.interop.pretrained import PLAIN_ONLY

Part = TypeVar("Part")  # a tensor, or the shape of one

NAME = "Hugging Face's Llama"
KIND = "llama"  # model_type in config.json
EPS = 1e-5  # of our norms
SIZES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "mlp_width": "intermediate_size",
    "seq_len": "max_position_embeddings",
}
ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu"}
HELD: dict[str, list[Any]] = {
    "position": ["rotary"],
    "rope_fraction": [1.0],
    "norm_type": ["rmsnorm"],
    "activation": ["swiglu", "geglu"],
    **PLAIN_ONLY,
}
# Our names and theirs, where a tensor has one; queries, keys and values are three there, and one here.
WHOLE = {"wte": "model.embed_tokens", "ln_f": "model.norm", "lm_head": "lm_head"}
IN_BLOCK = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_gate": "mlp.gate_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
THREE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
THEIRS = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


# --- config.json


def architecture(source: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of the model that config.json describes. Raises InputError where that is not ours."""
    missing = []
    for name in [*SIZES.values(), "vocab_size"]:
        value = config.get(name)
        if type(value) is not int or value < 1:
            missing.append(name)
    if missing:
        problem = f"{source}: its config.json has no positive number {', '.join(missing)}"
        raise InputError(problem, "copy or fetch it again")
    sizes = {key: config[name] for key, name in SIZES.items()}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"{source}: its rope_parameters are {rope!r}", "get it again: they are a table")
    _check_fixed(source, config, rope, sizes["n_embd"] // sizes["n_head"])

    # Null is what GPT-2 has.
    kv_heads = config.get("num_key_value_heads") or sizes["n_head"]
    if type(kv_heads) is not int or kv_heads < 1 or sizes["n_head"] % kv_heads:
        problem = f"{source}: its {kv_heads} heads of keys and values do not divide its {sizes['n_head']} heads"
        raise InputError(problem, "get it again")
    theta = rope.get("rope_theta") or config.get("rope_theta", 10_000.0)
    if type(theta) not in (int, float) or theta <= 1:
        raise InputError(f"{source}: its rope_theta is {theta!r}", "get it again: it is a number of more than 1")
    return sizes | {
        "n_kv_head": None if kv_heads == sizes["n_head"] else kv_heads,
        "mlp_width": None if sizes["mlp_width"] == 4 * sizes["n_embd"] else sizes["mlp_width"],
        "bias": config.get("attention_bias", False),
        "tie_head": config.get("tie_word_embeddings", False),
        "position": "rotary",
        "rope_theta": float(theta),
        "norm": "pre",
        "norm_type": "rmsnorm",
        "activation": ACTIVATIONS[config.get("hidden_act", "silu")],
    }


def _check_fixed(source: str, config: dict[str, Any], rope: dict[str, Any], head_dim: int) -> None:
    """Check what config.json may change in Llama and this model has not. Raises InputError."""
    fixed = {
        "rms_norm_eps": (config.get("rms_norm_eps", 1e-6), EPS),
        "head_dim": (config.get("head_dim") or head_dim, head_dim),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "mlp_bias": (config.get("mlp_bias", False), config.get("attention_bias", False)),
    }
    for name, (value, ours) in fixed.items():
        if value != ours:
            raise InputError(f"{source} has {name}={value}", f"this model has {name}={ours}")
    activation = config.get("hidden_act", "silu")
    if activation not in list(ACTIVATIONS):  # any JSON, which may be no key of a dict
        raise InputError(f"{source} has hidden_act={activation}", f"known are {', '.join(ACTIVATIONS)}")


def config_of(model: ModelConfig) -> dict[str, Any]:
    """Return what config.json says of the architecture."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": KIND,
        **{theirs: getattr(model, ours) for ours, theirs in SIZES.items()},
        "intermediate_size": model.inner_width,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": names[model.activation],
        "rms_norm_eps": EPS,
        # Today's name for the base of the wavelengths, and the one that versions before 5 read.
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "attention_bias": model.bias,
        "mlp_bias": model.bias,
        "attention_dropout": model.dropout,
    }


# --- tensors


def by_our_names(parts: dict[str, Part], join: Callable[[list[Part]], Part]) -> dict[str, Part]:
    """Return tensors, or their shapes, by our names; ``join`` makes one of queries, keys and values."""
    blocks = {theirs: ours for ours, theirs in IN_BLOCK.items()}
    whole = {f"{theirs}.weight": f"{ours}.weight" for ours, theirs in WHOLE.items()}
    found: dict[str, Part] = {}
    threes: dict[str, dict[str, Part]] = {}
    for full_name, part in parts.items():
        match = THEIRS.fullmatch(full_name)
        if match and match[2] in blocks:
            found[f"h.{match[1]}.{blocks[match[2]]}.{match[3]}"] = part
        elif match and match[2] in THREE:
            threes.setdefault(f"h.{match[1]}.attn.c_attn.{match[3]}", {})[match[2]] = part
        elif "rotary_emb" not in full_name:
            found[whole.get(full_name, full_name)] = part

    # Where one of the three is missing, so is the whole.
    for name, three in threes.items():
        if len(three) == len(THREE):
            found[name] = join([three[theirs] for theirs in THREE])
    return found


def by_their_names(tensors: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Return tensors by Llama's names."""
    found = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module in WHOLE:
            found[f"{WHOLE[module]}.{kind}"] = tensor
            continue
        _, layer, part = module.split(".", maxsplit=2)
        prefix = f"model.layers.{layer}"
        if part in IN_BLOCK:
            found[f"{prefix}.{IN_BLOCK[part]}.{kind}"] = tensor
            continue
        parts = tensor.split([model.n_embd, model.kv_width, model.kv_width])
        for theirs, own in zip(THREE, parts, strict=True):
            found[f"{prefix}.{theirs}.{kind}"] = own
    return found
