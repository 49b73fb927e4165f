"""The examples of HellaSwag (Zellers et al. 2019): the official JSONL file, or one like it. Imports no torch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from gpt.config.schema import Config
from gpt.errors import InputError
from gpt.fetch import fetch
from gpt.files import as_path

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
SCHEMA = 'allowed: {"ctx": TEXT, "endings": [TEXT, …], "label": INDEX}'


class Example(NamedTuple):
    """A beginning, the endings that are proposed, and the index of the right one."""

    context: str
    endings: list[str]
    label: int


def check(config: Config) -> None:
    """Check that the file can be read, downloading it if need be. Raises InputError."""
    read_examples(config)


def read_examples(config: Config) -> list[Example]:
    """Read the examples of ``hellaswag.path``, or of the official file. Raises InputError, naming a broken line."""
    # A broken line is named only if it is among those that are asked for.
    path = _find(config)
    examples = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if len(examples) == config.hellaswag.examples:
                    break
                examples.append(_parse(line, f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"hellaswag.path={path} cannot be read: {error}", "give the official hellaswag_val.jsonl, or one like it"
        ) from error
    if not examples:
        raise InputError(f"hellaswag.path={path} has no examples", "give a file with one on each line")
    return examples


def _find(config: Config) -> Path:
    """Return the path of the file; downloads the official one where none is given. Raises InputError."""
    if config.hellaswag.path is not None:
        return as_path("hellaswag.path", config.hellaswag.path)
    path = as_path("data.cache_dir", config.data.cache_dir) / "hellaswag" / "hellaswag_val.jsonl"
    return fetch(URL, None, path, f"fetch it by hand, and put it at {path}, or give hellaswag.path=FILE")


def _parse(line: str, where: str) -> Example:
    """Return the example on a line. Raises InputError."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}", SCHEMA) from error
    if not _is_example(content):
        raise InputError(f"{where} is no example of HellaSwag", SCHEMA)
    return Example(content["ctx"], content["endings"], content["label"])


def _is_example(content: Any) -> bool:
    """Return whether the content of a line has a beginning, at least two endings, and the index of one of them."""
    if not isinstance(content, dict):
        return False
    # True is an int to Python, and no index.
    endings = content.get("endings")
    label = content.get("label")
    if not isinstance(endings, list) or len(endings) < 2 or type(label) is not int:
        return False
    texts = [content.get("ctx"), *endings]
    return all(isinstance(text, str) and text for text in texts) and 0 <= label < len(endings)
