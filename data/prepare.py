"""Turn text into token files.

    python -m data.prepare data=stdlib
    python -m data.prepare data=text data.files=[a.txt,'books/*.txt'] data.tokenizer=gpt2

Takes the overrides of train.py, and writes train.h5, val.h5 and manifest.json to a directory below data.cache_dir
that is named after the source, the tokenizer and a hash of all that went in. Given once, it is not made again.
"""

import fcntl
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tiktoken

from data import stdlib, text
from gpt import cli
from gpt.config import Config
from gpt.errors import InputError
from gpt.order import Order
from gpt.schema import DataConfig
from gpt.tokenfile import LAYOUT, TokenFile, TokenWriter, open_tokens
from gpt.tokenizer import VOCAB_SIZES, encode, end_of_text, get_tokenizer, prompt_ids

REPOSITORY = Path(__file__).parents[1]
MIN_DOCUMENTS_TO_HASH = 100  # with fewer, documents are not split by their hash but the text by position


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


def _prepare_into_cache(data: DataConfig) -> Path:
    cache_dir, files = REPOSITORY / data.cache_dir, _files(data)
    inputs = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps([LAYOUT, data.tokenizer, data.val_fraction, inputs]).encode()).hexdigest()[:12]
    directory = cache_dir / f"{data.name}-{data.tokenizer}-{key}"
    if _is_whole(directory):
        return directory
    with _alone(directory):
        if not _is_whole(directory):  # another process has prepared it meanwhile
            print(f"preparing {len(files):,} files as {data.tokenizer} -> {directory}", flush=True)
            try:
                _write(data, files, directory)
            finally:
                if not any(directory.iterdir()):  # it failed before anything was there
                    directory.rmdir()
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
    """Both token files, then the manifest."""
    chars = _alphabet(files) if data.tokenizer == "chars" else None
    tokenizer = get_tokenizer(data.tokenizer, chars)
    about = {"tokenizer": tokenizer.name, "vocab_size": tokenizer.n_vocab, "chars": chars, "source": data.name}
    splitter = _by_hash if len(files) >= MIN_DOCUMENTS_TO_HASH else _by_position
    with (
        TokenWriter(directory / "train.h5", **about, split="train") as train,
        TokenWriter(directory / "val.h5", **about, split="val") as val,
    ):
        for part, document, starts in splitter(files, data.val_fraction):
            writer = val if part == "val" else train
            writer.add_document(_tokens(tokenizer, document, starts))
        for writer in (train, val):
            if writer.n_tokens == 0:
                raise InputError(
                    f"data={data.name}: the {writer.attributes['split']} part of {len(files)} files would be empty",
                    "give more text, or another data.val_fraction",
                )
    manifest = {
        "source": data.name,
        "files": len(files),
        "val_fraction": data.val_fraction,
        "splits": {w.attributes["split"]: {"tokens": w.n_tokens, "sha256": w.sha256.hexdigest()} for w in (train, val)},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("tiktoken", "h5py", "numpy")},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{train.n_tokens:,} training tokens, {val.n_tokens:,} validation tokens", flush=True)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # not read_text, which would change line ends
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}", "convert it, or leave it out"
        ) from error


def _alphabet(files: list[Path]) -> str:
    return "".join(sorted(set().union(*(_read(path) for path in files))))


def _tokens(tokenizer: tiktoken.Encoding, document: str, starts: bool) -> np.ndarray:
    """Ids of a document; end-of-text goes in front where it starts, if the vocabulary has one."""
    ids, separator = encode(tokenizer, document), end_of_text(tokenizer)
    return np.concatenate([[separator], ids]) if starts and separator is not None else ids


def _by_hash(files: list[Path], val_fraction: float) -> Iterator[tuple[str, str, bool]]:
    """Documents as (part, text, whether it starts there), each wholly in the part that its hash says."""
    for path in files:
        document = _read(path)
        share = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
        yield ("val" if share < val_fraction else "train"), document, True


def _by_position(files: list[Path], val_fraction: float) -> Iterator[tuple[str, str, bool]]:
    """The same for few documents: the last ``val_fraction`` of all characters, cut inside a document."""
    documents = [_read(path) for path in files]
    left = int(sum(map(len, documents)) * (1 - val_fraction))
    for document in documents:
        head, tail = document[:left], document[left:]
        if head:
            yield "train", head, True
        if tail:
            yield "val", tail, not head
        left -= len(head)


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
