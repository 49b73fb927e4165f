"""Weights from anywhere as one plain value, by our names; and what every source of them must have. Needs no torch."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.config.groups import options
from gpt.config.load import model_option
from gpt.config.lookup import allowed_of
from gpt.config.model import ModelConfig
from gpt.errors import InputError
from gpt.tokens.tokenizer import VOCAB_SIZES

if TYPE_CHECKING:
    from torch import Tensor

# The keys of a model that decide what its weights compute; the others say how, and how it is trained.
ARCHITECTURE = """
    n_layer n_head n_kv_head n_embd mlp_width mlp_matched seq_len bias tie_head position rope_theta rope_fraction
    norm norm_type norm_weight qk_norm activation window window_pattern attention_softcap logit_softcap
    value_embeddings value_residual residual_lambdas x0_lambdas parallel_block
""".split()
VOCABULARY_ROWS = ("wte.weight", "lm_head.weight")  # may have rows of padding behind those of the vocabulary

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All that a source says of its weights, but for the tensors."""

    source: str  # as it was given
    format: str  # for a person
    model: ModelConfig
    vocab_size: int  # tokens, without padding
    tokenizer: str | None  # None where the source does not say
    chars: str | None  # the alphabet of a chars tokenizer
    checkpoint: Path | None = None  # of our own runs
    average: str | None = None  # of the weights in that checkpoint, where they are not those of the model

    @property
    def knows_tokens(self) -> bool:
        """True where it is known what the ids mean: those of nanoGPT's characters are not."""
        return self.tokenizer is not None and (self.tokenizer != "chars" or self.chars is not None)

    @property
    def vocabulary(self) -> dict[str, Any]:
        """The vocabulary as token files describe theirs."""
        return {"name": self.tokenizer, "vocab_size": self.vocab_size, "chars": self.chars}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained(Header):
    """Weights and their header.

    ``tensors`` are in float32, or in bfloat16 where the source is, by the names of :class:`gpt.model.GPT`; a shared one
    is there once, and those of the vocabulary have exactly ``vocab_size`` rows.
    """

    tensors: "dict[str, Tensor]"

    @classmethod
    def of(cls, header: Header, tensors: "dict[str, Tensor]") -> "Pretrained":
        """Join a header and its tensors, of which rows of padding are cut."""
        about = {field.name: getattr(header, field.name) for field in fields(header)}
        for name in VOCABULARY_ROWS:
            if name in tensors:
                tensors[name] = tensors[name][: header.vocab_size]
        return cls(**about, tensors=tensors)


