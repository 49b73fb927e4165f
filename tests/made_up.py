"""Directories of runs as training leaves them, without training."""

import copy
import functools
import json
import tempfile
from pathlib import Path

from gpt.cli.compose import compose
from gpt.config.load import save
from gpt.config.schema import Config
from gpt.rundir import write_result

compose = functools.cache(lambda *overrides, compose=compose: compose(list(overrides)))


@functools.cache
def saved_config(overrides: tuple[str, ...], seed: int) -> tuple[Config, str]:
    """A config, and the text that a run saves of it."""
    config = copy.deepcopy(compose(*overrides))
    config.seed = seed
    if not any(override.startswith("data.seed") for override in overrides):
        config.data.seed = seed
    with tempfile.TemporaryDirectory() as directory:
        save(config, Path(directory, "config.yaml"))
        return config, Path(directory, "config.yaml").read_text()


def make_run(path, *overrides, seed=1, loss=3.0, status="done", tokens=1000, n=10, evaluated=True, **result):
    """A run's directory as training leaves it, with made-up losses that fall to ``loss``."""
    config, text = saved_config(overrides, seed)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(text)
    rows = []
    for i in range(1, n + 1):
        row = {"step": i, "tokens": i * tokens // n, "train/loss": loss + 0.5 * (n - i) / i,
               "perf/tokens_per_sec": 100.0 if i > 1 else 10.0}  # fmt: skip
        if evaluated and i % 2 == 0:
            row["val/loss"] = loss + (n - i) / i
        rows.append(row)
    if rows:
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status in ("done", "interrupted"):
        whole = {
            "status": status, "step": n, "tokens": tokens, "val_loss": loss, "flops_per_token": 6, "val_targets": 500,
            "peak_memory_bytes": 2**30, "tokenizer": {"name": "bytes", "vocab_size": 257, "chars": None},
            "data_fingerprint": "aa-bb", "data_order_hash": f"{config.data.seed} {tokens}", "seconds": 1.0,
        }  # fmt: skip
        known = {key: value for key, value in (whole | result).items() if value is not None}
        write_result(path, known)
    elif status == "failed":
        write_result(path, {"status": status, "seconds": 1.0})
    return path
