"""Steps that are in the files that W&B's package writes offline: runs that were interrupted have several.

The package itself has no reader for them. They are LevelDB logs: blocks of 32 KiB, in these chunks with a header of
checksum, length and kind, and chunks make up records (github.com/google/leveldb, doc/log_format.md).
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER = 7  # bytes: ":W&B", a magic number, a version
BLOCK = 32 * 1024
CHUNK = struct.Struct("<IHB")  # checksum, length, kind

# Kinds of chunks: a whole record, or a part of one.
WHOLE = 1
FIRST = 2
MIDDLE = 3
LAST = 4


def _records(path: Path) -> Iterator[Record]:
    """Yield the records of a file, up to where it was cut off, if it was."""
    data = path.read_bytes()
    position = FILE_HEADER
    parts = b""
    while position + CHUNK.size <= len(data):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < CHUNK.size:  # too little for another header
            position += left_in_block
            continue
        _, length, kind = CHUNK.unpack_from(data, position)
        position += CHUNK.size
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or position + length > len(data):
            return
        # Join the parts of a record.
        if kind in (WHOLE, FIRST):
            parts = b""
        parts += data[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def _history(path: Path) -> Iterator[dict]:
    """Yield the rows of history in a file."""
    for record in _records(path):
        if record.WhichOneof("record_type") == "history":
            row = {}
            for item in record.history.item:
                row[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            yield row


def logged_steps(home: Path, run_id: str) -> list[int]:
    """Return the steps of a W&B run in all its offline files below a directory."""
    steps = []
    for path in home.glob(f"offline-run-*/run-{run_id}.wandb"):
        steps += [row["_step"] for row in _history(path)]
    return steps
