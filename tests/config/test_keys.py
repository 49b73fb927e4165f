"""Every key of the config has a home: type, choices or range in the schema, default and comment in conf/."""

import runpy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
from conftest import ROOT

from gpt.cli.compose import compose
from gpt.cli.help import COMMON_KEYS, WITHOUT_KEYS, common_limits, key_comments
from gpt.config.checks import check
from gpt.config.explain import OF_A_SECTION, allowed_values, expected_type
from gpt.config.groups import GROUPS, options
from gpt.config.keys import ALLOWED, Choice, Range, Text, choice, number, text
from gpt.config.load import OPTION_KEYS, flatten
from gpt.config.lookup import allowed_of
from gpt.config.schema import VARIANTS, Config
from gpt.errors import InputError

NUMBERS = (int, float, list[int], list[float])
WITH_KEYS = [group for group in GROUPS if group not in WITHOUT_KEYS]


def keys_below(kind: type, prefix: str = "") -> dict[str, Any]:
    """The fields of a class of the schema by dotted key."""
    keys = {}
    for field in fields(kind):
        key = prefix + field.name
        if is_dataclass(field.type):
            keys |= keys_below(field.type, f"{key}.")
        else:
            keys[key] = field
    return keys


def all_keys() -> dict[str, Any]:
    """The fields of all options by dotted key."""
    keys = keys_below(Config)
    for group, variants in VARIANTS.items():
        for variant in variants.values():
            keys |= keys_below(variant, f"{group}.")
    return keys


def undeclared(keys: dict[str, Any]) -> dict[str, str]:
    """What is missing beside the fields of keys."""
    missing = {}
    for key, field in keys.items():
        arguments = getattr(field.type, "__args__", ())
        kind = arguments[0] if type(None) in arguments else field.type
        allowed = field.metadata.get(ALLOWED)
        if kind is str and not isinstance(allowed, (Choice, Text)):
            missing[key] = "choice([…]), or text() where any text will do"
        if kind in NUMBERS and not isinstance(allowed, Range):
            missing[key] = "number(at_least=…), or another range"
    return missing


def test_every_key_has_its_choices_or_its_range_beside_it():
    assert not undeclared(all_keys()), "gpt/config/schema.py"


def test_a_key_without_them_is_found():
    @dataclass(kw_only=True)
    class Mine:
        switch: bool
        names: list[str]
        mode: str
        rate: float | None
        weights: list[float]
        form: str = choice(["a", "b"])
        label: str | None = text()
        count: int = number(at_least=1)

    assert set(undeclared(keys_below(Mine))) == {"mode", "rate", "weights"}


def test_every_key_has_its_type_in_words():
    for key in all_keys():
        assert OF_A_SECTION not in expected_type(key), key
        assert allowed_values(key), key


def test_every_option_gives_every_key_of_its_schema_a_default():
    keys = runpy.run_path(str(ROOT / "docs" / "generate.py"))["keys"]
    sections = {field.name: field.type for field in fields(Config)}
    for group in WITH_KEYS:
        for option in options(group):
            defaults = keys(group, option)
            schema = sections[group]
            if group in VARIANTS:
                schema = VARIANTS[group][defaults[OPTION_KEYS.get(group, "name")]]
            assert set(defaults) == set(keys_below(schema)), f"conf/{group}/{option}.yaml"


def test_every_key_outside_the_groups_has_a_default():
    written = runpy.run_path(str(ROOT / "docs" / "generate.py"))["reference"]().partition("### outside the groups")[2]
    outside = {key for key in keys_below(Config) if key.partition(".")[0] not in GROUPS}
    assert {line.split("`")[1] for line in written.splitlines() if line.startswith("| `")} == outside


def test_every_key_has_a_comment():
    names = {f"{group}.name" for group in GROUPS}
    assert not set(all_keys()) - names - set(key_comments())


def test_help_reads_the_schema_as_it_is():
    expected = {}
    for key in COMMON_KEYS:
        allowed = allowed_of(key)
        if isinstance(allowed, (Choice, Range)):
            expected[key] = allowed.in_words
    assert common_limits() == expected


@pytest.mark.parametrize(
    "bounds, words, inside, outside",
    [
        ({"at_least": 0}, "0 or more", [0, 1e9], [-1, float("inf"), float("nan")]),
        ({"at_least": 1}, "at least 1", [1, 2], [0]),
        ({"above": 0}, "more than 0", [1e-300], [0, -1, float("nan")]),
        ({"at_least": 0, "at_most": 1}, "0 to 1", [0, 0.5, 1], [-0.1, 1.1]),
        ({"at_least": 100, "at_most": 10_000}, "between 100 and 10,000", [100, 10_000], [99, 10_001]),
        ({"at_least": 0, "below": 1}, "0 up to, not including, 1", [0, 0.99], [1, -0.1]),
        ({"above": 0, "below": 1}, "between 0 and 1", [0.5], [0, 1]),
    ],
)
def test_ranges(bounds, words, inside, outside):
    allowed = Range(**bounds)
    assert allowed.in_words == allowed.sense_in_words == words
    assert all(map(allowed.contains, inside))
    assert not any(map(allowed.contains, outside))


def test_a_range_may_end_before_it_makes_no_sense():
    allowed = Range(at_least=1, largest=1_000, reason="more take hours")
    assert (allowed.in_words, allowed.sense_in_words) == ("between 1 and 1,000", "at least 1")
    assert allowed.contains(1_001)


@pytest.mark.parametrize(
    "group, option", [("trainer", None), *((group, option) for group in VARIANTS for option in VARIANTS[group])]
)
def test_a_value_outside_is_refused_in_the_words_of_the_schema(group, option):
    config = compose([f"{group}={option}"] if option else [])
    for key in flatten(config):
        allowed = allowed_of(key)
        *parents, name = key.split(".")
        if (group in VARIANTS and parents[:1] != [group]) or not isinstance(allowed, (Choice, Range)):
            continue
        section = config
        for parent in parents:
            section = getattr(section, parent)
        value = getattr(section, name)
        wrong = "nonsense" if isinstance(allowed, Choice) else -1
        setattr(section, name, [0.9, wrong] if isinstance(value, list) else wrong)
        with pytest.raises(InputError) as refused:
            check(config)
        setattr(section, name, value)
        words = allowed.in_words if isinstance(allowed, Choice) else allowed.sense_in_words
        if key != "cluster.nproc" or config.cluster.name != "single":  # which says that it is one process
            assert refused.value.problem.startswith(f"{key}=")
            assert refused.value.cure.startswith(f"allowed: {words}")
