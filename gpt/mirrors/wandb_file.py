"""Which steps are in the files that W&B's package writes offline: runs that were interrupted have several.

The package itself has no reader for them. They are LevelDB logs: blocks of 32 KiB, in these chunks with a header of
checksum, length and kind, and of the chunks come records (github.com/google/leveldb, doc/log_format.md).
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER = 7  # bytes: ":W&B", a magic number, a version
BLOCK = 32 * 1024
CHUNK = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """The records of a file, up to where it was cut off, if it was."""
    data, position, parts = path.read_bytes(), FILE_HEADER, b""
    while position + CHUNK.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < CHUNK.size:  # too little for another header
            position += left
            continue
        _, length, kind = CHUNK.unpack_from(data, position)
        position += CHUNK.size
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or position + length > len(data):
            return
        parts = (b"" if kind in (WHOLE, FIRST) else parts) + data[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def history(path: Path) -> Iterator[dict]:
    """The rows of history in a file."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def logged_steps(home: Path, run_id: str) -> list[int]:
    """The steps of a W&B run in all its offline files below a directory."""
    return [row["_step"] for path in home.glob(f"offline-run-*/run-{run_id}.wandb") for row in history(path)]
