"""The manifest of prepared data: what it was made of, and which files it should have."""

from pathlib import Path
from typing import Any

from gpt.errors import InputError
from gpt.files import parse_object

MANIFEST = "manifest.json"
CURE = "delete it: the data is prepared again, or with data.dir taken without it"


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a directory. Raises InputError where it is damaged."""
    path = directory / MANIFEST
    try:
        content = parse_object(path.read_text())
        _check(content)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}", CURE) from error
    return content


def recorded_shards(directory: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file with tokens, by its name; nothing where there is no manifest."""
    if not (directory / MANIFEST).exists():
        return {}
    splits = read_manifest(directory)["splits"].values()
    return {shard["file"]: shard for split in splits for shard in split["shards"]}


def missing_shards(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    """The shards that a finished dataset should have and has not, with their splits."""
    return [
        (name, shard)
        for name, split in read_manifest(directory)["splits"].items()
        for shard in split["shards"]
        if not (directory / shard["file"]).exists()
    ]


def _check(content: dict[str, Any]) -> None:
    """Raise ValueError where something that is used later is not there, or of another type."""
    kinds = {"source": str, "of": str, "revision": str | None, "splits": dict, "python": str, "versions": dict}
    _check_keys(content, kinds)
    if set(content["splits"]) != {"train", "val"}:
        raise ValueError("its splits are not train and val")
    for split in content["splits"].values():
        _check_keys(split, {"tokens": int, "sha256": str, "shards": list})
        for shard in split["shards"]:
            _check_keys(shard, {"file": str, "tokens": int, "sha256": str, "from": dict})
            _check_keys(shard["from"], {"cursor": dict | None, "skip": int})
            if Path(shard["file"]).name != shard["file"]:
                raise ValueError(f"{shard['file']} is no name of a file")


def _check_keys(content: Any, kinds: dict[str, Any]) -> None:
    for key, kind in kinds.items():
        if not (isinstance(content, dict) and key in content and isinstance(content[key], kind)):
            raise ValueError(f"it has no {key}, or none of the right type")
