"""Explanations of OmegaConf's errors: which key, what was given, what is allowed."""

import difflib
from dataclasses import fields
from typing import Any

from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from gpt.config.counts import FORMS
from gpt.config.groups import GROUPS
from gpt.config.keys import Choice, Range
from gpt.config.lookup import allowed_of, counted_by, dotted_keys, fields_of, keys_by_word
from gpt.config.schema import VARIANTS
from gpt.config.values import did_you_mean
from gpt.errors import InputError

TYPES_IN_WORDS = {
    int: "a whole number, such as 1000 or 1_000",
    float: "a number, such as 0.1 or 6e-4",
    bool: "true or false",
    str: "text",
    list[str]: "a list: [a,b], or one text",
    list[float]: "a list of numbers: [0.9,0.95]",
    list[int]: "a list of whole numbers: [1000,64]",
    list[list[Any]]: "a list of pairs: [[1000,64],[2000,128]]",
    dict[str, float]: "names and numbers: {a: 1.5}",
    dict[str, Any]: "names and values: {a: 1.5, b: text}",
}
OF_A_SECTION = "an option of its group, or single keys below it"


def explain(error: OmegaConfBaseException, override: str | None = None) -> InputError:
    """Return what OmegaConf refuses as an error with problem and cure; ``override`` is what was typed, if known."""
    key = error.full_key or str(error.key or "")
    if isinstance(error, MissingMandatoryValue):
        return InputError(f"{key} has no value", f"give one: {key}=…")
    is_unknown = isinstance(error, (ConfigKeyError, AttributeError))
    if is_unknown and error.parent_node is not None:
        known = [str(name) for name in error.parent_node if name != "hydra"]
        return _unknown_key(key, known)

    # A value that does not fit: the first line of OmegaConf's message is fit to be read, the rest is about its nodes.
    reason = str(error).splitlines()[0]
    problem = f"{override or key or 'the config'}: {reason}"
    if isinstance(error, InterpolationResolutionError) or not key:
        return InputError(
            problem,
            "${…} holds the name of a key, or a resolver: ${oc.env:HOME}",
        )
    if key.startswith("hydra."):
        return InputError(
            problem,
            "give what Hydra takes there: python train.py --cfg hydra",
        )
    return InputError(problem, f"{key} takes {expected_type(key)}")


def _unknown_key(key: str, known: list[str]) -> InputError:
    """Return the error for a key that its section, which has the ``known`` ones, does not have."""
    section, _, name = key.rpartition(".")
    if not known:  # a dict that is open
        return InputError(f"{key} is not there yet", f"a plus adds it: +{key}=…")

    # A key of another option of the group, or a slip of the keyboard.
    owners = []
    for option, variant in VARIANTS.get(section, {}).items():
        keys = [field.name for field in fields(variant)]
        if name in keys:
            owners.append(f"{section}={option}")
    hint = _similar(name, known, section)
    if owners:
        hint = f"; it is a key of {' and '.join(owners)}"
    heading = f"keys of {section}" if section else "keys"
    return InputError(f"unknown key {key}", f"{heading}: {', '.join(known)}{hint}")


def unknown_key(key: str, others: tuple[str, ...] = ()) -> InputError:
    """Return the error for a dotted key that no option has; ``others`` could stand in its place too."""
    names = [*GROUPS, *others, *dotted_keys()]
    hint = _similar(key.rpartition(".")[2], names)
    return InputError(f"unknown key {key}", f"keys: python train.py --cfg job{hint}")


def _similar(name: str, known: list[str], section: str = "") -> str:
    """Return a closing question for a message: a key of another section, or a similar one, or nothing."""
    # The same word in another section, such as optimizer.lr for lr, is likelier than a slip of the keyboard.
    by_word = keys_by_word()
    if name not in by_word and not section:
        close = did_you_mean(name, known)
        matches = difflib.get_close_matches(name, by_word, n=1)
        name = name if close or not matches else matches[0]
    if name in by_word and name != "name":
        return f"; did you mean {' or '.join(by_word[name])}?"
    return did_you_mean(name, known)


def expected_type(key: str) -> str:
    """Return the type of a dotted key in words; ``key[0]`` is an element of a list."""
    name, *indices = key.split("[")
    kind, is_optional = _type_of(name)
    counts = counted_by(name)
    for _ in indices:
        kind = kind.__args__[0]
    or_null = ", or null" if is_optional and not indices else ""
    if kind is int and counts:
        return f"a whole number of {counts}, such as {FORMS}{or_null}"
    return TYPES_IN_WORDS.get(kind, OF_A_SECTION) + or_null


def allowed_values(key: str) -> str:
    """Return what a dotted key may hold, in words: its choices, its range, or else its type."""
    allowed = allowed_of(key)
    if not isinstance(allowed, (Choice, Range)):
        return expected_type(key)
    _, is_optional = _type_of(key)
    or_null = ", or null" if is_optional else ""
    return allowed.in_words + or_null


def _type_of(key: str) -> tuple[Any, bool]:
    """Return the type of a dotted key, and True where it may be null."""
    declared = fields_of(key)
    kind: Any = declared[0].type if declared else None

    # A type or None: a union of the two.
    options = getattr(kind, "__args__", ())
    if type(None) in options:
        return options[0], True
    return kind, False
