"""Write prepared data as nanoGPT or llm.c read it: python -m data.export data=stdlib format=nanogpt to=DIR

    format=nanogpt   train.bin and val.bin: the tokens, uint16
    format=llmc      NAME_train_000000.bin …, NAME_val_000000.bin: one per shard, with llm.c's header

Takes the overrides of data.prepare, and prepares the data if need be. The tokens are those that training reads.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.preparation import check_trains, prepare
from data.sources.tokenbin import HEADER, MAGIC, VERSION
from gpt.cli import command
from gpt.cli.arguments import split_arguments
from gpt.cli.compose import compose
from gpt.config.values import check_names
from gpt.errors import InputError
from gpt.tokens.shard import BLOCK
from gpt.tokens.tokenfile import TokenFile


class Part(NamedTuple):
    """A file to write: a header, then the tokens of a token file from ``begin`` to ``end``."""

    path: Path
    header: bytes
    file: TokenFile
    begin: int
    end: int


def _nanogpt_parts(split: str, file: TokenFile, name: str, to: Path) -> list[Part]:
    path = to / f"{split}.bin"
    return [Part(path, b"", file, 0, file.n_tokens)]


def _llmc_parts(split: str, file: TokenFile, name: str, to: Path) -> list[Part]:
    # llm.c knows no index: each shard is a file with a header of its own.
    parts = []
    begin = 0
    for number, shard in enumerate(file.shards):
        header = np.zeros(HEADER, "<i4")
        header[:3] = [MAGIC, VERSION, shard.n_tokens]
        end = begin + shard.n_tokens
        path = to / f"{name}_{split}_{number:06d}.bin"
        parts.append(Part(path, header.tobytes(), file, begin, end))
        begin = end
    return parts


MOST_NAMED = 4  # files in a command
FORMATS = {"nanogpt": _nanogpt_parts, "llmc": _llmc_parts}


def export(files: tuple[TokenFile, TokenFile], name: str, form: str, to: Path) -> list[Path]:
    """Write both splits to a directory; returns the files. Raises InputError for ids that two bytes cannot hold."""
    train, val = files
    if train.vocab_size > 1 << 16:
        raise InputError(
            f"a vocabulary of {train.vocab_size:,} does not fit uint16",
            "allowed: up to 65,536 tokens",
        )
    # All files are known, and known to be new, before the first is written.
    parts_of = FORMATS[form]
    parts = parts_of("train", train, name, to) + parts_of("val", val, name, to)
    try:
        to.mkdir(parents=True, exist_ok=True)
        for part in parts:
            if part.path.exists():
                raise InputError(
                    f"{part.path} is there already",
                    "delete it, or take another directory: to=DIR",
                )
        for part in parts:
            _write(part)
    except OSError as error:
        raise InputError(
            f"{to} cannot be written: {error}",
            "choose another with to=DIR",
        ) from error
    return [part.path for part in parts]


def _write(part: Part) -> None:
    """Write a file, whole or not at all."""
    # Under another name first, block by block.
    read = part.file.reader()
    unfinished = part.path.with_name(f".{part.path.name}.part")
    try:
        with open(unfinished, "wb") as out:
            out.write(part.header)
            for start in range(part.begin, part.end, BLOCK):
                stop = min(part.end, start + BLOCK)
                ids = read(start, stop)
                out.write(ids.astype("<u2", copy=False).tobytes())
        os.replace(unfinished, part.path)
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    own, overrides = split_arguments(sys.argv[1:], {"format": None, "to": None})
    check_names("format", own["format"], list(FORMATS))
    if not isinstance(own["to"], str) or not own["to"]:
        raise InputError("no directory to write to is given", "give one: to=DIR")
    config = compose(overrides)
    check_trains(config.data)
    to = Path(own["to"]).expanduser()
    files = prepare(config.data)
    paths = export(files, config.data.name, own["format"], to)
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")
    print(_how_to_read(paths, files[0].tokenizer))


def _how_to_read(paths: list[Path], tokenizer: str) -> str:
    """Return the command that trains on exported files, which do not say themselves what made their ids."""
    if tokenizer == "chars":
        return "data=bin cannot read them: they do not hold the characters of their ids"
    listed = shlex.quote(f"data.files=[{','.join(map(str, paths[:MOST_NAMED]))}]")
    if len(paths) > MOST_NAMED:
        listed = shlex.quote(f"data.files={paths[0].parent}/*.bin")
    return f"to train on them: python train.py data=bin {listed} data.tokenizer={tokenizer}"


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
