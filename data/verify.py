"""Read prepared data again and compare its hashes: python -m data.verify data=stdlib

Takes the overrides of data.prepare. Says of each file whether its tokens are what was written.
"""

import sys
from pathlib import Path

from data.manifest import recorded_shards
from data.preparation import prepared_directory
from gpt.cli import command
from gpt.errors import InputError
from gpt.tokens.tokenfile import open_tokens, read_shard


def verify(directory: Path) -> list[Path]:
    """The files whose tokens are not those that their attributes and the manifest say; prints each file.

    Raises InputError where there is no prepared data.
    """
    recorded, altered = recorded_shards(directory), []
    for split in ("train", "val"):
        for shard in open_tokens(directory / f"{split}.h5").shards:
            path = Path(shard.path)
            _, damage = read_shard(path, recorded.get(path.name, {}))
            said = f"ALTERED: {damage}" if damage else "as written"
            print(f"{path}  {shard.n_tokens:,} tokens  {said}", flush=True)
            altered += [path] if damage else []
    return altered


def main() -> None:
    from gpt.cli.compose import compose  # above this room: only the command needs it

    if altered := verify(prepared_directory(compose(sys.argv[1:]).data)):
        raise InputError(
            f"altered since it was written: {', '.join(path.name for path in altered)}",
            "delete what is altered: python -m data.prepare with the same data makes it again, and nothing else",
        )


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
