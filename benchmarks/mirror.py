"""The cost of a mirror per training step: the same run without one and with one that sends every row to W&B.

python benchmarks/mirror.py [--rounds N] [--steps N] [--json FILE]

Two runs in one process take turns, few steps each, because machines change their speed; while it is the turn of the one
without a mirror, the mirror of the other and its helpers are stopped. W&B's own package speaks to a server on this
machine, which stands for one elsewhere and so takes the processor last. Each step writes a row, of its own metrics or
of a thousand more. Training has all cores but one.
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

SERVER = "import sys; sys.path.insert(0, 'tests'); from wandb_server import serve; serve()"
RUN = """
    experiment=ablation_toy batch.global_tokens=8192 trainer.log_every=1 trainer.max_tokens=1_000_000_000
    trainer.eval_every=1_000_000_000 trainer.eval_tokens=1_000 checkpoint.every=1_000_000 sample.tokens=0
    tracker.plot=false
""".split()


class Contestant:
    """A run that is asked for some steps at a time."""

    def __init__(self, tracker: str, more_metrics: int, directory: Path):
        from data.preparation import prepare
        from gpt.cli.compose import compose
        from gpt.config.load import save
        from gpt.distributed import ALONE
        from gpt.session import open_session
        from gpt.trainer import Trainer

        config = compose([*RUN, f"tracker={tracker}"])
        directory.mkdir()
        save(config, directory / "config.yaml")
        self.trainer = Trainer(config, *prepare(config.data), directory)
        self.stepper = self.trainer.stepper
        own = self.stepper.metrics
        extra = {f"more/{number}": number / 7 for number in range(more_metrics)}
        self.stepper.metrics = lambda step: own(step) | extra
        self.session = open_session(config, directory, ALONE, self.trainer.state.progress, {}, self.trainer.facts)
        self.trainer.session = self.session.__enter__()
        self.tracker = self.trainer.session.tracker
        self.tracker.console.quiet = True
        self.mirror = self.tracker.mirror
        self.batches = self.stepper.batches()

    def steps(self, count: int) -> float:
        """Seconds per step."""
        self.signal(signal.SIGCONT)
        begun = time.perf_counter()
        for _ in range(count):
            step = self.stepper.train_step(self.batches)
            self.trainer.record(step, self.trainer.due(step))
        seconds = (time.perf_counter() - begun) / count
        self.signal(signal.SIGSTOP)
        return seconds

    def signal(self, number: int) -> None:
        """To the mirror and all that it has started."""
        if self.mirror.process:
            for pid in family(self.mirror.process.pid):
                os.kill(pid, number)

    def end(self) -> int:
        """End it; returns how many rows it has written."""
        self.signal(signal.SIGCONT)
        self.session.__exit__(None, None, None)
        return self.trainer.state.progress.step


def family(pid: int) -> list[int]:
    """A process and those that it and they have started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(found for path in children for child in path.read_text().split() for found in family(int(child)))]


def compare(more_metrics: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds per step of the two runs, turn by turn, after one to warm up."""
    with tempfile.TemporaryDirectory() as directory:
        contestants = {name: Contestant(name, more_metrics, Path(directory, name)) for name in ("local", "wandb")}
        contestants["wandb"].steps(steps)
        milliseconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds + 1):
            for name in list(contestants)[:: 1 if number % 2 else -1]:
                taken = contestants[name].steps(steps)
                if number:
                    milliseconds[name].append(1000 * taken)
        for contestant in contestants.values():
            contestant.end()
    return milliseconds


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.nice(19)
    ) as server:
        url, key = server.stdout.readline().split()
        os.environ |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": key, "WANDB_ERROR_REPORTING": "false"}
        figures, ratios = {}, {}
        for count in (0, 1000):
            found = compare(count, given.rounds, given.steps)
            name = f"{10 + count} metrics per step"
            figures |= {f"{contestant}, {name}": spread(values) for contestant, values in found.items()}
            pairs = [b / a for a, b in zip(found["local"], found["wandb"], strict=True)]
            error = statistics.stdev(pairs) / len(pairs) ** 0.5
            ratios[f"wandb / local, {name}"] = {
                "mean": statistics.fmean(pairs),
                "standard error": error,
                "median": statistics.median(pairs),
            }
        server.terminate()
    report(figures, ratios, "ms per step", given.json)


if __name__ == "__main__":
    main()
