"""Turn text into token files.

    python -m data.prepare data=stdlib
    python -m data.prepare data=text data.files=[a.txt,'books/*.txt'] data.tokenizer=gpt2

Takes the overrides of train.py, and writes train.h5, val.h5 and manifest.json to a directory below data.cache_dir
that is named after the source, the tokenizer and a hash of all that went in. Given once, it is not made again.
"""

import fcntl
import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import stdlib, text
from data.shards import SplitShards, clear, missing_shards, read_journal, remake, write_journal, write_synced
from data.tokenize import Cursor, Tokens, batches, in_order, tokenize
from gpt import cli
from gpt.config import Config
from gpt.errors import InputError
from gpt.order import Order
from gpt.schema import DataConfig
from gpt.tokenfile import LAYOUT, TokenFile, open_tokens
from gpt.tokenizer import VOCAB_SIZES, get_tokenizer, prompt_ids

REPOSITORY = Path(__file__).parents[1]
NAMES = {"train": "training", "val": "validation"}
COMMIT_TOKENS = 1 << 22  # after which an interrupted preparation goes on


def prepare(data: DataConfig) -> tuple[TokenFile, TokenFile]:
    """The training and the validation file of a source, prepared now if they are not there yet.

    Raises InputError when the source cannot be read, or what lies there is no pair of token files.
    """
    if data.source == "prepared" and not data.dir:
        raise InputError(
            f"data={data.name} is not prepared from here",
            "prepare train.h5 and val.h5 first (docs/data.md), then give their directory: data.dir=DIR",
        )
    directory = Path(data.dir) if data.dir else _prepare_into_cache(data)
    train, val = (open_tokens(directory / f"{split}.h5") for split in ("train", "val"))
    if (train.tokenizer, train.vocab_size, train.chars) != (val.tokenizer, val.vocab_size, val.chars):
        raise InputError(f"{directory}: train.h5 and val.h5 have different tokenizers", "prepare them together")
    return train, val


def vocab_size(data: DataConfig) -> int | None:
    """How many tokens the vocabulary has, without preparing or fetching anything; None where that is not known yet."""
    if data.dir:
        return open_tokens(Path(data.dir) / "train.h5").vocab_size
    if data.tokenizer != "chars":
        return VOCAB_SIZES[data.tokenizer]
    if data.source == "text" and not data.files and not text.fetched(data, REPOSITORY / data.cache_dir).exists():
        return None
    return len(_alphabet(_files(data)))


def check_fits(config: Config, train: TokenFile, val: TokenFile) -> None:
    """The data must hold a window, something to validate on, and the words of the prompt. Raises InputError."""
    Order(config.seed, train.sha256, train.n_tokens, config.model.seq_len)
    if val.n_tokens < 2:
        raise InputError(f"{val.path} has {val.n_tokens} tokens, too few to validate on", "raise data.val_fraction")
    prompt_ids(get_tokenizer(train.tokenizer, train.chars), config.sample.prompt)


def prepared_directory(data: DataConfig) -> Path:
    """Where prepared data lies, or would lie."""
    return Path(data.dir) if data.dir else _cache_directory(data, _files(data))


def _cache_directory(data: DataConfig, files: list[Path]) -> Path:
    inputs = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    about = json.dumps([LAYOUT, data.tokenizer, data.val_fraction, data.shard_tokens, inputs])
    key = hashlib.sha256(about.encode()).hexdigest()[:12]
    return REPOSITORY / data.cache_dir / f"{data.name}-{data.tokenizer}-{key}"


def _prepare_into_cache(data: DataConfig) -> Path:
    files = _files(data)
    directory = _cache_directory(data, files)
    if _is_whole(directory) and not missing_shards(directory):
        return directory
    with _alone(directory):
        if _is_whole(directory):  # but for some shards, or another process has prepared it meanwhile
            _write_again(data, files, directory)
        else:
            print(f"preparing {len(files):,} files as {data.tokenizer} -> {directory}", flush=True)
            try:
                _write(data, files, directory)
            except InputError:
                clear(directory)
                if not any(directory.iterdir()):  # it failed before anything was whole
                    directory.rmdir()
                raise
    return directory


