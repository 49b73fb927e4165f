"""Small files and locks: written whole or not at all, and refused by name where they are damaged."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt.errors import InputError

LAYOUT = 1  # of the files that a run or a sweep leaves; other numbers are not read


def as_path(key: str, text: str) -> Path:
    """The path that a user gives as ``key``. Raises InputError for what none can be: too long, with a zero byte."""
    try:
        path = Path(text).expanduser()
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{key}: {text!r} cannot be a path here: {reason}", "correct the path") from error
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a directory or a file for this process alone. Raises InputError while another process does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(f"{path} is in use: its run is still going on", "wait for it, or stop it first") from error
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def read_json(path: Path, keys: tuple[str, ...] = (), cure: str | None = None) -> dict[str, Any]:
    """Read a JSON object that has ``layout`` and ``keys``, as :func:`write_json` wrote it.

    Raises InputError, with the path and ``cure``, for a file that is damaged, of another layout, or no file at all.
    """
    cure = cure or "take a directory that runs or sweeps of gptlab have made, or restore this file from a copy"
    try:
        content = parse_object(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged, or none of ours: {error}", cure) from error
    if content.get("layout", LAYOUT) != LAYOUT:
        raise InputError(
            f"{path} has layout {content['layout']}, and this version of gptlab reads layout {LAYOUT}",
            "take the version that wrote it, or another directory",
        )
    if missing := [key for key in ("layout", *keys) if key not in content]:
        raise InputError(f"{path} is damaged, or none of ours: it has no {missing[0]}", cure)
    return content


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in a text. Raises ValueError where there is none."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}" if text.strip() else "it is empty") from error
    except RecursionError as error:
        raise ValueError("no JSON that anyone would write: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content
