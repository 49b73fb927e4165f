"""Write prepared data as nanoGPT or llm.c read it: python -m data.export data=stdlib format=nanogpt to=DIR

    format=nanogpt   train.bin and val.bin: the tokens, uint16
    format=llmc      NAME_train_000000.bin …, NAME_val_000000.bin: one per shard, with llm.c's header

Takes the overrides of data.prepare, and prepares the data if need be. The tokens are those that training reads.
"""

import os
import sys
from pathlib import Path

import numpy as np

from data.preparation import prepare
from data.sources.tokenbin import HEADER, MAGIC, VERSION
from gpt.cli import command
from gpt.config.checks import check_names
from gpt.errors import InputError
from gpt.tokens.tokenfile import BLOCK, TokenFile

FORMATS = ["nanogpt", "llmc"]


def export(files: tuple[TokenFile, TokenFile], name: str, form: str, to: Path) -> list[Path]:
    """Write both splits to a directory; returns the files. Raises InputError for ids that two bytes cannot hold."""
    if files[0].vocab_size > 1 << 16:
        raise InputError(f"a vocabulary of {files[0].vocab_size:,} does not fit uint16", "allowed: up to 65,536 tokens")
    parts = []  # path, first token and end, header
    for split, file in zip(("train", "val"), files, strict=True):
        if form == "nanogpt":
            parts.append((to / f"{split}.bin", file, 0, file.n_tokens, b""))
            continue
        begin = 0
        for number, shard in enumerate(file.shards):
            header = np.zeros(HEADER, "<i4")
            header[:3] = MAGIC, VERSION, shard.n_tokens
            path = to / f"{name}_{split}_{number:06d}.bin"
            parts.append((path, file, begin, begin + shard.n_tokens, header.tobytes()))
            begin += shard.n_tokens
    written = [path for path, *_ in parts]
    try:
        to.mkdir(parents=True, exist_ok=True)
        if there := [path for path in written if path.exists()]:
            raise InputError(f"{there[0]} is there already", "delete it, or take another directory: to=DIR")
        for part in parts:
            write(*part)
    except OSError as error:
        raise InputError(f"{to} cannot be written: {error}", "choose another with to=DIR") from error
    return written


def write(path: Path, file: TokenFile, begin: int, end: int, header: bytes) -> None:
    """Tokens from begin to end, whole or not at all."""
    ids, part = file.reader(), path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as out:
            out.write(header)
            for start in range(begin, end, BLOCK):
                out.write(ids(start, min(end, start + BLOCK)).astype("<u2", copy=False).tobytes())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main() -> None:
    from gpt.cli.compose import compose, parse  # above this room: only the command needs it

    own = {o.key_or_group: o.value() for o in parse(sys.argv[1:]) if o.key_or_group in ("format", "to")}
    check_names("format", own.get("format"), FORMATS)
    if not isinstance(own.get("to"), str) or not own["to"]:
        raise InputError("no directory to write to is given", "give one: to=DIR")
    config = compose([a for a in sys.argv[1:] if a.partition("=")[0] not in own])
    to = Path(own["to"]).expanduser()
    for path in export(prepare(config.data), config.data.name, own["format"], to):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
