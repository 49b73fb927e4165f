"""What a mirror costs a training step: the same run without one and with one that sends every row to W&B.

python benchmarks/mirror.py [--rounds N] [--steps N] [--json FILE]

Two runs in one process take turns, few steps each, because machines change their speed; while it is the turn of the one
without a mirror, the mirror of the other and its helpers are stopped. W&B's own package sends to a server on this
machine, which stands for one elsewhere and so has the lowest priority. Each step writes a row, of its own metrics or of
a thousand more. Training has all cores but one.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, arguments, report, spread

SERVER = "import sys; sys.path.insert(0, 'tests/mirrors'); from wandb_server import serve; serve()"
RUN = """
    experiment=ablation_toy batch.global_tokens=8192 trainer.log_every=1 trainer.max_tokens=1_000_000_000
    trainer.eval_every=1_000_000_000 trainer.eval_tokens=1_000 checkpoint.every=1_000_000 sample.tokens=0
    tracker.plot=false
""".split()


class Contestant:
    """A run that takes some steps at a time."""

    def __init__(self, tracker: str, more_metrics: int, directory: Path):
        from data.preparation import prepare
        from gpt.cli.compose import compose
        from gpt.config.load import save
        from gpt.trainer import Trainer

        config = compose([*RUN, f"tracker={tracker}"])
        directory.mkdir()
        save(config, directory / "config.yaml")
        self.trainer = Trainer(config, *prepare(config.data), directory)
        # Every row gets the metrics of its step, and as many more as are asked for.
        measure = self.trainer.measure
        more = {f"more/{number}": number / 7 for number in range(more_metrics)}
        self.trainer.measure = lambda step: measure(step) | more
        self.mirror = self.trainer.mirror()
        self.tracker = self.trainer.tracker(self.mirror)
        self.tracker.console.quiet = True
        self.tracker.__enter__()
        self.batches = self.trainer.batches()

    def steps(self, count: int) -> float:
        """Take so many steps; returns the seconds per step."""
        self.signal(signal.SIGCONT)
        begin = time.perf_counter()
        for _ in range(count):
            self.trainer.after_step(self.tracker, self.trainer.train_step(self.batches), stopping=False)
        seconds = (time.perf_counter() - begin) / count
        self.signal(signal.SIGSTOP)
        return seconds

    def signal(self, number: int) -> None:
        """Send a signal to the mirror and all processes that it has started."""
        if self.mirror.process:
            for pid in family(self.mirror.process.pid):
                os.kill(pid, number)

    def end(self) -> int:
        """End the run; returns how many rows it has written."""
        self.signal(signal.SIGCONT)
        self.tracker.__exit__()
        self.mirror.__exit__()
        return self.trainer.state.progress.step


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    pids = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            pids += family(int(child))
    return pids


def compare(more_metrics: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the milliseconds per step of the two runs, turn by turn, after one to warm up."""
    with tempfile.TemporaryDirectory() as directory:
        contestants = {name: Contestant(name, more_metrics, Path(directory, name)) for name in ("local", "wandb")}
        contestants["wandb"].steps(steps)
        milliseconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds + 1):
            # Which of them is first alternates.
            for name in list(contestants)[:: 1 if number % 2 else -1]:
                seconds = contestants[name].steps(steps)
                if number > 0:
                    milliseconds[name].append(1000 * seconds)
        for contestant in contestants.values():
            contestant.end()
    return milliseconds


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.nice(19)
    ) as server:
        url, key = server.stdout.readline().split()
        os.environ |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": key, "WANDB_ERROR_REPORTING": "false"}
        figures = {}
        ratios = {}
        for count in (0, 1000):
            milliseconds = compare(count, options.rounds, options.steps)
            name = f"{10 + count} metrics per step"
            for contestant, values in milliseconds.items():
                figures[f"{contestant}, {name}"] = spread(values)
            # Turns of one round are neighbors in time, so their ratio does not see the machine's speed.
            pairs = zip(milliseconds["local"], milliseconds["wandb"], strict=True)
            of_rounds = [wandb / local for local, wandb in pairs]
            ratios[f"wandb / local, {name}"] = {
                "mean": statistics.fmean(of_rounds),
                "standard error": statistics.stdev(of_rounds) / len(of_rounds) ** 0.5,
                "median": statistics.median(of_rounds),
            }
        server.terminate()
    report(figures, ratios, "ms per step", options.json)


if __name__ == "__main__":
    main()
