"""The manifest of prepared data: its source, the versions that made it, and the hash of every file."""

from pathlib import Path
from typing import Any

from gpt.errors import InputError
from gpt.files import parse_object

MANIFEST = "manifest.json"
CURE = "delete it: the data is prepared again, or with data.dir taken without it"

# The keys that are read, with their types.
KEYS = {
    "source": str,
    "of": str,
    "revision": str | None,
    "splits": dict,
    "python": str,
    "versions": dict,
}
SPLIT_KEYS = {"tokens": int, "sha256": str, "shards": list}
SHARD_KEYS = {"file": str, "tokens": int, "sha256": str}


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a directory. Raises InputError if it is damaged."""
    path = directory / MANIFEST
    try:
        content = parse_object(path.read_text())
        _check(content)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}", CURE) from error
    return content


def recorded_shards(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries for the files with tokens, by their names; nothing if there is no manifest."""
    if not (directory / MANIFEST).exists():
        return {}
    shards = {}
    for split in read_manifest(directory)["splits"].values():
        for shard in split["shards"]:
            shards[shard["file"]] = shard
    return shards


def _check(content: dict[str, Any]) -> None:
    """Raise ValueError where something that is used later is missing, or of another type."""
    _check_keys(content, KEYS)
    if set(content["splits"]) not in ({"train", "val"}, {"val"}):
        raise ValueError("its splits are not train and val, or val alone")
    for split in content["splits"].values():
        _check_keys(split, SPLIT_KEYS)
        for shard in split["shards"]:
            _check_keys(shard, SHARD_KEYS)
            # A path could lead out of the directory.
            name = shard["file"]
            if Path(name).name != name:
                raise ValueError(f"{name} is no name of a file")


def _check_keys(content: Any, kinds: dict[str, Any]) -> None:
    """Raise ValueError where an object lacks one of these keys, or has it with another type."""
    keys = content if isinstance(content, dict) else {}
    for key, kind in kinds.items():
        is_right = key in keys and isinstance(keys[key], kind)
        if not is_right:
            raise ValueError(f"it has no {key}, or none of the right type")
