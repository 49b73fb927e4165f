"""Copy runs into files for TensorBoard: python -m gpt.mirrors.tensorboard DIR…

DIR is the output directory of a run, or of a sweep, or any other that has runs directly below it. The files are written
anew from the run's logs, into DIR/tensorboard, with curves against tokens. With tracker=tensorboard the same code runs
beside the training. To look at them: tensorboard --logdir DIR
"""

import shutil
import sys
import threading
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from gpt.cli import command
from gpt.compare.runs import check_logs, run_directories
from gpt.console import say
from gpt.rundir import HISTOGRAMS, SAMPLES
from gpt.tracker.mirror import PATIENCE, Tail, attend, beside_run, cure, follow
from gpt.tracker.tracker import parse_samples

DIRECTORY = "tensorboard"
USAGE = "python -m gpt.mirrors.tensorboard DIR…"


def copy(run_dir: Path, over: threading.Event) -> None:
    """Write what the logs hold until the run is over. Steps that a resumed run repeats are in them once."""
    shutil.rmtree(run_dir / DIRECTORY, ignore_errors=True)
    histograms, waiting, tokens = Tail(run_dir / HISTOGRAMS), {}, {}
    with SummaryWriter(str(run_dir / DIRECTORY)) as writer:
        for row in follow(run_dir, over):
            tokens[row["step"]] = row["tokens"]
            for key in (key for key in row.keys() - {"tokens"} if row[key] is not None):
                writer.add_scalar(key, row[key], row["tokens"])
            waiting |= histograms.histograms()
            for key, held in waiting.pop(row["step"], {}).items():
                add_histogram(writer, key, held, row["tokens"])
        samples = parse_samples(Tail(run_dir / SAMPLES).text())
        for step, sample in ((step, sample) for step, sample in samples if step in tokens):
            writer.add_text("sample", f"```\n{sample}\n```", tokens[step])


def add_histogram(writer: SummaryWriter, key: str, held: dict, tokens: int) -> None:
    """Add counts between equal steps from ``min`` to ``max``; the moments are those of the middles of the bins."""
    edges = np.linspace(held["min"], held["max"], len(held["counts"]) + 1)
    counts, middles = np.array(held["counts"]), (edges[:-1] + edges[1:]) / 2
    writer.add_histogram_raw(
        key,
        min=held["min"],
        max=held["max"],
        num=int(counts.sum()),
        sum=float(counts @ middles),
        sum_squares=float(counts @ middles**2),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=tokens,
    )


def main() -> None:
    if run_dir := beside_run(sys.argv[1:]):
        copy(
            run_dir, attend(PATIENCE - 1, f"tensorboard not all is written; {cure('gpt.mirrors.tensorboard', run_dir)}")
        )
        return
    over = threading.Event()
    over.set()
    directories = command.directories_and_values(sys.argv[1:], (), USAGE)[0]
    runs = [run_dir for directory in directories for run_dir in run_directories(directory)[0]]
    for run_dir in runs:
        check_logs(run_dir)
    for run_dir in runs:
        copy(run_dir, over)
        say(str(run_dir / DIRECTORY))


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
