"""Read prepared data again and compare its hashes: python -m data.verify data=stdlib

Takes the overrides of data.prepare. Says of each file whether its tokens are what was written.
"""

import json
import sys
from pathlib import Path

from data.prepare import prepared_directory
from gpt import cli
from gpt.errors import InputError
from gpt.tokenfile import is_as_written, open_tokens


def verify(directory: Path) -> list[Path]:
    """The files whose tokens are not those that their attributes and the manifest say; prints each file.

    Raises InputError where there is no prepared data.
    """
    manifest, altered = directory / "manifest.json", []
    recorded = {}
    if manifest.exists():
        splits = json.loads(manifest.read_text())["splits"].values()
        recorded = {shard["file"]: shard["sha256"] for split in splits for shard in split["shards"]}
    for split in ("train", "val"):
        for shard in open_tokens(directory / f"{split}.h5").shards:
            path = Path(shard.path)
            is_fine, found = is_as_written(path)
            is_fine &= recorded.get(path.name, found) == found
            print(f"{path}  {shard.n_tokens:,} tokens  {'as written' if is_fine else 'ALTERED'}", flush=True)
            altered += [] if is_fine else [path]
    return altered


def main() -> None:
    from gpt.compose import compose  # above this room: only the command needs it

    if altered := verify(prepared_directory(compose(sys.argv[1:]).data)):
        raise InputError(
            f"altered since it was written: {', '.join(path.name for path in altered)}",
            "delete what is altered: python -m data.prepare with the same data makes it again, and nothing else",
        )


if __name__ == "__main__":
    sys.exit(cli.script(main, __doc__))
