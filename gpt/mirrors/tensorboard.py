"""Copy runs into files for TensorBoard: python -m gpt.mirrors.tensorboard DIR…

DIR is the output directory of a run, or of a sweep, or any other that has runs directly below it. The files are written
anew from the run's logs, into DIR/tensorboard, with curves against tokens. With tracker=tensorboard the same code runs
beside the training. To look at them: tensorboard --logdir DIR
"""

import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from gpt.cli import command
from gpt.console import say
from gpt.mirrors.follow import already_over, beside_run, check_readable, follow, runs_in, watch_training
from gpt.rundir import HISTOGRAMS, SAMPLES
from gpt.tracker.logs import Tail, parse_samples
from gpt.tracker.mirror import PATIENCE, how_to_send_rest

DIRECTORY = "tensorboard"
USAGE = "python -m gpt.mirrors.tensorboard DIR…"


def _copy(run_dir: Path, over: threading.Event) -> None:
    """Write what the logs hold until the run is over. Steps that a resumed run repeats are in them once."""
    shutil.rmtree(run_dir / DIRECTORY, ignore_errors=True)
    histograms = Tail(run_dir / HISTOGRAMS)
    samples = Tail(run_dir / SAMPLES)
    waiting: dict[int, dict[str, Any]] = {}  # histograms whose row has not been read yet, by step
    tokens: dict[int, int] = {}  # by step
    with SummaryWriter(str(run_dir / DIRECTORY)) as writer:
        for row in follow(run_dir, over):
            step = row["step"]
            tokens[step] = row["tokens"]
            for key in row.keys() - {"tokens"}:
                if row[key] is not None:
                    writer.add_scalar(key, row[key], row["tokens"])
            # A step's histograms are written before its row.
            waiting |= histograms.histograms()
            for key, histogram in waiting.pop(step, {}).items():
                _add_histogram(writer, key, histogram, row["tokens"])
        # Samples come last: samples.txt is small, and read whole.
        for step, sample in parse_samples(samples.text()):
            if step in tokens:
                as_code = f"```\n{sample}\n```"
                writer.add_text("sample", as_code, tokens[step])


def _add_histogram(writer: SummaryWriter, key: str, histogram: dict[str, Any], tokens: int) -> None:
    """Add counts in bins of equal width; the moments are those of the middles of the bins."""
    counts = np.array(histogram["counts"])
    low = histogram["min"]
    high = histogram["max"]
    edges = np.linspace(low, high, len(counts) + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    writer.add_histogram_raw(
        key,
        min=low,
        max=high,
        num=int(counts.sum()),
        sum=float(counts @ middles),
        sum_squares=float(counts @ middles**2),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=tokens,
    )


def _beside(run_dir: Path) -> None:
    """Mirror the run whose training has started this process."""
    rest = how_to_send_rest("gpt.mirrors.tensorboard", run_dir)
    over = watch_training(PATIENCE - 1, f"tensorboard not all is written; {rest}")
    _copy(run_dir, over)


def main() -> None:
    if run_dir := beside_run(sys.argv[1:]):
        _beside(run_dir)
        return
    directories, _ = command.directories_and_values(sys.argv[1:], (), USAGE)
    run_dirs = runs_in(directories)
    # Refuse before anything is written.
    for run_dir in run_dirs:
        check_readable(run_dir)
    for run_dir in run_dirs:
        _copy(run_dir, already_over())
        say(str(run_dir / DIRECTORY))


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
