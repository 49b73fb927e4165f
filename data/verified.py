"""Token files whose tokens are what was written: read once per change of a file, and remembered."""

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
from gpt.tokens.tokenfile import DAMAGED, Contents, Shard, TokenFile, check_ids, open_tokens, read_shards

NOTES = ".verified"  # below data.cache_dir, because data.dir may be read-only
LARGE = 1 << 30  # bytes that take long enough to be worth a line on the terminal


def open_verified(path: Path, cache_dir: Path) -> TokenFile:
    """Open a token file that holds what its attributes and the manifest say.

    Its tokens are all read where one of its files has changed since this was last done. Raises InputError.
    """
    known: dict[tuple[Shard, ...], Contents] = {}

    def contents(shards: tuple[Shard, ...]) -> Contents:
        if shards not in known:
            known[shards] = _contents(Path(path).resolve(), shards, cache_dir / NOTES)
        return known[shards]

    file = open_tokens(path, contents)
    held = contents(file.shards)
    if held.sha256 != file.sha256:
        raise InputError(f"{file.path} is damaged: its tokens are not those that were written (sha256)", DAMAGED)
    check_ids(file.path, held, file.vocab_size)
    return file


def _contents(path: Path, shards: tuple[Shard, ...], notes: Path) -> Contents:
    """What the shards of a token file hold: as noted, or read now and noted."""
    note, files = notes / f"{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.json", _state(path, shards)
    if held := _noted(note, files):
        return held
    with _alone(note.with_suffix(".lock"), path):
        if held := _noted(note, files):  # by another run, which has started at the same time
            return held
        size = sum(Path(shard.path).stat().st_size for shard in shards)
        if size > LARGE:
            say(f"verifying {path}, {size / 1e9:,.1f} GB: once, until it changes")
        held = read_shards(shards, recorded_shards(path.parent))
        with contextlib.suppress(OSError):  # read-only: it is read each time
            write_json(note, {"layout": LAYOUT, "files": files, **held._asdict()})
    return held


def _state(path: Path, shards: tuple[Shard, ...]) -> dict[str, list[int]]:
    """What changes when a file does."""
    paths = {str(path), str(path.parent / MANIFEST), *(shard.path for shard in shards)}
    stats = {name: os.stat(name) for name in sorted(paths) if os.path.exists(name)}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats.items()}


def _noted(note: Path, files: dict[str, Any]) -> Contents | None:
    try:
        content = parse_object(note.read_text())
        if content["layout"] != LAYOUT or content["files"] != files:
            return None
        held = Contents(*(content[name] for name in Contents._fields))
    except (OSError, ValueError, KeyError):  # not there, or damaged: the files are read again
        return None
    return held if [type(value) for value in held] == [str, int, int] else None


@contextlib.contextmanager
def _alone(lock: Path, path: Path) -> Iterator[None]:
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
