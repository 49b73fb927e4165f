"""The shards of a dataset that is being prepared, and the journal from which an interrupted preparation goes on."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from data.pieces import Cursor
from data.tokenize import Tokens
from data.tokenwriter import LostProgress, TokenWriter, write_index
from gpt.errors import InputError
from gpt.files import parse_object, write_text
from gpt.tokens.shard import DAMAGED
from gpt.tokens.tokenfile import open_tokens

JOURNAL = ".progress.json"
MAX_SHARDS = 10_000  # of a split; more are a mistake, and slow to open


class SplitShards:
    """The shards of one split: ``shard_tokens`` tokens each, but for the last.

    What is added after the last :meth:`commit` is gone after an interruption, and is added again.
    """

    def __init__(
        self,
        directory: Path,
        shard_tokens: int,
        about: dict[str, Any],
        state: dict[str, Any] | None,
    ):
        state = state or {"shards": [], "held": None, "from": {"cursor": None, "skip": 0}}
        self.directory = directory
        self.shard_tokens = shard_tokens
        self.about = about
        self.split = about["split"]
        self.shards = state["shards"]  # as the manifest describes them
        self.full: list[TokenWriter] = []  # finished shards whose raw files are still there
        self.begins = state["from"]  # the source's cursor at the shard's begin, and this split's tokens to skip there
        self.writer = self._open_writer(state["held"])

    @property
    def itemsize(self) -> int:
        """Bytes of a token."""
        return self.writer.dtype.itemsize

    @property
    def n_tokens(self) -> int:
        """Tokens so far."""
        return sum(shard["tokens"] for shard in self.shards) + self.writer.n_tokens

    def add(self, tokens: Tokens, cursor: Cursor | None) -> None:
        """Append the tokens that the source yields at ``cursor``, finishing shards as they fill up."""
        # The tokens may fill the rest of a shard, and several others.
        rest = tokens
        while len(rest.ids):
            if self.writer.n_tokens == self.shard_tokens:
                self._next_shard()
                n_skipped = len(tokens.ids) - len(rest.ids)
                self.begins = {"cursor": cursor, "skip": n_skipped}
            n_free = self.shard_tokens - self.writer.n_tokens
            fitting, rest = rest.split_at(n_free)
            self.writer.add(*fitting)

    def commit(self) -> dict[str, Any]:
        """Bring all to the disk; returns the state from which to go on."""
        return {
            "shards": self.shards,
            "held": self.writer.sync(),
            "from": self.begins,
        }

    def drop_full(self) -> None:
        """Delete the raw files of finished shards, once a journal says that they are."""
        while self.full:
            self.full.pop().drop()

    def finish(self) -> dict[str, Any]:
        """Finish the last shard, and make all appear as one file; returns the manifest's entry for the split."""
        # A single shard gets the name of the whole; several get an index.
        path = self.directory / f"{self.split}.h5"
        self._finish_shard()
        if len(self.shards) == 1:
            os.replace(self.writer.path, path)
            only = self.shards[0]
            only["file"] = path.name
            sha256 = only["sha256"]
        else:
            paths = [self.directory / shard["file"] for shard in self.shards]
            sha256 = write_index(path, paths)

        # The manifest has the whole, and each of its files.
        n_tokens = sum(shard["tokens"] for shard in self.shards)
        return {"tokens": n_tokens, "sha256": sha256, "shards": self.shards}

    def _open_writer(self, state: dict[str, Any] | None = None) -> TokenWriter:
        """Return the writer of the next shard, or with ``state`` of one that was interrupted."""
        number = len(self.shards)
        path = self.directory / f"{self.split}_{number:05d}.h5"
        return TokenWriter(path, **self.about, state=state)

    def _next_shard(self) -> None:
        """Finish a shard that is full, and begin another. Raises InputError for too many."""
        self._finish_shard()
        if len(self.shards) == MAX_SHARDS:
            raise InputError(
                f"data.shard_tokens={self.shard_tokens:,} makes more than {MAX_SHARDS:,} files of {self.split}",
                "raise it: 100_000_000 tokens are a file of 200 MB",
            )
        self.full.append(self.writer)
        self.writer = self._open_writer()

    def _finish_shard(self) -> None:
        counts_and_hashes = self.writer.finish()
        shard = {
            "file": self.writer.path.name,
            **counts_and_hashes,
            "from": self.begins,
        }
        self.shards.append(shard)


def write_journal(
    directory: Path,
    cursor: Cursor,
    revision: str | None,
    splits: dict[str, SplitShards],
) -> None:
    """Record the state from which to go on; the hash in front of it tells a damaged journal."""
    # First the tokens, then the journal that counts on them, and only then what it has made superfluous.
    states = {name: split.commit() for name, split in splits.items()}
    state = json.dumps({"cursor": cursor, "revision": revision, "splits": states})
    sha256 = hashlib.sha256(state.encode()).hexdigest()
    write_text(directory / JOURNAL, f"{sha256}\n{state}\n")
    for split in splits.values():
        split.drop_full()


def read_journal(directory: Path) -> dict[str, Any]:
    """Return the state of an interrupted preparation, or that of a new one. Raises LostProgress for a damaged one."""
    # Its first line is the hash of the second.
    path = directory / JOURNAL
    if not path.exists():
        return {"cursor": None, "revision": None, "splits": {}}
    try:
        sha256, _, state = path.read_text().rstrip("\n").partition("\n")
        journal = parse_object(state)
    except (OSError, ValueError) as error:
        raise LostProgress(f"{path} is damaged: {error}", DAMAGED) from error
    if hashlib.sha256(state.encode()).hexdigest() != sha256:
        raise LostProgress(f"{path} is damaged: it is not what was written", DAMAGED)

    # The shards that it counts on must be there.
    for split in journal["splits"].values():
        for shard in split["shards"]:
            try:
                open_tokens(directory / shard["file"])
            except InputError as error:
                raise LostProgress(error.problem, DAMAGED) from error
    return journal


def clear(directory: Path, pattern: str = ".*") -> None:
    """Delete what only an unfinished preparation needs, or all that matches."""
    for path in directory.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
