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
    """Return the value of a dotted key in a saved config, or what runs did before that key was there."""
    section, name = _section_of(raw, key)
    return section[name] if _has(raw, key) else ADDED.get(key)


def rename(raw: dict[str, Any]) -> None:
    """Give a saved config today's names, and take out what is gone. Raises InputError for a meaning that is gone."""
    for old, new in RENAMED.items():
        if "=" in old:
            _rename_value(raw, old, new)
        elif _has(raw, old):
            section, name = _section_of(raw, old)
            _put(raw, new, section.pop(name))
    for key, left in REMOVED.items():
        if not _has(raw, key):
            continue
        section, name = _section_of(raw, key)
        value = section.pop(name)
        if value != left:
            raise InputError(
                f"{key}={value} is no longer there: what is left is what {key}={left} meant",
                "take the version of gptlab that wrote it",
            )


def rename_override(override: str) -> str | None:
    """Return an override that an earlier version saved in today's names; None for a key that is gone."""
    match = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", override, re.DOTALL)
    plus, key, equals, value = match.groups()
    for old, new in RENAMED.items():
        if "=" in old:
            if f"{key}={value.strip(QUOTES)}" == old:
                value = new.partition("=")[2]
        elif _is_in(key, old):
            key = new + key.removeprefix(old)
    if any(_is_in(key, gone) for gone in REMOVED):
        return None
    return plus + key + equals + value


def complete(raw: dict[str, Any], keys: dict[str, Any]) -> None:
    """Add the keys that are newer than a saved config, and check that it then has ``keys``, no others, and all of them.

    Raises InputError.
    """
    for key, value in ADDED.items():
        if _has(keys, key) and not _has(raw, key):  # not those of other options
            _put(raw, key, value)
    _check_keys(raw, keys)


def check_there(raw: dict[str, Any], keys: list[str], prefix: str = "") -> None:
    """Check that a saved config has these keys. Raises InputError."""
    for key in keys:
        if not _has(raw, key) and prefix + key not in ADDED:
            raise InputError(
                f"it has no {prefix}{key}: it is cut off, or older than that key",
                f"restore it from a copy; what runs before a new key did is told to gpt/config/layouts.py ({RECIPE})",
            )


def as_override(key: str, value: Any) -> str:
    """Return a key and its value as one would type them."""
    return f"{key}={_in_grammar(value)}"


def _check_keys(raw: Any, keys: dict[str, Any], prefix: str = "") -> None:
    """Check that a saved config has the keys of the schema, section by section. Raises InputError."""
    if not isinstance(raw, dict):
        raise InputError(f"{prefix.rstrip('.')}={raw} is no section of keys", "restore it from a copy")
    for key in raw:
        if key not in keys:
            raise InputError(
                f"unknown key {prefix}{key}: a newer gptlab wrote it, or somebody by hand",
                "take the version that wrote it; a key that was renamed or removed since is told to "
                f"gpt/config/layouts.py ({RECIPE})",
            )
    check_there(raw, list(keys), prefix)
    for key, inside in keys.items():
        if isinstance(inside, dict):
            _check_keys(raw[key], inside, f"{prefix}{key}.")


def _rename_value(raw: dict[str, Any], old: str, new: str) -> None:
    """Rename the value of a key, or the option of a group, which the group's ``name`` says."""
    key, _, before = old.partition("=")
    after = new.partition("=")[2]
    for candidate in (key, f"{key}.name"):
        if _has(raw, candidate) and value_at(raw, candidate) == yaml.safe_load(before):
            _put(raw, candidate, yaml.safe_load(after))


# --- dotted keys


def _has(raw: dict[str, Any], key: str) -> bool:
    """True if there is a dotted key."""
    section, name = _section_of(raw, key)
    return section is not None and name in section


def _section_of(raw: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The section that a dotted key stands in, None where there is none, and its name there."""
    *parents, name = key.split(".")
    section: Any = raw
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else None), name


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the sections that it stands in."""
    *parents, name = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
    raw[name] = value


def _is_in(key: str, section: str) -> bool:
    """True for a section itself, and for the keys in it."""
    return key == section or key.startswith(f"{section}.")


def _in_grammar(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, dict):
        items = [f"{key}:{_in_grammar(inside)}" for key, inside in value.items()]
        return "{" + ",".join(items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_grammar, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", r"\'") + "'"
    return json.dumps(value)
