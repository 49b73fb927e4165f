"""Weights from anywhere as one plain value, by our names; and what every source of them must have. Needs no torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.config.groups import options
from gpt.config.load import model_option
from gpt.config.lookup import allowed_of
from gpt.config.schema import ModelConfig
from gpt.errors import InputError
from gpt.tokens.tokenizer import VOCAB_SIZES

if TYPE_CHECKING:
    from torch import Tensor

# The keys of a model that its weights decide; the others say how it is computed and trained.
ARCHITECTURE = ("n_layer", "n_head", "n_embd", "seq_len", "bias", "tie_head", "position", "norm", "activation")
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
    """Return the keys of a model that its weights decide."""
    return {key: getattr(model, key) for key in ARCHITECTURE}


def model_of(source: str, architecture: dict[str, Any]) -> ModelConfig:
    """Return the option of the model group that has this architecture, or else GPT-2 with these keys.

    Raises InputError for numbers that no model has.
    """
    # A damaged file may have any number, and what follows from it would take all memory.
    for key in ("n_layer", "n_head", "n_embd", "seq_len"):
        most = allowed_of(f"model.{key}").largest or math.inf
        if type(architecture[key]) is not int or not 1 <= architecture[key] <= most:
            raise InputError(
                f"{source}: its {key} is {architecture[key]!r}",
                f"get it again: a GPT-2 has at least 1, and at most {most:,}",
            )
    if architecture["n_embd"] % architecture["n_head"]:
        raise InputError(
            f"{source}: its width {architecture['n_embd']} is not divisible by its {architecture['n_head']} heads",
            "get it again: every head of a GPT-2 has an equal part of the width",
        )
    for name in options("model"):
        option = model_option(name)
        if architecture_of(option) == architecture:
            return option
    return model_option("gpt2_124m", name="gpt2", **architecture)


def tokenizer_of_size(vocab_size: int) -> str | None:
    """Return the tokenizer whose vocabulary has so many tokens, for sources that do not name theirs."""
    for name, size in VOCAB_SIZES.items():
        if size == vocab_size:
            return name
    return None


def parameter_shapes(model: ModelConfig, vocab_size: int) -> dict[str, Shape]:
    """Return the shape of every parameter of :class:`gpt.model.GPT` without padding, by name, a shared one once."""
    width = model.n_embd
    shapes: dict[str, Shape] = {"wte.weight": (vocab_size, width)}
    if model.position == "learned":
        shapes["wpe.weight"] = (model.seq_len, width)

    # Matrices are (out, in), as torch's Linear has them.
    matrices = {
        "attn.c_attn": (3 * width, width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (4 * width, width),
        "mlp.c_proj": (width, 4 * width),
    }
    modules: dict[str, Shape] = {}
    for layer in range(model.n_layer):
        modules[f"h.{layer}.ln_1"] = (width,)
        modules[f"h.{layer}.ln_2"] = (width,)
        for name, shape in matrices.items():
            modules[f"h.{layer}.{name}"] = shape
    if model.norm == "pre":
        modules["ln_f"] = (width,)

    # Each of these modules has a bias, or none has.
    for name, shape in modules.items():
        shapes[f"{name}.weight"] = shape
        if model.bias:
            shapes[f"{name}.bias"] = shape[:1]
    if not model.tie_head:
        shapes["lm_head.weight"] = (vocab_size, width)
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
    theirs = architecture_of(header.model)
    differing = []
    for key, value in theirs.items():
        ours = getattr(model, key)
        is_crop = key == "seq_len" and (ours <= value or header.model.position != "learned")
        if ours != value and not is_crop:
            differing.append(f"model.{key}={ours} in place of {value}".lower())
    if differing:
        cure = " ".join(f"model.{key}={value}" for key, value in theirs.items()).lower()
        raise InputError(
            f"init_from={header.source} are weights of another model: {', '.join(differing)}",
            f"leave the model keys out, or give {cure}; model.seq_len may be less",
        )


def check_same_tokenizer(header: Header, vocabulary: dict[str, Any]) -> None:
    """Check that data has the tokenizer of weights, as far as these say which it is. Raises InputError."""
    if header.knows_tokens:
        expected = {"name": header.tokenizer, "vocab_size": header.vocab_size, "chars": header.chars}
        name = f"tokenizer {header.tokenizer}"
    else:
        expected = vocabulary | {"vocab_size": header.vocab_size}
        name = "a tokenizer that they do not say"
    if vocabulary == expected:
        return
    here = f"tokenizer {vocabulary['name']} with {vocabulary['vocab_size']:,} tokens"
    there = f"{name} with {header.vocab_size:,} tokens"
    alphabet = " and another alphabet" if here == there else ""
    raise InputError(
        f"the data has {here}{alphabet}, and the weights of init_from={header.source} have {there}",
        f"give text, which is prepared as the weights need it: data.tokenizer={header.tokenizer or vocabulary['name']}",
    )


def check_keys(header: Header, held: dict[str, Iterable[Any]], format: str) -> None:
    """Check that a format holds a model: ``held`` are the values of its keys that it knows. Raises InputError."""
    for key, values in held.items():
        value = getattr(header.model, key)
        if value not in values:
            allowed = ", ".join(str(allowed).lower() for allowed in values)
            raise InputError(
                f"{header.source} has model.{key}={str(value).lower()}, which {format} cannot hold",
                f"it holds model.{key}={allowed}: train with that, or choose another format",
            )
