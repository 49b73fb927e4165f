"""Small files, written whole or not at all and refused by name where they are damaged; and locks."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gpt.console import say
from gpt.errors import InputError

ROOT = Path(__file__).parents[1]  # the project: train.py, conf/, gpt/, data/
LAYOUT = 1  # of the files that runs and sweeps write; files of another layout are refused
CURE = "take a directory that runs or sweeps of gptlab have made, or restore this file from a copy"


def as_path(key: str, text: str) -> Path:
    """Return the path that a user gave as ``key``.

    Raises InputError for a text that cannot be a path: too long, or with a zero byte.
    """
    try:
        path = Path(text).expanduser()
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{key}: {text!r} cannot be a path here: {reason}", "correct the path") from error
    return path


# --- locks


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a directory or a file for this process. Raises InputError while another process has the lock."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not _try_lock(descriptor):
            raise InputError(f"{path} is in use: its run is still going on", "wait for it, or stop it first")
        yield
    finally:
        os.close(descriptor)


def lock_or_wait(descriptor: int, reason: str) -> None:
    """Lock an open file or directory; while another process has the lock, print why this one waits. Raises OSError."""
    if not _try_lock(descriptor):
        say(f"waiting: {reason}")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _try_lock(descriptor: int) -> bool:
    """Lock an open file or directory; False while another process has the lock. Raises OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- writing


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all, even if the machine fails meanwhile. Raises OSError."""
    # It gets its name when it is on the disk.
    part = path.with_name(f".{path.name}")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON, whole or not at all. Raises OSError."""
    write_text(path, json.dumps(content, indent=1) + "\n")


# --- reading


def read_json(path: Path, keys: tuple[str, ...] = (), cure: str | None = None) -> dict[str, Any]:
    """Read a JSON object that has ``layout`` and ``keys``, as :func:`write_json` wrote it.

    Raises InputError, with the path and ``cure``, for a file that is damaged, of another layout, or no file at all.
    """
    cure = cure or CURE
    try:
        content = parse_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error), cure) from error
    if content.get("layout", LAYOUT) != LAYOUT:
        raise InputError(
            f"{path} has layout {content['layout']}, and this version of gptlab reads layout {LAYOUT}",
            "take the version that wrote it, or another directory",
        )
    for key in ("layout", *keys):
        if key not in content:
            raise _damaged(path, f"it has no {key}", cure)
    return content


def check_kinds(path: Path, content: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Check the types of those values that a file has. Raises InputError, with the path."""
    for key, kind in kinds.items():
        if key in content and not isinstance(content[key], kind):
            shown = str(content[key])[:40]
            raise _damaged(path, f"{key} is {shown!r}", CURE)


def _damaged(path: Path, reason: str, cure: str) -> InputError:
    """Return the refusal of a file that cannot be read."""
    return InputError(f"{path} is damaged, or none of ours: {reason}", cure)


def parse_object(text: str) -> dict[str, Any]:
    """Parse a text that is one JSON object. Raises ValueError for any other."""
    if not text.strip():
        raise ValueError("it is empty")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("no JSON that anyone would write: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _load_yaml(text: str) -> Any:
    """Load YAML without aliases: none of our files has any, and a few lines of them expand to gigabytes."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a sixth of the time, where libyaml is there
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
        raise yaml.YAMLError("it has an alias (*)")
    return yaml.load(text, loader)


# The last three: PyYAML fails with them on a tag that does not fit its value.
YAML_ERRORS = (OSError, ValueError, yaml.YAMLError, LookupError, AttributeError, TypeError)


def read_yaml(path: Path, kind: type, cure: str = CURE) -> Any:
    """Read a YAML file that holds one ``kind`` of value: dict or list.

    Raises InputError, with the path and ``cure``, for a file that is damaged, or no file at all.
    """
    try:
        content = _load_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError("it is empty" if content is None else f"no YAML {kind.__name__}")
    except RecursionError as error:
        raise _damaged(path, "it is nested too deeply", cure) from error
    except YAML_ERRORS as error:
        first_line = str(error).partition("\n")[0]
        reason = getattr(error, "problem", None) or first_line  # PyYAML's own word for it
        raise _damaged(path, reason, cure) from error
    return content