def _is_whole(directory: Path) -> bool:
    return all((directory / name).exists() for name in ("train.h5", "val.h5", "manifest.json"))


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory, made if need be, for this process; others wait here."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if directory.exists() and os.path.samestat(os.fstat(descriptor), directory.stat()):
                yield
                return
        finally:
            os.close(descriptor)  # and, where who held it has failed and removed it, once more


def _files(data: DataConfig) -> list[Path]:
    return stdlib.files() if data.source == "stdlib" else text.files(data, REPOSITORY / data.cache_dir)


def _write(data: DataConfig, files: list[Path], directory: Path) -> None:
    """The shards of both splits, then the manifest; where it was interrupted, it goes on."""
    about = _about(data, files)
    journal = read_journal(directory)
    splits = {
        name: SplitShards(directory, data.shard_tokens, about | {"split": name}, journal["splits"].get(name))
        for name in ("train", "val")
    }
    committed, before = sum(split.n_tokens for split in splits.values()), journal["cursor"]
    for results, cursor in _tokenized(data, files, about["chars"], before):
        for name, tokens in results.items():
            splits[name].add(tokens, before)
        before, n_tokens = cursor, sum(split.n_tokens for split in splits.values())
        if n_tokens - committed >= COMMIT_TOKENS:
            write_journal(directory, cursor, splits)
            committed = n_tokens
    for name, split in splits.items():
        if split.n_tokens == 0:
            raise InputError(
                f"data={data.name}: the {name} part of {len(files)} files would be empty",
                "give more text, or another data.val_fraction",
            )
    manifest = {
        "source": data.name,
        "files": len(files),
        "val_fraction": data.val_fraction,
        "splits": {name: split.finish() for name, split in splits.items()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("tiktoken", "gigatoken", "h5py", "numpy")},
    }
    write_synced(directory / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    clear(directory)
    said = (f"{split['tokens']:,} {NAMES[name]} tokens" for name, split in manifest["splits"].items())
    print(", ".join(said), flush=True)


def _about(data: DataConfig, files: list[Path]) -> dict[str, Any]:
    """What every token file of the data says of itself."""
    chars = _alphabet(files) if data.tokenizer == "chars" else None
    vocab_size = get_tokenizer(data.tokenizer, chars).n_vocab
    return {"tokenizer": data.tokenizer, "vocab_size": vocab_size, "chars": chars, "source": data.name}


def _tokenized(
    data: DataConfig, files: list[Path], chars: str | None, cursor: Cursor | None
) -> Iterator[tuple[dict[str, Tokens], Cursor]]:
    """The tokens of all documents from ``cursor`` on, by split, each time with the cursor after them."""
    work = functools.partial(tokenize, tokenizer=data.tokenizer, chars=chars, val_fraction=data.val_fraction)
    pieces = text.pieces(files, data.val_fraction, cursor)
    return in_order(batches(pieces), work, data.processes or len(os.sched_getaffinity(0)))


def _write_again(data: DataConfig, files: list[Path], directory: Path) -> None:
    """Make the shards that are missing, and no others."""
    about = _about(data, files)
    for split, shard in missing_shards(directory):
        print(f"{directory / shard['file']} is gone: it is made again", flush=True)
        source = _tokenized(data, files, about["chars"], shard["from"]["cursor"])
        tokens = (results[split] for results, _ in source if split in results)
        remake(directory, shard, about | {"split": split}, tokens)


def _alphabet(files: list[Path]) -> str:
    return "".join(sorted(set().union(*(block for path in files for block, _ in text.blocks(path)))))


def main() -> None:
    from gpt.compose import compose  # above this room: only the command needs it

    config = compose(sys.argv[1:])
    train, val = prepare(config.data)
    check_fits(config, train, val)
    for file in (train, val):
        print(f"{file.path}: {file.n_tokens:,} tokens, {file.tokenizer}, vocabulary {file.vocab_size:,}")


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__)
        sys.exit()
    sys.exit(cli.guard(main))
