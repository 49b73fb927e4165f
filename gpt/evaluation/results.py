"""The files of a model's evaluations beside it: eval-NAME.json, and pictures."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt.errors import InputError, TrainingError
from gpt.files import write_text


def _results_path(checkpoint: Path) -> Path:
    """Return the path of the evaluations of a checkpoint, or of another model's file or folder."""
    return checkpoint.with_name(f"eval-{checkpoint.name}.json")


def read_results(checkpoint: Path) -> list[dict[str, Any]]:
    """Read the earlier evaluations of a checkpoint. Raises InputError for a file that is damaged."""
    path = _results_path(checkpoint)
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise ValueError("no list of evaluations")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or none of ours: {error}", "move it away, or restore it") from error
    return entries


def add_results(checkpoint: Path, command: dict[str, Any], results: dict[str, Any]) -> Path:
    """Add the results of a command to those of its checkpoint; the same command again replaces its own.

    Returns the path of the file. Raises TrainingError if it cannot be written.
    """
    dated = {"date": datetime.now(UTC).isoformat(timespec="seconds")}

    path = _results_path(checkpoint)
    others = []
    for entry in read_results(checkpoint):
        if any(entry.get(key) != value for key, value in command.items()):
            others.append(entry)
    try:
        path.parent.mkdir(exist_ok=True)  # outputs/, for a model that is not here
        write_text(path, json.dumps([*others, command | dated | results], indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error}") from error
    return path


def write_picture(checkpoint: Path, name: str, content: bytes) -> Path:
    """Write a picture of a checkpoint as ``name-CHECKPOINT.png``; returns its path.

    Raises TrainingError if it cannot be written.
    """
    path = checkpoint.with_name(f"{name}-{checkpoint.name}.png")
    try:
        path.write_bytes(content)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error}") from error
    return path
