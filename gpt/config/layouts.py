"""Changes of the config's keys since the first version, so that every earlier run can be read, resumed and compared.

The recipe is in docs/config.md, "Adding a key". Imports nothing above it.
"""

import json
import re
from typing import Any

import yaml

from gpt.errors import InputError

QUOTES = "'\""
RECIPE = 'docs/config.md, "Adding a key"'

# Keys that are newer than the first version, or whose default in conf/ has changed, with the value that means what runs
# did before: "model.norm_type": "layernorm".
ADDED: dict[str, Any] = {}
# In the order in which they were renamed: keys and sections ("trainer.grad_clip": "trainer.clip_norm"), values and
# options of groups ("optimizer=adam": "optimizer=adamw").
RENAMED: dict[str, str] = {}
# Keys that are gone, with the one value whose meaning is left: "model.gated": False.
REMOVED: dict[str, Any] = {}


def value_at(raw: dict[str, Any], key: str) -> Any:
    """The value of a dotted key in a saved config: where it has none, that of the runs before the key was there."""
    parent, name = parent_of(raw, key)
    return parent[name] if has(raw, key) else ADDED.get(key)


def has(raw: dict[str, Any], key: str) -> bool:
    """Whether there is a dotted key."""
    parent, name = parent_of(raw, key)
    return parent is not None and name in parent


def parent_of(raw: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The section that a dotted key stands in, None where there is none, and its name there."""
    *parents, name = key.split(".")
    section: Any = raw
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else None), name


def rename(raw: dict[str, Any]) -> None:
    """Give a saved config today's names, and take out what is gone. Raises InputError for a meaning that is gone."""
    for old, new in RENAMED.items():
        if "=" in old:
            rename_value(raw, old, new)
            continue
        if has(raw, old):
            parent, name = parent_of(raw, old)
            put(raw, new, parent.pop(name))
    for key, left in REMOVED.items():
        if not has(raw, key):
            continue
        parent, name = parent_of(raw, key)
        value = parent.pop(name)
        if value != left:
            raise InputError(
                f"{key}={value} is no longer there: what is left is what {key}={left} meant",
                "take the version of gptlab that wrote it",
            )


def rename_value(raw: dict[str, Any], old: str, new: str) -> None:
    """Rename the value of a key, or the option of a group, which the group's ``name`` says."""
    (key, _, before), (_, _, after) = old.partition("="), new.partition("=")
    for candidate in (key, f"{key}.name"):
        if has(raw, candidate) and value_at(raw, candidate) == yaml.safe_load(before):
            put(raw, candidate, yaml.safe_load(after))


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the sections that it stands in."""
    *parents, name = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
    raw[name] = value


def complete(raw: dict[str, Any], keys: dict[str, Any]) -> None:
    """Add the keys that are newer than a saved config, and see that it then has ``keys``, no others, and all of them.

    Raises InputError.
    """
    for key, value in ADDED.items():
        if has(keys, key) and not has(raw, key):  # not those of other options
            put(raw, key, value)
    check_keys(raw, keys)


def check_keys(given: Any, keys: dict[str, Any], prefix: str = "") -> None:
    """A saved config has the keys of the schema, section by section. Raises InputError."""
    if not isinstance(given, dict):
        raise InputError(f"{prefix.rstrip('.')}={given} is no section of keys", "restore it from a copy")
    if unknown := [key for key in given if key not in keys]:
        raise InputError(
            f"unknown key {prefix}{unknown[0]}: a newer gptlab wrote it, or somebody by hand",
            "take the version that wrote it; a key that was renamed or removed since is told to gpt/config/layouts.py "
            f"({RECIPE})",
        )
    check_there(given, list(keys), prefix)
    for key, inside in keys.items():
        if isinstance(inside, dict):
            check_keys(given[key], inside, f"{prefix}{key}.")


def check_there(given: dict[str, Any], keys: list[str], prefix: str = "") -> None:
    """A saved config has these keys. Raises InputError."""
    if missing := [key for key in keys if not has(given, key) and prefix + key not in ADDED]:
        raise InputError(
            f"it has no {prefix}{missing[0]}: it is cut off, or older than that key",
            f"restore it from a copy; what runs before a new key did is told to gpt/config/layouts.py ({RECIPE})",
        )


def rename_override(override: str) -> str | None:
    """An override that an earlier version saved, in today's names; None for a key that is gone."""
    plus, key, equals, value = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", override, re.DOTALL).groups()
    for old, new in RENAMED.items():
        if "=" in old:
            if f"{key}={value.strip(QUOTES)}" == old:
                value = new.partition("=")[2]
        elif key == old or key.startswith(f"{old}."):
            key = new + key.removeprefix(old)
    is_gone = any(key == gone or key.startswith(f"{gone}.") for gone in REMOVED)
    return None if is_gone else plus + key + equals + value


def as_override(key: str, value: Any) -> str:
    """A key and its value as one would type them."""
    return f"{key}={in_grammar(value)}"


def in_grammar(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_grammar(inside)}" for key, inside in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(in_grammar, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", r"\'") + "'"
    return json.dumps(value)
