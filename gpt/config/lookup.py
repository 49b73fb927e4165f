"""Lookups of dotted keys in the schema: their fields, what they may hold, and what they count. Imports no torch."""

from dataclasses import Field, fields, is_dataclass
from typing import Any

from gpt.config.keys import ALLOWED, COUNTS, Allowed
from gpt.config.schema import VARIANTS, Config

# Names in nanoGPT (train.py, sample.py) of keys that have others here.
NANOGPT = {
    "batch_size": "batch.micro_batch_size",
    "block_size": "model.seq_len",
    "dataset": "data",
    "eval_interval": "trainer.eval_every",
    "learning_rate": "optimizer.lr",
    "log_interval": "trainer.log_every",
    "max_iters": "trainer.max_steps",
    "max_new_tokens": "sample.tokens",
    "out_dir": "hydra.run.dir",
    "start": "sample.prompt",
}


def fields_of(key: str) -> list[Field[Any]]:
    """Return the fields with a dotted key, one for each schema of an option that has it."""
    kinds: list[Any] = [Config]
    named: list[Field[Any]] = []
    for depth, name in enumerate(key.split(".")):
        # The fields of this name in the sections that the names before it lead to.
        named = []
        for kind in filter(is_dataclass, kinds):
            named += [field for field in fields(kind) if field.name == name]
        # They lead to the sections below: one, or in a group of options one for each.
        is_group = depth == 0 and name in VARIANTS
        kinds = list(VARIANTS[name].values()) if is_group else [field.type for field in named]
    return named


def dotted_keys() -> list[str]:
    """Return all keys of all options, dotted."""
    keys = _keys_below(Config)
    for group, variants in VARIANTS.items():
        for variant in variants.values():
            keys += _keys_below(variant, f"{group}.")
    return list(dict.fromkeys(keys))


def keys_by_word() -> dict[str, list[str]]:
    """Return the dotted keys by their last word, and by what nanoGPT calls them.

    Of keys with one word, those at the top: optimizer.lr, and not those of its groups of parameters.
    """
    by_word: dict[str, list[str]] = {}
    for key in sorted(dotted_keys(), key=lambda key: key.count(".")):
        found = by_word.setdefault(key.rpartition(".")[2], [key])
        if key not in found and key.count(".") == found[0].count("."):
            found.append(key)
    for word, key in NANOGPT.items():
        by_word.setdefault(word, []).append(key)
    return by_word


def _keys_below(section: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of a section and of those below it."""
    keys = []
    for field in fields(section):
        key = prefix + field.name
        keys += _keys_below(field.type, f"{key}.") if is_dataclass(field.type) else [key]
    return keys


def allowed_of(key: str) -> Allowed | None:
    """Return what a dotted key may hold; None where its type says it all."""
    declared = [field.metadata.get(ALLOWED) for field in fields_of(key)]
    return declared[0] if declared else None


def counted_by(key: str) -> str | None:
    """Return what a dotted key counts, tokens or steps; None for other keys."""
    declared = [field.metadata.get(COUNTS) for field in fields_of(key)]
    return declared[0] if declared else None
