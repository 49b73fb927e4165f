"""Preparing data: from a source to the token files of both splits, continuing where that was interrupted."""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.manifest import MANIFEST
from data.pieces import Cursor
from data.progress import Meter, check_room
from data.shards import JOURNAL, SplitShards, clear, read_journal, write_journal
from data.sources.base import Source, source_of
from data.sources.files import make_directory
from data.tokenize import release_memory
from data.tokenwriter import LostProgress
from data.verified import open_verified
from gpt.config.schema import Config, DataConfig
from gpt.console import say
from gpt.errors import InputError, TrainingError
from gpt.files import ROOT, lock_or_wait, write_text
from gpt.tokens.order import SampleOrder
from gpt.tokens.tokenfile import LAYOUT, TokenFile, open_tokens
from gpt.tokens.tokenizer import VOCAB_SIZES, get_tokenizer, prompt_ids
from gpt.tokens.windows import Windows, open_windows

NAMES = {"train": "training", "val": "validation"}
LIBRARIES = ("tiktoken", "gigatoken", "datasets", "h5py", "numpy")  # that can change the tokens
COMMIT_TOKENS = 1 << 22  # after which an interrupted preparation goes on


def prepare(data: DataConfig, chars: str | None = None) -> tuple[TokenFile | None, TokenFile]:
    """Return the training and the validation file of a source, prepared now if they are missing.

    With ``data.val_fraction=1`` all of it is for validation, and there is no training file. ``chars`` is the alphabet
    of a model that is to read the text; None takes that of the text. Raises InputError when the source cannot be read,
    has other characters, or the files are no pair of token files.
    """
    directory = Path(data.dir) if data.dir else _prepare_into_cache(data, chars)
    return open_prepared(data, directory)


def parts(data: DataConfig) -> list[str]:
    """Return the names of the splits that data is prepared as."""
    return ["val"] if data.val_fraction == 1 else list(NAMES)


def open_prepared(data: DataConfig, directory: Path) -> tuple[TokenFile | None, TokenFile]:
    """Open the training and the validation file in a directory. Raises InputError if they are not as written."""
    cache_dir = ROOT / data.cache_dir
    train = None
    if "train" in parts(data):
        train = open_verified(directory / "train.h5", cache_dir)
    val = open_verified(directory / "val.h5", cache_dir)
    if train is not None and train.vocabulary != val.vocabulary:
        raise InputError(
            f"{directory}: train.h5 and val.h5 have different tokenizers",
            "prepare them together",
        )
    return train, val


def vocab_size(data: DataConfig) -> int | None:
    """Return the size of the vocabulary, without preparing or fetching anything; None if that is not known yet."""
    if data.dir:
        return open_tokens(Path(data.dir) / "train.h5").vocab_size
    if data.tokenizer != "chars":
        return VOCAB_SIZES[data.tokenizer]
    alphabet = _source(data).alphabet
    return None if alphabet is None else len(alphabet)


def describe_tokenizer(config: Config) -> str | None:
    """Return a line about what the tokenizer does to the size of the model, for text that is still to be prepared."""
    data = config.data
    has_choice = data.dir is None and data.source not in ("bin", "arithmetic")
    if not has_choice or _is_whole(data, prepared_directory(data)):
        return None

    # A token is a row of the embedding; the tokenizer that was chosen comes first.
    names = sorted(VOCAB_SIZES, key=lambda name: name != data.tokenizer)
    choices = [] if data.tokenizer in names else [f"{data.tokenizer}: a token for each character of the text"]
    for name in names:
        label = name if name == data.tokenizer else f"data.tokenizer={name}"
        size = VOCAB_SIZES[name]
        choices.append(f"{label}: {size:,} tokens, {size * config.model.n_embd:,} parameters of {config.model.name}")
    return f"tokenizer   {'; '.join(choices)}"


