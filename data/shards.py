"""The shards of a dataset under way: what is written, and where an interrupted preparation goes on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.pieces import Cursor
from data.tokenize import Tokens
from gpt.errors import InputError
from gpt.tokenfile import TokenWriter, open_tokens, replace_synced, write_index

JOURNAL = ".progress.json"


class SplitShards:
    """The shards of one split: ``shard_tokens`` tokens each, but for the last.

    What is added after the last :meth:`commit` is gone after an interruption, and is added again.
    """

    def __init__(self, directory: Path, shard_tokens: int, about: dict[str, Any], state: dict[str, Any] | None):
        state = state or {"shards": [], "held": [0, 0], "from": {"cursor": None, "skip": 0}}
        self.directory, self.shard_tokens, self.about = directory, shard_tokens, about
        self.split, self.shards, self.full = about["split"], state["shards"], []
        self.begins = state["from"]  # where the source stands at the shard's begin, and this split's tokens to skip
        self.writer = self._writer(tuple(state["held"]))

    @property
    def itemsize(self) -> int:
        """Bytes of a token."""
        return self.writer.dtype.itemsize

    def _writer(self, held: tuple[int, int]) -> TokenWriter:
        path = self.directory / f"{self.split}_{len(self.shards):05d}.h5"
        return TokenWriter(path, **self.about, held=held)

    @property
    def n_tokens(self) -> int:
        """Tokens so far."""
        return sum(shard["tokens"] for shard in self.shards) + self.writer.n_tokens

    def add(self, tokens: Tokens, cursor: Cursor | None) -> None:
        """Append the tokens that the source gives at ``cursor``, finishing shards as they fill up."""
        left = tokens
        while len(left.ids):
            if self.writer.n_tokens == self.shard_tokens:
                self._next()
                self.begins = {"cursor": cursor, "skip": len(tokens.ids) - len(left.ids)}
            here, left = left.split_at(self.shard_tokens - self.writer.n_tokens)
            self.writer.add(*here)

    def _next(self) -> None:
        self._finish_shard()
        self.full.append(self.writer)
        self.writer = self._writer((0, 0))

    def _finish_shard(self) -> None:
        self.shards.append({"file": self.writer.path.name, **self.writer.finish(), "from": self.begins})

    def commit(self) -> dict[str, Any]:
        """Bring all to the disk; returns the state from which to go on."""
        return {"shards": self.shards, "held": self.writer.sync(), "from": self.begins}

    def drop_full(self) -> None:
        """Delete the raw files of finished shards, once a journal says that they are."""
        while self.full:
            self.full.pop().drop()

    def finish(self) -> dict[str, Any]:
        """Finish the last shard, and make all appear as one file; returns what the manifest says of the split."""
        path = self.directory / f"{self.split}.h5"
        self._finish_shard()
        if len(self.shards) == 1:
            os.replace(self.writer.path, path)
            self.shards[0]["file"], sha256 = path.name, self.shards[0]["sha256"]
        else:
            sha256 = write_index(path, [self.directory / shard["file"] for shard in self.shards])
        return {"tokens": sum(shard["tokens"] for shard in self.shards), "sha256": sha256, "shards": self.shards}


def missing_shards(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    """The shards that a finished dataset should have and has not, with their splits."""
    manifest = json.loads((directory / "manifest.json").read_text())
    return [
        (name, shard)
        for name, split in manifest["splits"].items()
        for shard in split["shards"]
        if not (directory / shard["file"]).exists()
    ]


def remake(directory: Path, shard: dict[str, Any], about: dict[str, Any], source: Iterable[Tokens]) -> None:
    """Write one shard anew from the tokens of its split, as the source gives them from where the shard says.

    Raises InputError where they are not what they were.
    """
    path, skip = directory / shard["file"], shard["from"]["skip"]
    with TokenWriter(path, **about) as writer:
        for tokens in source:
            _, tokens, skip = *tokens.split_at(skip), max(0, skip - len(tokens.ids))
            writer.add(*tokens.split_at(shard["tokens"] - writer.n_tokens)[0])
            if writer.n_tokens == shard["tokens"]:
                break
    if open_tokens(path).sha256 != shard["sha256"]:
        path.unlink()
        raise InputError(f"{path} cannot be made again: the text is other than it was", f"delete {directory}")


def write_journal(directory: Path, cursor: Cursor, revision: str | None, splits: dict[str, SplitShards]) -> None:
    """Say from where to go on."""
    held = {name: split.commit() for name, split in splits.items()}
    state = {"cursor": cursor, "revision": revision, "splits": held}
    write_synced(directory / JOURNAL, json.dumps(state))
    for split in splits.values():
        split.drop_full()


def read_journal(directory: Path) -> dict[str, Any]:
    """Where an interrupted preparation goes on, or where a new one begins."""
    path = directory / JOURNAL
    return json.loads(path.read_text()) if path.exists() else {"cursor": None, "revision": None, "splits": {}}


def clear(directory: Path) -> None:
    """Delete what only an unfinished preparation needs."""
    for path in directory.glob(".*"):
        path.unlink()


def write_synced(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    replace_synced(part, path)
