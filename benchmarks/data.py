"""Preparing text and loading tokens, against the ways of the peers.

Preparing: one parquet file of documents, by build-nanogpt's pool of processes and by python -m data.prepare; and the
memory of the latter for little and much text. Loading: random windows through the Dataset, raw np.memmap and h5py, and
a DataLoader with one worker over one shard and fifty. The sample order at a billion samples.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import ROOT, alternate, arguments, report

N_TOKENS = 100_000_000
SEQ_LEN = 1024
BATCH = 32
BATCHES = 200
DOCUMENT = 4000  # bytes; FineWeb's mean
PREPARED_MB = 200
MEMORY_MB = (20, 2000)

ORDER_PROBE = """
import time, tracemalloc
from gpt.tokens.order import SampleOrder
from gpt.tokens.tokenfile import TokenFile
from gpt.tokens.windows import open_windows
file = TokenFile("", "<u2", 1_000_000_000 * 1024 + 1024, (), "bytes", 257, None, "x", False, False)
windows = open_windows(file, 1024, "packed", "mmap")
begun = time.perf_counter()
SampleOrder(1, windows).starts(123_456_789, 1)
milliseconds = (time.perf_counter() - begun) * 1000
tracemalloc.start()
order = SampleOrder(1, windows)
for i in range(0, 1_000_000_000, 50_000_000):
    order.starts(i, 512)
print(order.n_windows, milliseconds, tracemalloc.get_traced_memory()[1] / 2**20)
"""


def documents(megabytes: int) -> Iterator[str]:
    """Yield real text, the standard library and this system's documentation, in documents; repeated with a salt."""
    from data.sources.text import library

    paths = library() + [path for path in sorted(Path("/usr/share").rglob("*.txt")) if path.is_file()]
    texts = [path.read_text(errors="ignore") for path in paths]
    n_bytes = 0
    salt = 0
    while True:
        for text in texts:
            for start in range(0, len(text), DOCUMENT):
                yield f"{salt} {text[start : start + DOCUMENT]}"
                n_bytes += DOCUMENT
                if n_bytes > megabytes * 1e6:
                    return
        salt += 1


def write_parquet(path: Path, megabytes: int) -> None:
    """Write documents as FineWeb has them: in row groups of a thousand."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, pa.schema({"text": pa.string(), "id": pa.string()})) as writer:
        texts: list[str] = []
        for number, text in enumerate(documents(megabytes)):
            texts.append(text)
            if len(texts) == 1000:
                writer.write_table(pa.table({"text": texts, "id": [str(number)] * 1000}))
                texts = []
        writer.write_table(pa.table({"text": texts, "id": [""] * len(texts)}))


def tokenize(text: str):
    """Tokenize a document the way of build-nanogpt's fineweb.py."""
    import numpy as np
    import tiktoken

    tokenizer = tiktoken.get_encoding("gpt2")
    return np.array([tokenizer._special_tokens["<|endoftext|>"], *tokenizer.encode_ordinary(text)]).astype(np.uint16)


def pool(path: Path, to: Path) -> None:
    """Tokenize in a pool of two processes, a document at a time in chunks of 16, into a shard allocated before."""
    import numpy as np
    import pyarrow.parquet as pq

    def texts() -> Iterator[str]:
        for batch in pq.ParquetFile(path).iter_batches(256, columns=["text"]):
            yield from batch[0].to_pylist()

    shard = np.empty(N_TOKENS, np.uint16)
    count = 0
    with multiprocessing.Pool(2) as workers:
        for ids in workers.imap(tokenize, texts(), chunksize=16):
            shard[count : count + len(ids)] = ids
            count += len(ids)
    np.save(to / "train.npy", shard[:count])


