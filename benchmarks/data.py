"""Random windows through the Dataset against a raw np.memmap, and the sample order at a billion samples."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, alternate, arguments, report

N_TOKENS = 100_000_000
SEQ_LEN = 1024
BATCH = 32
BATCHES = 200

ORDER_PROBE = """
import time, tracemalloc
from gpt.order import Order
begun = time.perf_counter()
Order(1, "x", 1_000_000_000 * 1024 + 1024, 1024).starts(123_456_789, 1)
milliseconds = (time.perf_counter() - begun) * 1000
tracemalloc.start()
order = Order(1, "x", 1_000_000_000 * 1024 + 1024, 1024)
for i in range(0, 1_000_000_000, 50_000_000):
    order.starts(i, 512)
print(order.n_windows, milliseconds, tracemalloc.get_traced_memory()[1] / 2**20)
"""


def contestants(path: Path) -> dict:
    """Each reads the same number of random windows as int64 and returns millions of tokens per second."""
    import numpy as np
    import torch

    from gpt.dataset import TokenDataset
    from gpt.order import Order
    from gpt.tokenfile import open_tokens

    file = open_tokens(path)
    raw = np.memmap(path, file.dtype, "r", file.shards[0].offset, (file.n_tokens,))
    draws = np.random.default_rng(0)
    position = 0

    def timed(batch) -> float:
        begun = time.perf_counter()
        for _ in range(BATCHES):
            assert batch().shape == (BATCH, SEQ_LEN + 1)
        return BATCHES * BATCH * (SEQ_LEN + 1) / (time.perf_counter() - begun) / 1e6

    def from_memmap():
        starts = draws.integers(0, file.n_tokens - SEQ_LEN - 1, BATCH)
        batch = np.empty((BATCH, SEQ_LEN + 1), np.int64)
        for row, start in zip(batch, starts.tolist(), strict=True):
            row[:] = raw[start : start + SEQ_LEN + 1]
        return torch.from_numpy(batch)

    def from_memmap_as_nanogpt():
        starts = draws.integers(0, file.n_tokens - SEQ_LEN - 1, BATCH)
        return torch.stack([torch.from_numpy(raw[i : i + SEQ_LEN + 1].astype(np.int64)) for i in starts])

    def from_dataset(dataset):
        nonlocal position
        position += BATCH
        return dataset.__getitems__(range(position - BATCH, position))

    datasets = {read: TokenDataset(file, Order(1, "x", file.n_tokens, SEQ_LEN), read) for read in ("mmap", "pread")}
    return {
        "raw np.memmap": lambda: timed(from_memmap),
        "raw np.memmap, astype and stack": lambda: timed(from_memmap_as_nanogpt),
        "Dataset, data.read=mmap": lambda: timed(lambda: from_dataset(datasets["mmap"])),
        "Dataset, data.read=pread": lambda: timed(lambda: from_dataset(datasets["pread"])),
    }


def main() -> None:
    options = arguments(__doc__).parse_args()
    import numpy as np

    from gpt.tokenfile import TokenWriter

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "random.h5"
        about = {"tokenizer": "gpt2", "vocab_size": 50_257, "chars": None, "source": "random", "split": "train"}
        with TokenWriter(path, **about) as writer:
            writer.add_document(np.random.default_rng(1).integers(0, 50_257, N_TOKENS, dtype=np.uint16))
        figures = alternate(contestants(path), rounds=15)
    probe = subprocess.run([sys.executable, "-c", ORDER_PROBE], cwd=ROOT, capture_output=True, text=True, check=True)
    samples, first_ms, megabytes = map(float, probe.stdout.split())
    print(f"order of {samples:,.0f} samples: first index after {first_ms:.2f} ms, {megabytes:.1f} MB over the imports")
    median = {name: spread["median"] for name, spread in figures.items()}
    ratios = {
        "dataset_over_memmap": median["Dataset, data.read=mmap"] / median["raw np.memmap"],
        "pread_over_memmap": median["Dataset, data.read=pread"] / median["raw np.memmap"],
        "order_first_index_ms": first_ms,
        "order_megabytes": megabytes,
    }
    report(figures, ratios, "million tokens per second", options.json)


if __name__ == "__main__":
    main()
