"""The schema as typed nodes of OmegaConf, among them one for keys that count. Imports no torch."""

import copy
import functools
from dataclasses import fields, is_dataclass

from omegaconf import DictConfig, IntegerNode, OmegaConf

from gpt.config.counts import as_count
from gpt.config.keys import COUNTS


class CountNode(IntegerNode):
    """A whole number, set in any of the forms of :mod:`gpt.config.counts`, wherever it comes from."""

    def _validate_and_convert_impl(self, value: object) -> int:
        return super()._validate_and_convert_impl(as_count(value))

    def __deepcopy__(self, memo: dict[int, object]) -> "CountNode":
        node = CountNode()
        self._deepcopy_impl(node, memo)
        return node


def structured(kind: type) -> DictConfig:
    """Return a class of the schema as a typed config, whose keys that count take all forms of a count."""
    return copy.deepcopy(_build(kind))  # in a seventh of the time that building takes


@functools.cache
def _build(kind: type) -> DictConfig:
    """Build the config of a class, section in section."""
    config = OmegaConf.structured(kind)
    for field in fields(kind):
        if is_dataclass(field.type):
            config[field.name] = _build(field.type)
            continue
        options = getattr(field.type, "__args__", ())
        is_optional = type(None) in options
        if COUNTS in field.metadata and (field.type is int or int in options):
            config[field.name] = CountNode("???", is_optional=is_optional)
    return config
