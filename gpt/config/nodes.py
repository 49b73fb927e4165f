"""The schema as typed nodes of OmegaConf, some of which take more forms of a value. Imports no torch."""

import functools
from dataclasses import fields, is_dataclass

from omegaconf import AnyNode, DictConfig, IntegerNode, ListConfig, OmegaConf
from omegaconf._utils import ValueKind, get_value_kind

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


class TextsNode(ListConfig):
    """A list of text; a single text is a list of one."""

    def _set_value_impl(self, value: object, flags: dict[str, bool] | None = None) -> None:
        if isinstance(value, AnyNode):  # as a merge gives it
            value = value._value()
        is_text = isinstance(value, str) and get_value_kind(value) == ValueKind.VALUE  # no ${…}, and not ???
        super()._set_value_impl([value] if is_text else value, flags)

    def __deepcopy__(self, memo: dict[int, object]) -> "TextsNode":
        return _take_texts(super().__deepcopy__(memo))


def _take_texts(node: ListConfig) -> TextsNode:
    """Return a list of text as one that also takes a single text."""
    object.__setattr__(node, "__class__", TextsNode)  # ListConfig's own would set an element
    return node


@functools.cache
def structured(kind: type) -> DictConfig:
    """Return a class of the schema as a typed config, whose keys take all forms of a count, or of a list of text.

    All callers get the same one: they copy it before they change it.
    """
    config = OmegaConf.structured(kind)
    for field in fields(kind):
        if is_dataclass(field.type):
            config[field.name] = structured(field.type)
            continue
        if field.type == list[str]:
            _take_texts(config._get_node(field.name))
        options = getattr(field.type, "__args__", ())
        is_optional = type(None) in options
        if COUNTS in field.metadata and (field.type is int or int in options):
            config[field.name] = CountNode("???", is_optional=is_optional)
    return config
