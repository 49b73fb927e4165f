"""The door through which every config comes in: composed by Hydra or saved by a run, then typed and checked.

Imports no torch.
"""

import copy
import functools
import os
import re
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt.config import layouts
from gpt.config.checks import check
from gpt.config.explain import expected_type, explain
from gpt.config.groups import CONF
from gpt.config.nodes import structured
from gpt.config.schema import VARIANTS, Config, ModelConfig
from gpt.config.values import check_names
from gpt.errors import InputError, TrainingError
from gpt.files import CURE, read_yaml, write_text

OPTION_KEYS = {"data": "source"}  # the key that says which variant of a group it is, where that is not its name

# The names by which files in conf/ begin with a schema: defaults: [_muon, _self_].
_store = ConfigStore.instance()
_store.store(name="schema", node=structured(Config))
for group, variants in VARIANTS.items():
    for name, variant in variants.items():
        _store.store(group=group, name=f"_{name}", node=structured(variant))


def _scaled(value: float | None, factor: float) -> float | None:
    """Return a multiple of a value, for Hydra; whole numbers stay whole, and null stays null."""
    if value is None:
        return None
    multiple = float(f"{value * factor:.12g}")
    return int(multiple) if isinstance(value, int) else multiple


# In conf/ and sweeps/: one sequence at least is ${max:1024,${model.seq_len}}, torchrun's ranks are ${ranks:}, and half
# the learning rate is ${scaled:${optimizer.lr},0.5}.
OmegaConf.register_new_resolver("scaled", _scaled, replace=True)
OmegaConf.register_new_resolver("max", lambda *numbers: max(numbers), replace=True)
OmegaConf.register_new_resolver("ranks", lambda: int(os.environ.get("WORLD_SIZE", "1")), replace=True)

# What may differ from the saved config when a run goes on: none of it changes what the run computes, but for its
# length, which only a single run may change. The place of the data may change too; its fingerprint is compared instead.
SAME_RUN = re.compile(
    r"resume|plan_mfu|sweep\..*|cluster\..*|batch\.micro_batch_size|data\.(num_workers|read|processes|shard_tokens|streaming|files(\[.*)?|dir|cache_dir|url)"
    r"|data\.references|trainer\.(log_every|profile|anomaly)|checkpoint\..*|tracker\..*"
)
LENGTH = ("trainer.max_steps", "trainer.max_tokens")


def load(composed: DictConfig) -> Config:
    """Merge what Hydra composed into the schema once more (this catches ``+`` keys), check it, and type it.

    Raises InputError.
    """
    raw = OmegaConf.to_container(composed, resolve=False)
    raw.pop("hydra", None)
    return _typed(raw)


def _typed(raw: dict[str, Any]) -> Config:
    """Return the values of a config, section in section, with the types that its options have. Raises InputError."""
    options = _schema_of(raw)
    schema = _joined(tuple(options[group] for group in VARIANTS))
    # OmegaConf refuses unknown keys and wrong types.
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, raw))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    # Refuse what has the right type and still makes no sense.
    _check_depths(config)
    check(config)
    return config


@functools.cache
def _joined(variants: tuple[type, ...]) -> DictConfig:
    """Return the schema of a config with these options, one of each group. It is never changed: merging copies it."""
    schema = copy.deepcopy(structured(Config))
    for group, variant in zip(VARIANTS, variants, strict=True):
        schema[group] = structured(variant)
    return schema


def model_option(option: str, **changes: Any) -> ModelConfig:
    """Return an option of the model group as its file has it, with some keys changed. No run is composed for it."""
    return OmegaConf.to_object(OmegaConf.merge(structured(ModelConfig), _model_values(option) | changes))


@functools.cache
def _model_values(option: str) -> dict[str, Any]:
    """Return the keys of an option of the model group."""
    values = {}
    for file in ("_common.yaml", f"{option}.yaml"):
        values |= OmegaConf.to_container(OmegaConf.load(CONF / "model" / file))
    del values["defaults"]
    return values


def save(config: Config, path: Path) -> None:
    """Write the config as YAML, whole or not at all; :func:`read` gives it back. Raises TrainingError."""
    text = OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
    try:
        write_text(path, text)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error}\n  make room, and give the command again") from error


