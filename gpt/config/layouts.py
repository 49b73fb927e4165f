"""Changes of the config's keys since the first version, so that every earlier run can be read, resumed and compared.

The recipe is in docs/config.md, "Adding a key". Imports nothing above it.
"""

import json
import re
from typing import Any

import yaml

from gpt.config.optimizer import GROUPS
from gpt.errors import InputError

QUOTES = "'\""
RECIPE = 'docs/config.md, "Adding a key"'

# Keys that are newer than the first version, or whose default in conf/ has changed, with the value that means what runs
# did before: "model.z_loss": 0.0.
ADDED: dict[str, Any] = {
    "optimizer.split_qkv": False,
    "sample.top_p": None,
    "trainer.tasks": [],
    "trainer.tasks_every": None,
    "hellaswag.path": None,
    "hellaswag.examples": None,
    "perplexity.files": [],
    "perplexity.stride": None,
    "arithmetic.problems": 100,
    "arithmetic.shots": 0,
    "inspect.tokens": [],
    "lm_eval.tasks": [],
    "lm_eval.include_path": None,
    "lm_eval.limit": None,
    "init_from": None,
    "model.n_kv_head": None,
    "model.mlp_width": None,
    "model.mlp_matched": False,
    "model.rope_theta": 10_000.0,
    "model.rope_fraction": 1.0,
    "model.norm_type": "layernorm",
    "model.norm_weight": True,
    "model.qk_norm": False,
    "model.window": None,
    "model.window_pattern": "S",
    "model.attention_softcap": None,
    "model.logit_softcap": None,
    "model.z_loss": 0.0,
    "model.value_embeddings": 0,
    "model.value_residual": False,
    "model.residual_lambdas": False,
    "model.x0_lambdas": False,
    "model.parallel_block": False,
    "model.zero_init_projections": False,
    **dict.fromkeys(f"optimizer.groups.{group}.{key}" for group in GROUPS for key in ("lr", "betas", "weight_decay")),
    "optimizer.momentum_start": 0.85,
    "optimizer.momentum_warmup": None,
    "optimizer.normuon": False,
    "optimizer.normuon_beta2": 0.95,
    "optimizer.cautious_weight_decay": False,
    "trainer.ema": None,
    "trainer.average_from": None,
}
# In the order in which they were renamed: keys and sections ("trainer.grad_clip": "trainer.clip_norm"), values and
# options of groups ("optimizer=adam": "optimizer=adamw").
RENAMED: dict[str, str] = {}
# Keys that are gone, with the one value whose meaning is left: "model.gated": False.
REMOVED: dict[str, Any] = {}


def value_at(raw: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key in a saved config, or what runs did before that key was there."""
    if not _has(raw, key):
        return ADDED.get(key)
    section, name = _section_of(raw, key)
    return section[name]


def rename(raw: dict[str, Any]) -> None:
    """Give a saved config today's names, and take out what is gone. Raises InputError for a meaning that is gone."""
    for old, new in RENAMED.items():
        if "=" in old:
            _rename_value(raw, old, new)
        elif _has(raw, old):
            value = _take(raw, old)
            _put(raw, new, value)

    # Of a key that is gone, one meaning is left.
    for key, left in REMOVED.items():
        if not _has(raw, key):
            continue
        value = _take(raw, key)
        if value != left:
            raise InputError(
                f"{key}={value} is no longer there: what is left is what {key}={left} meant",
                "take the version of gptlab that wrote it",
            )


def rename_override(override: str) -> str | None:
    """Return an override that an earlier version saved in today's names; None for a key that is gone."""
    # KEY=VALUE, which may add (+) or delete (~) the key.
    match = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", override, re.DOTALL)
    plus, key, equals, value = match.groups()
    for old, new in RENAMED.items():
        if "=" in old:  # a value
            unquoted = value.strip(QUOTES)
            if f"{key}={unquoted}" == old:
                _, _, value = new.partition("=")
        elif _is_in(key, old):
            within = key.removeprefix(old)
            key = new + within

    # A key that is gone has no meaning that could be given again.
    for gone in REMOVED:
        if _is_in(key, gone):
            return None
    return plus + key + equals + value


def complete(raw: dict[str, Any], keys: dict[str, Any]) -> None:
    """Add the keys that are newer than a saved config, and check that it then has ``keys``, no others, and all of them.

    Raises InputError.
    """
    for key, value in ADDED.items():
        is_ours = _has(keys, key)  # not of other options
        if is_ours and not _has(raw, key):
            _put(raw, key, value)
    _check_keys(raw, keys)


def check_there(raw: dict[str, Any], keys: list[str], prefix: str = "") -> None:
    """Check that a saved config has these keys. Raises InputError."""
    for key in keys:
        full_key = prefix + key
        if not _has(raw, key) and full_key not in ADDED:
            raise InputError(
                f"it has no {full_key}: it is cut off, or older than that key",
                f"restore it from a copy; what runs before a new key did is told to gpt/config/layouts.py ({RECIPE})",
            )


def as_override(key: str, value: Any) -> str:
    """Return a key and its value as one would type them."""
    return f"{key}={_in_grammar(value)}"


def _check_keys(raw: Any, keys: dict[str, Any], prefix: str = "") -> None:
    """Check that a saved config has the keys of the schema, section by section. Raises InputError."""
    if not isinstance(raw, dict):
        raise InputError(
            f"{prefix.rstrip('.')}={raw} is no section of keys",
            "restore it from a copy",
        )

    # No other keys, and all of these.
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
    _, _, after = new.partition("=")
    old_value = yaml.safe_load(before)
    new_value = yaml.safe_load(after)
    for candidate in (key, f"{key}.name"):
        if not _has(raw, candidate):
            continue
        if value_at(raw, candidate) == old_value:
            _put(raw, candidate, new_value)


# --- dotted keys


def _has(raw: dict[str, Any], key: str) -> bool:
    """True if there is a dotted key."""
    section, name = _section_of(raw, key)
    if section is None:
        return False
    return name in section


def _section_of(raw: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """Return the section that a dotted key stands in, None where there is none, and its name there."""
    *parents, name = key.split(".")
    section: Any = raw
    for parent in parents:
        if isinstance(section, dict):  # else it is a value, which has no keys
            section = section.get(parent)
    if not isinstance(section, dict):
        section = None
    return section, name


def _take(raw: dict[str, Any], key: str) -> Any:
    """Take a dotted key that is there out, and return its value."""
    section, name = _section_of(raw, key)
    return section.pop(name)


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
    """Return a value in the grammar of Hydra's overrides."""
    if isinstance(value, dict):
        items = []
        for key, inside in value.items():
            items.append(f"{key}:{_in_grammar(inside)}")
        return "{" + ",".join(items) + "}"
    if isinstance(value, list):
        elements = ",".join(map(_in_grammar, value))
        return f"[{elements}]"
    if isinstance(value, str):
        escaped = value.replace("'", r"\'")
        return f"'{escaped}'"
    return json.dumps(value)