def architecture_of(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of a model that decide what its weights compute, the same for models that compute the same."""
    values = {key: getattr(model, key) for key in ARCHITECTURE}
    # Sizes have one name, and null where GPT-2 has them.
    values["n_kv_head"] = None if model.kv_heads == model.n_head else model.kv_heads
    values["mlp_width"] = None if model.inner_width == 4 * model.n_embd else model.inner_width
    values["mlp_matched"] = False
    # Keys without a meaning have their default.
    if model.position != "rotary":
        values |= {"rope_theta": 10_000.0, "rope_fraction": 1.0}
    if model.window is None:
        values["window_pattern"] = "S"
    return values


def model_of(source: str, architecture: dict[str, Any], name: str = "gpt2") -> ModelConfig:
    """Return the option of the model group that has this architecture, or else GPT-2 with these keys, and a name.

    Raises InputError for numbers that no model has.
    """
    # A damaged file may have any number, and what follows from it would take all memory.
    for key in ("n_layer", "n_embd", "seq_len", "n_head"):
        most = allowed_of(f"model.{key}").largest or architecture["n_embd"]
        if type(architecture[key]) is not int or not 1 <= architecture[key] <= most:
            raise InputError(
                f"{source}: its {key} is {architecture[key]!r}",
                f"get it again: a GPT-2 has at least 1, and at most {most:,}",
            )
    for key in ("bias", "tie_head"):
        if type(architecture[key]) is not bool:
            raise InputError(f"{source}: its {key} is {architecture[key]!r}", "get it again: it is true or false")
    if architecture["n_embd"] % architecture["n_head"]:
        raise InputError(
            f"{source}: its width {architecture['n_embd']} is not divisible by its {architecture['n_head']} heads",
            "get it again: every head of a GPT-2 has an equal part of the width",
        )
    model = model_option("gpt2_124m", name=name, **architecture)
    for option_name in options("model"):
        option = model_option(option_name)
        if architecture_of(option) == architecture_of(model):
            return option
    return model


def tokenizer_of_size(vocab_size: int) -> str | None:
    """Return the tokenizer whose vocabulary has so many tokens, for sources that do not name theirs."""
    for name, size in VOCAB_SIZES.items():
        if size == vocab_size:
            return name
    return None


def check_vocabulary(source: str, vocab_size: Any, tokenizer: Any, chars: Any) -> None:
    """Check that a vocabulary has a size, which is that of its tokenizer, if this is known. Raises InputError."""
    if type(vocab_size) is not int or vocab_size < 1:
        raise InputError(f"{source}: its vocab_size is {vocab_size!r}", "get it again: a model has a token at least")
    if tokenizer is None:
        return
    sizes = VOCAB_SIZES | {"chars": len(set(chars)) if isinstance(chars, str) else None}
    if sizes.get(str(tokenizer)) != vocab_size:
        raise InputError(
            f"{source}: its tokenizer {tokenizer} does not have its {vocab_size:,} tokens",
            "get it again, or write it again from the model",
        )


def parameter_shapes(model: ModelConfig, vocab_size: int) -> dict[str, Shape]:
    """Return the shape of every parameter of :class:`gpt.model.GPT` without padding, by name, a shared one once."""
    width = model.n_embd
    shapes: dict[str, Shape] = {"wte.weight": (vocab_size, width)}
    if model.position == "learned":
        shapes["wpe.weight"] = (model.seq_len, width)
    for table in range(model.value_embeddings):
        shapes[f"wve.{table}.weight"] = (vocab_size, model.kv_width)
    for layer in range(model.n_layer):
        for name, shape in _block_shapes(model, layer).items():
            shapes[f"h.{layer}.{name}"] = shape
    if model.norm == "pre":
        shapes |= _norm_shapes(model, "ln_f", width)
    if not model.tie_head:
        shapes["lm_head.weight"] = (vocab_size, width)
    return shapes


def _block_shapes(model: ModelConfig, layer: int) -> dict[str, Shape]:
    """Return the shapes of a block's parameters by their names in it."""
    width = model.n_embd
    shapes: dict[str, Shape] = {}
    norms = {"ln_1": width} if model.parallel_block else {"ln_1": width, "ln_2": width}
    if model.qk_norm:
        norms |= {"attn.q_norm": model.head_dim, "attn.k_norm": model.head_dim}
    for name, size in norms.items():
        shapes |= _norm_shapes(model, name, size)

    # Matrices are (out, in), as torch's Linear has them; each has a bias, or none has.
    matrices = {
        "attn.c_attn": (width + 2 * model.kv_width, width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (model.inner_width, width),
        "mlp.c_proj": (width, model.inner_width),
    }
    if model.is_gated:
        matrices["mlp.c_gate"] = (model.inner_width, width)
    for name, shape in matrices.items():
        shapes[f"{name}.weight"] = shape
        if model.bias:
            shapes[f"{name}.bias"] = shape[:1]

    # Learned factors.
    factors = {
        "residual_lambda": (1,) if model.residual_lambdas else None,
        "x0_lambda": (1,) if model.x0_lambdas else None,
        "attn.value_lambdas": (2,) if model.value_residual and layer > 0 else None,
        "attn.embedding_lambdas": (2,) if model.value_tables[layer] is not None else None,
    }
    return shapes | {name: shape for name, shape in factors.items() if shape is not None}


def _norm_shapes(model: ModelConfig, name: str, size: int) -> dict[str, Shape]:
    """Return the shapes of a norm's parameters."""
    shapes: dict[str, Shape] = {}
    if model.norm_weight:
        shapes[f"{name}.weight"] = (size,)
    if model.norm_weight and model.bias and model.norm_type == "layernorm":
        shapes[f"{name}.bias"] = (size,)
    return shapes


def check_tensors(header: Header, found: dict[str, Shape]) -> None:
    """Check that tensors are those of the model, by name and shape. Raises InputError, which lists the differences."""
    expected = parameter_shapes(header.model, header.vocab_size)
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    other = []
    for name in expected.keys() & found.keys():
        shape = found[name]
        if name in VOCABULARY_ROWS and shape and shape[0] >= header.vocab_size:
            shape = (header.vocab_size, *shape[1:])  # the rest is padding
        if shape != expected[name]:
            other.append(f"{name} {found[name]} in place of {expected[name]}")

    # All that is wrong, in one message.
    problems = []
    for what, names in {"missing": missing, "extra": extra, "of another shape": sorted(other)}.items():
        if names:
            problems.append(f"{len(names)} {what}: {', '.join(names)}")
    if problems:
        raise InputError(
            f"{header.source} holds other tensors than its {header.format} header says: {'; '.join(problems)}",
            "get it again, or write it again from the model",
        )


def check_same_model(model: ModelConfig, header: Header) -> None:
    """Check that a model can start from weights; its context may be shorter than theirs. Raises InputError, by key."""
    ours = architecture_of(model)
    differing = []
    needed = []
    for key, theirs in architecture_of(header.model).items():
        is_crop = key == "seq_len" and (ours[key] <= theirs or header.model.position != "learned")
        if ours[key] != theirs and not is_crop:
            differing.append(f"model.{key}={as_typed(ours[key])} in place of {as_typed(theirs)}")
            needed.append(f"model.{key}={as_typed(theirs)}")
    if differing:
        cure = " ".join(needed)
        raise InputError(
            f"init_from={header.source} are weights of another model: {', '.join(differing)}",
            f"leave the model keys out, or give {cure}; model.seq_len may be less",
        )


def check_knows_tokens(header: Header) -> None:
    """Check that text can go into a model, and come out. Raises InputError."""
    if not header.knows_tokens:
        raise InputError(
            f"{header.source} does not say what its {header.vocab_size:,} tokens are",
            "finetune it on its own text (init_from), and take that run",
        )


# Keys of the model with the values that formats of GPT-2 hold, and that no format of others goes beyond.
GPT2_ONLY: dict[str, list[Any]] = {
    "norm_type": ["layernorm"],
    "n_kv_head": [None],
    "mlp_width": [None],
}
PLAIN_ONLY: dict[str, list[Any]] = {
    "norm": ["pre"],
    "norm_weight": [True],
    "qk_norm": [False],
    "window": [None],
    "attention_softcap": [None],
    "logit_softcap": [None],
    "value_embeddings": [0],
    "value_residual": [False],
    "residual_lambdas": [False],
    "x0_lambdas": [False],
    "parallel_block": [False],
}


def check_keys(header: Header, held: dict[str, Iterable[Any]], format: str) -> None:
    """Check that a format holds a model: ``held`` are the values of its keys that it knows. Raises InputError."""
    architecture = architecture_of(header.model)
    for key, values in held.items():
        value = architecture[key]
        if value not in values:
            allowed = ", ".join(map(as_typed, values))
            raise InputError(
                f"{header.source} has model.{key}={as_typed(value)}, which {format} cannot hold",
                f"it holds model.{key}={allowed}: train with that, or choose another format",
            )


def as_typed(value: Any) -> str:
    """Return a value as one would type it."""
    return value if isinstance(value, str) else json.dumps(value)