def read(path: Path) -> Config:
    """Read a config that this version or an earlier one has saved. Raises InputError, with the path, for others."""
    values = read_values(path)
    try:
        return _typed(values)
    except InputError as error:
        cure = f"{error.cure}; a newer gptlab wrote this file, or it was changed since"
        raise InputError(f"{path}: {error.problem}", cure) from error


def read_saved(path: Path) -> DictConfig:
    """Read a saved config in today's keys, not yet typed and checked. Raises InputError, with the path."""
    raw = read_values(path)
    try:
        return OmegaConf.create(raw)
    except OmegaConfBaseException as error:  # an interpolation that nobody can read
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is damaged, or none of ours: {reason}", CURE) from error


def read_values(path: Path) -> dict[str, Any]:
    """Read the values of a saved config, section in section, in today's keys. Raises InputError, with the path."""
    raw = read_yaml(path, dict)
    if not any(isinstance(raw.get(group), dict) for group in VARIANTS):
        sections = " and no ".join(VARIANTS)
        raise InputError(f"{path} is damaged, or none of ours: it has no {sections}", CURE)

    # The options that it takes tell which keys it is to have.
    option_keys = [_option_key(group) for group in VARIANTS]
    try:
        layouts.rename(raw)
        layouts.check_there(raw, option_keys)
        schema = _schema_of(raw)
        layouts.complete(raw, _names_of(schema))
        return raw
    except InputError as error:
        raise InputError(f"{path}: {error.problem}", error.cure) from error


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a config as a flat dict of dotted keys."""
    flat = {}
    for field in fields(config):
        key = prefix + field.name
        value = getattr(config, field.name)
        if is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def changed_keys(saved: Config, new: Config, any_length: bool = True) -> dict[str, tuple[Any, Any]]:
    """Return the keys that make it another run, with their saved and new values (None: not there).

    With ``any_length`` the length may change, and what was null may be given as what it meant for the saved length.
    """
    old_values = flatten(saved)
    new_values = flatten(new)
    meant = saved.meant_by_null if any_length else {}
    changed = {}
    for key in {**old_values, **new_values}:
        old = old_values.get(key)
        value = new_values.get(key)
        if old == value or SAME_RUN.fullmatch(key):
            continue

        # Another length is the same run, and so is one that spells out what its length meant.
        if any_length and key in LENGTH:
            continue
        if key in meant and meant[key] == value:
            continue
        changed[key] = (old, value)
    return changed


def _option_key(group: str) -> str:
    """Return the key that says which of a group's options a config has."""
    return f"{group}.{OPTION_KEYS.get(group, 'name')}"


def _schema_of(raw: dict[str, Any]) -> dict[str, type]:
    """Return the types of a config's sections and keys, which depend on its options. Raises InputError."""
    schema = _types_in(Config)
    for group, variants in VARIANTS.items():
        key = _option_key(group)
        option = layouts.value_at(raw, key)
        check_names(key, option, list(variants))
        schema[group] = variants[option]
    return schema


def _names_of(schema: dict[str, type]) -> dict[str, Any]:
    """Return the names of all keys, section in section; a key itself has None."""
    names: dict[str, Any] = {}
    for name, kind in schema.items():
        names[name] = None
        if is_dataclass(kind):
            names[name] = _names_of(_types_in(kind))
    return names


def _types_in(section: Any) -> dict[str, Any]:
    """Return the types of the keys of a section."""
    return {field.name: field.type for field in fields(section)}


def _check_depths(config: Config) -> None:
    """Refuse lists in lists of text, which a merge accepts and which could not be saved. Raises InputError."""
    for key, value in flatten(config).items():
        deepest = 2 if key == "batch.ramp.stages" else 1
        if isinstance(value, list) and _depth(value) > deepest:
            raise InputError(
                f"{key}={value}: lists in a list",
                f"{key} takes {expected_type(key)}",
            )


def _depth(value: Any) -> int:
    """Return the number of lists and dicts that are in one another."""
    if not isinstance(value, (list, dict)):
        return 0
    inside = max(map(_depth, value), default=0)
    return 1 + inside
