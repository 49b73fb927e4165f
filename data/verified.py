"""Token files that hold what was written: read once per change of a file, and remembered."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.manifest import MANIFEST, recorded_shards
from gpt.console import say
from gpt.errors import InputError
from gpt.files import LAYOUT, lock_or_wait, parse_object, write_json
from gpt.tokens.shard import DAMAGED, Contents, Shard, read_shards
from gpt.tokens.tokenfile import TokenFile, check_ids, open_tokens

NOTES = ".verified"  # below data.cache_dir, because data.dir may be read-only
LARGE = 1 << 30  # bytes that take long enough to be worth a line on the terminal


def open_verified(path: Path, cache_dir: Path) -> TokenFile:
    """Open a token file whose tokens are those that its attributes and the manifest describe.

    They are all read where one of its files has changed since this was last done. Raises InputError.
    """
    cache: dict[tuple[Shard, ...], Contents] = {}

    def contents_of(shards: tuple[Shard, ...]) -> Contents:
        if shards not in cache:
            notes = cache_dir / NOTES
            cache[shards] = _contents(Path(path).resolve(), shards, notes)
        return cache[shards]

    # Opening may ask for the contents too, where the file's attributes do not have them.
    file = open_tokens(path, contents_of)
    contents = contents_of(file.shards)
    if contents.sha256 != file.sha256:
        raise InputError(
            f"{file.path} is damaged: its tokens are not those that were written (sha256)",
            DAMAGED,
        )
    check_ids(file.path, contents, file.vocab_size)
    return file


def _contents(path: Path, shards: tuple[Shard, ...], notes: Path) -> Contents:
    """Return the contents of a token file's shards: as noted, or read now and noted."""
    # A note is valid for the versions of the files that it was made of.
    key = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    note = notes / f"{key}.json"
    versions = _file_versions(path, shards)
    contents = _read_note(note, versions)
    if contents is not None:
        return contents

    # No valid note: read all tokens, one process at a time.
    with _only_one(note.with_suffix(".lock"), path):
        contents = _read_note(note, versions)  # by another run, which has started at the same time
        if contents is not None:
            return contents
        size = sum(Path(shard.path).stat().st_size for shard in shards)
        if size > LARGE:
            say(f"verifying {path}, {size / 1e9:,.1f} GB: once, until it changes")
        contents = read_shards(shards, recorded_shards(path.parent))
        content = {
            "layout": LAYOUT,
            "files": versions,
            **contents._asdict(),
        }
        with contextlib.suppress(OSError):  # read-only: it is read each time
            write_json(note, content)
    return contents


def _file_versions(path: Path, shards: tuple[Shard, ...]) -> dict[str, list[int]]:
    """Return size, time and inode of each file: they change when its content does."""
    names = {str(path), str(path.parent / MANIFEST)}
    names.update(shard.path for shard in shards)
    versions = {}
    for name in sorted(names):
        if os.path.exists(name):  # there need not be a manifest
            stat = os.stat(name)
            versions[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return versions


def _read_note(note: Path, versions: dict[str, Any]) -> Contents | None:
    """Return the contents that were noted of these versions; None if there is no such note."""
    try:
        content = parse_object(note.read_text())
        if content["layout"] != LAYOUT or content["files"] != versions:
            return None
        contents = Contents(
            sha256=content["sha256"],
            min_id=content["min_id"],
            max_id=content["max_id"],
        )
    except (OSError, ValueError, KeyError):  # missing, or damaged: the files are read again
        return None

    # JSON has no types of its own.
    kinds = [type(value) for value in contents]
    return contents if kinds == [str, int, int] else None


@contextlib.contextmanager
def _only_one(lock: Path, path: Path) -> Iterator[None]:
    """Let one process verify a file while others wait; where nothing can be written, each does it for itself."""
    descriptor = None
    with contextlib.suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o666)
        lock_or_wait(descriptor, f"another command verifies {path}")
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