def preparing(path: Path, scratch: Path) -> dict[str, Callable[[], float]]:
    """Return both ways as whole commands; each returns megabytes of text per second."""

    def timed(command: list[str]) -> float:
        shutil.rmtree(scratch / "out", ignore_errors=True)
        (scratch / "out").mkdir()
        begun = time.perf_counter()
        subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        return PREPARED_MB / (time.perf_counter() - begun)

    ours = [
        "-m",
        "data.prepare",
        "data=parquet",
        f"data.files=[{path}]",
        f"data.cache_dir={scratch}/out",
        "data.processes=2",
    ]
    return {
        "pool of 2, imap in chunks of 16": lambda: timed(
            [sys.executable, __file__, "--pool", str(path), f"{scratch}/out"]
        ),
        "data.prepare, data.processes=2": lambda: timed([sys.executable, *ours, "data.shard_tokens=100_000_000"]),
    }


def memory_of(megabytes: int, scratch: Path) -> float:
    """Return the peak memory (MB, resident, all processes together) of preparing so much text."""
    path = scratch / "text.txt"
    with open(path, "w") as file:
        file.writelines(documents(megabytes))
    command = [sys.executable, "-m", "data.prepare", "data=text", f"data.files=[{path}]", "data.tokenizer=gpt2",
               "data.processes=2", f"data.cache_dir={scratch}/out"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        now = sum(resident(pid) for pid in [process.pid, *children(process.pid)])
        most = max(most, now)
        time.sleep(0.05)
    assert process.returncode == 0
    shutil.rmtree(scratch / "out")
    path.unlink()
    return most / 2**20


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def resident(pid: int) -> int:
    """Return the bytes that a process holds; memory that it shares counts by its share."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def write_tokens(directory: Path, n_shards: int) -> Path:
    """Write random tokens in so many shards, the last shorter than the others."""
    import numpy as np

    from data.tokenwriter import TokenWriter, write_index

    draws = np.random.default_rng(1)
    left = N_TOKENS
    paths = []
    directory.mkdir()
    for number in range(n_shards):
        paths.append(directory / (f"train_{number:05}.h5" if n_shards > 1 else "train.h5"))
        about = {"tokenizer": "gpt2", "vocab_size": 50257, "chars": None, "source": "random", "split": "train"}
        with TokenWriter(paths[-1], **about) as writer:
            size = left if number == n_shards - 1 else N_TOKENS // n_shards + 1
            writer.add_document(draws.integers(0, 50257, size, np.uint16))
            left -= size
    if n_shards > 1:
        write_index(directory / "train.h5", paths)
    return directory / "train.h5"


def reading_speed(batch: Callable[[], Any]) -> float:
    """Read batches; return millions of tokens per second."""
    begun = time.perf_counter()
    for _ in range(BATCHES):
        assert batch().shape == (BATCH, SEQ_LEN + 1)
    return BATCHES * BATCH * (SEQ_LEN + 1) / (time.perf_counter() - begun) / 1e6


def open_dataset(path: Path, read: str) -> Any:
    """Return the Dataset of a token file, in the order of a run."""
    from gpt.tokens.loader import TokenDataset
    from gpt.tokens.order import SampleOrder
    from gpt.tokens.tokenfile import open_tokens
    from gpt.tokens.windows import open_windows

    return TokenDataset(SampleOrder(1, open_windows(open_tokens(path), SEQ_LEN, "packed", read)))


def loader_speed(path: Path) -> float:
    """Read with one worker; return millions of tokens per second, without its start."""
    from gpt.tokens.loader import OrderedSampler, micro_batches

    sampler = OrderedSampler(
        open_dataset(path, "mmap"),
        consumed=0,
        steps=10 + BATCHES * 5,
        stages=[(0, BATCH * SEQ_LEN)],
        micro_batch_size=BATCH,
        rank=0,
        world_size=1,
    )
    batches = micro_batches(sampler, num_workers=1, pin_memory=False)
    for _ in range(10):  # the worker has started
        next(batches)
    return sum(reading_speed(lambda: next(batches)) for _ in range(5)) / 5


def loading(path: Path, sharded: Path) -> dict[str, Callable[[], float]]:
    """Return the readers; each reads as many random windows as int64, and returns millions of tokens per second."""
    import h5py
    import numpy as np
    import torch

    from gpt.tokens.tokenfile import open_tokens

    file = open_tokens(path)
    raw = np.memmap(path, file.dtype, "r", file.shards[0].offset, (file.n_tokens,))
    sliced = h5py.File(path)["tokens"]
    draws = np.random.default_rng(0)
    position = 0

    def from_array(ids):
        starts = draws.integers(0, file.n_tokens - SEQ_LEN - 1, BATCH)
        batch = np.empty((BATCH, SEQ_LEN + 1), np.int64)
        for row, start in zip(batch, starts.tolist(), strict=True):
            row[:] = ids[start : start + SEQ_LEN + 1]
        return torch.from_numpy(batch)

    def from_memmap_as_nanogpt():
        starts = draws.integers(0, file.n_tokens - SEQ_LEN - 1, BATCH)
        return torch.stack([torch.from_numpy(raw[i : i + SEQ_LEN + 1].astype(np.int64)) for i in starts])

    def from_dataset(dataset):
        nonlocal position
        position += BATCH
        return dataset.__getitems__(range(position - BATCH, position))

    by_mmap = open_dataset(path, "mmap")
    by_pread = open_dataset(path, "pread")
    across = open_dataset(sharded, "mmap")
    return {
        "raw np.memmap": lambda: reading_speed(lambda: from_array(raw)),
        "raw np.memmap, astype and stack": lambda: reading_speed(from_memmap_as_nanogpt),
        "h5py slicing": lambda: reading_speed(lambda: from_array(sliced)),
        "Dataset, data.read=mmap": lambda: reading_speed(lambda: from_dataset(by_mmap)),
        "Dataset, data.read=pread": lambda: reading_speed(lambda: from_dataset(by_pread)),
        "Dataset, 50 shards": lambda: reading_speed(lambda: from_dataset(across)),
        "DataLoader, one worker, one shard": lambda: loader_speed(path),
        "DataLoader, one worker, 50 shards": lambda: loader_speed(sharded),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of preparing; loading takes three times as many")
    parser.add_argument("--pool", nargs=2, type=Path, help="the pool of processes alone: a parquet file, a directory")
    options = parser.parse_args()
    if options.pool:
        pool(*options.pool)
        return
    with tempfile.TemporaryDirectory() as scratch:
        # Preparing: the speed, then the memory.
        scratch = Path(scratch)
        write_parquet(scratch / "text.parquet", PREPARED_MB)
        prepared = alternate(preparing(scratch / "text.parquet", scratch), options.rounds)
        memory = {f"{size} MB": memory_of(size, scratch) for size in MEMORY_MB}

        # Loading the same tokens from one shard and from many.
        tokens = [write_tokens(scratch / str(n), n) for n in (1, 50)]
        loaded = alternate(loading(*tokens), 3 * options.rounds)

    # The order, in a process of its own.
    probe = subprocess.run([sys.executable, "-c", ORDER_PROBE], cwd=ROOT, capture_output=True, text=True, check=True)
    samples, first_ms, megabytes = map(float, probe.stdout.split())
    print(f"order of {samples:,.0f} samples: first index after {first_ms:.2f} ms, {megabytes:.1f} MB over the imports")
    print(f"memory of data.prepare by size of the text (MB): {json.dumps(memory)}")
    median = {name: spread["median"] for name, spread in (prepared | loaded).items()}
    ratios = {
        "prepare_over_pool": median["data.prepare, data.processes=2"] / median["pool of 2, imap in chunks of 16"],
        "prepare_megabytes": memory,
        "dataset_over_memmap": median["Dataset, data.read=mmap"] / median["raw np.memmap"],
        "dataset_over_h5py": median["Dataset, data.read=mmap"] / median["h5py slicing"],
        "pread_over_memmap": median["Dataset, data.read=pread"] / median["raw np.memmap"],
        "shards_50_over_1": median["Dataset, 50 shards"] / median["Dataset, data.read=mmap"],
        "order_first_index_ms": first_ms,
        "order_megabytes": megabytes,
    }
    report(
        prepared | loaded, ratios, "preparing: MB of text per second; loading: million tokens per second", options.json
    )


if __name__ == "__main__":
    main()