def check_trains(data: DataConfig) -> None:
    """Refuse data of which nothing is for training. Raises InputError."""
    if "train" not in parts(data):
        raise InputError(
            f"data.val_fraction={data.val_fraction:g} leaves nothing to train on",
            "allowed: less than 1; eval.py and data.prepare take 1 too, for text that only evaluates",
        )


def check_fits(config: Config, train: TokenFile | None, val: TokenFile) -> None:
    """Refuse data without a window, without validation, or without the words of the prompt. Raises InputError."""
    seq_len = config.model.seq_len
    files = [val] if train is None else [train, val]

    # At least one packed window, however documents are cut.
    if train is not None:
        SampleOrder(config.data.seed, Windows(train, seq_len, config.data.read))

    # A vocabulary that its tokenizer knows.
    first = files[0]
    tokenizer = get_tokenizer(first.tokenizer, first.chars)
    if first.vocab_size != tokenizer.n_vocab:
        raise InputError(
            f"{first.path}: its attribute vocab_size is {first.vocab_size:,}, and its tokenizer {first.tokenizer} has "
            f"{tokenizer.n_vocab:,} tokens",
            "correct the one or the other; model.vocab_multiple makes the embedding larger",
        )

    # Documents, if windows need them, and something to validate on and to sample from.
    for file in files:
        open_windows(file, seq_len, config.data.documents, config.data.read).check_documents()
    if val.n_tokens < 2:
        raise InputError(
            f"{val.path} has {val.n_tokens} tokens, too few to validate on",
            "give more text, or a larger data.val_fraction",
        )
    prompt_ids(tokenizer, config.sample.prompt)


def prepared_directory(data: DataConfig) -> Path:
    """Return the directory of prepared data, which may not be there yet."""
    return Path(data.dir) if data.dir else _cache_directory(data, _source(data))


def _source(data: DataConfig) -> Source:
    return source_of(data, ROOT / data.cache_dir)


def _cache_directory(data: DataConfig, source: Source, chars: str | None = None) -> Path:
    """Return the directory of data that is prepared with its own alphabet, or with ``chars``."""
    about = [LAYOUT, data.tokenizer, data.val_fraction, data.shard_tokens, source.inputs()]
    if chars is not None:
        about.append(chars)
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    return ROOT / data.cache_dir / f"{data.name}-{data.tokenizer}-{key}"


def _prepare_into_cache(data: DataConfig, chars: str | None) -> Path:
    """Prepare the data unless that is done; returns its directory."""
    # Mostly it is there already; prepared with its own alphabet, it may have the one that is asked for.
    source = _source(data)
    directory = _cache_directory(data, source)
    make_directory(directory.parent)
    if _is_whole(data, directory) and (chars is None or open_tokens(directory / "val.h5").chars == chars):
        return directory
    if chars is not None:
        directory = _cache_directory(data, source, chars)
        if _is_whole(data, directory):
            return directory
        source.check_alphabet(chars)

    # One command prepares it, and others wait for that.
    with _only_one(directory):
        try:
            if not _is_whole(data, directory):  # nobody has prepared it meanwhile
                say(f"preparing {source.describe()} as {data.tokenizer} -> {directory}")
                _write(data, source, directory, chars)
        except InputError:
            # What came from a hub, as its revision says, stays: the network or a login may be what is wrong.
            if not (source.revision and (directory / JOURNAL).exists()):
                clear(directory, "*")
            raise
        except OSError as error:
            raise TrainingError(
                f"preparing {directory} ended: {error}\n  mend that and give the command again: it goes on where it was"
            ) from error
        finally:
            with contextlib.suppress(OSError):  # there is something in it
                directory.rmdir()
    return directory


def _is_whole(data: DataConfig, directory: Path) -> bool:
    names = [f"{split}.h5" for split in parts(data)]
    return all(os.path.exists(directory / name) for name in [*names, MANIFEST])  # False where a name is too long


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the directory, made if need be, for this process; others wait here."""
    while True:
        make_directory(directory)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            lock_or_wait(descriptor, f"another command prepares {directory}")
            is_ours = directory.exists() and os.path.samestat(os.fstat(descriptor), directory.stat())
            if is_ours:
                yield
                return
        finally:
            os.close(descriptor)
        # The process before has failed and removed the directory: make it once more.


def _write(data: DataConfig, source: Source, directory: Path, chars: str | None) -> None:
    """Write the shards of the splits, then the manifest, from where an interrupted preparation ended."""
    # Continue where an interrupted preparation ended, if what it left is sound.
    try:
        about, splits, cursor = _begin(data, source, directory, chars)
    except LostProgress as error:
        say(f"{error.problem}: the preparation begins anew")
        clear(directory, "*")
        about, splits, cursor = _begin(data, source, directory, chars)

    # Read, tokenize and write all of it.
    _add_tokens(data, source, about["chars"], directory, cursor, splits)
    for name, split in splits.items():
        if split.n_tokens == 0:
            raise InputError(
                f"data={data.name}: the {name} part of {source.describe()} would be empty",
                "give more text, or another data.val_fraction",
            )

    # The manifest comes last: with it, the data is whole.
    manifest = {
        "source": data.name,
        "of": source.describe(),
        "revision": source.revision,
        "val_fraction": data.val_fraction,
        "splits": {name: split.finish() for name, split in splits.items()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    write_text(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    clear(directory)
    counts = [f"{split['tokens']:,} {NAMES[name]} tokens" for name, split in manifest["splits"].items()]
    say(", ".join(counts))


def _begin(
    data: DataConfig, source: Source, directory: Path, chars: str | None
) -> tuple[dict[str, Any], dict[str, SplitShards], Cursor | None]:
    """Return the attributes of the token files, the splits as far as they are, and the source's cursor."""
    journal = read_journal(directory)
    source.revision = journal["revision"]
    source.resolve()
    about = _attributes(data, source, chars)
    splits = {}
    for name in parts(data):
        state = journal["splits"].get(name)
        splits[name] = SplitShards(directory, data.shard_tokens, about | {"split": name}, state)
    return about, splits, journal["cursor"]


def _attributes(data: DataConfig, source: Source, chars: str | None) -> dict[str, Any]:
    """Return the attributes that all token files of the data have in common."""
    if data.tokenizer == "chars" and chars is None:
        chars = source.read_alphabet()
    return {
        "tokenizer": data.tokenizer,
        "vocab_size": get_tokenizer(data.tokenizer, chars).n_vocab,
        "chars": chars,
        "source": data.name,
        "revision": source.revision,
        "has_mask": source.has_mask,
    }


def _add_tokens(
    data: DataConfig,
    source: Source,
    chars: str | None,
    directory: Path,
    cursor: Cursor | None,
    splits: dict[str, SplitShards],
) -> None:
    """Add the tokens of the source from ``cursor`` on, and commit them every few millions."""
    # Tokens of an interrupted preparation count, and are not committed twice.
    itemsize = splits["val"].itemsize
    n_tokens = sum(split.n_tokens for split in splits.values())
    n_committed = n_tokens
    is_checked = cursor is not None  # an interrupted preparation is not thrown away
    with Meter(n_tokens, itemsize) as meter:
        for tokens_by_split, after in source.tokens(cursor, chars):
            for name, split in splits.items():
                if name in tokens_by_split:  # which may also have a training split that nobody asked for
                    split.add(tokens_by_split[name], cursor)
            cursor = after

            # Progress on the terminal and, now and then, on the disk.
            n_tokens = sum(split.n_tokens for split in splits.values())
            share = source.share(cursor)
            meter.show(n_tokens, share)
            if n_tokens - n_committed >= COMMIT_TOKENS:
                if not is_checked:
                    check_room(directory, n_tokens, share, itemsize, data.shard_tokens)
                    is_checked = True
                write_journal(directory, cursor, source.revision, splits)
                n_committed = n_tokens
                release_memory()
