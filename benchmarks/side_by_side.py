"""Tokens per second of a training command that runs alone, and of two or three at once on the same CPU.

python benchmarks/side_by_side.py [--commands N] [--rounds N] [--seconds N] [--json FILE]

Threads that wait for work sleep, as our commands ask for, or spin, as libgomp has it where nobody asks. Each command
has as many threads as the machine has cores. All are started first, and then take turns: those that are not measured
are stopped. Other load on the machine changes the figures; ratios compare contestants of the same round.
"""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, arguments, report, rounds_of, spread

RUN = """
    device=cpu trainer.log_every=1 trainer.max_tokens=1_000_000_000 trainer.eval_every=1_000_000_000
    checkpoint.every=1_000_000 tracker.plot=false
""".split()
WAITING = {
    "sleeping": {},  # as our commands ask for: they look for work for some microseconds first
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # libgomp's own number; this variable wins over OMP_WAIT_POLICY
}
STEP_TOKENS = 1024  # of the default run
WARM_UP = 5  # steps, after seconds of imports
SETTLE = 0.5  # seconds until a command that goes on is at full speed
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


class Command:
    """A training command that is stopped while it is not its turn."""

    def __init__(self, waiting: str, run_dir: Path):
        self.run_dir = run_dir
        environment = {name: value for name, value in os.environ.items() if name not in THREADS} | WAITING[waiting]
        command = [sys.executable, ROOT / "train.py", *RUN, f"hydra.run.dir={run_dir}"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def stop_when_warm(self) -> None:
        """Wait until it trains, and stop it."""
        while self.steps() < WARM_UP:
            if self.process.poll() is not None:
                raise SystemExit(f"a command has ended with {self.process.returncode}")
            time.sleep(0.05)
        self.process.send_signal(signal.SIGSTOP)

    def steps(self) -> int:
        """Return the number of steps that are logged."""
        metrics = self.run_dir / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


def tokens_per_second(commands: list[Command], seconds: float) -> float:
    """Return the mean speed of commands that train at once for some seconds."""
    for command in commands:
        command.process.send_signal(signal.SIGCONT)
    time.sleep(SETTLE)
    before = sum(command.steps() for command in commands)
    begun = time.perf_counter()
    time.sleep(seconds)
    steps = sum(command.steps() for command in commands) - before
    elapsed = time.perf_counter() - begun
    for command in commands:
        command.process.send_signal(signal.SIGSTOP)
    return steps * STEP_TOKENS / elapsed / len(commands)


def measure(most: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the speeds of 1 to ``most`` commands at once, by how their threads wait."""
    started = []
    contestants = {}
    with tempfile.TemporaryDirectory() as directory:
        try:
            for waiting in WAITING:
                for number in range(most):
                    started.append(Command(waiting, Path(directory) / f"{waiting}{number}"))
                own = started[-most:]
                for command in own:
                    command.stop_when_warm()
                for count in range(1, most + 1):
                    contestants[f"{count} at once, {waiting}"] = functools.partial(
                        tokens_per_second, own[:count], seconds
                    )
            return rounds_of(contestants, rounds)
        finally:
            for command in started:
                command.end()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--commands", type=int, default=3, help="how many run at once at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="how long a turn is measured")
    options = parser.parse_args()
    speeds = measure(options.commands, options.rounds, options.seconds)

    # Rounds are compared with rounds, because the machine's speed drifts.
    ratios = {}
    for count in range(1, options.commands + 1):
        sleeping = speeds[f"{count} at once, sleeping"]
        spinning = speeds[f"{count} at once, spinning"]
        of_rounds = [a / b for a, b in zip(sleeping, spinning, strict=True)]
        ratios[f"sleeping over spinning, {count} at once"] = spread(of_rounds)
    figures = {name: spread(values) for name, values in speeds.items()}
    report(figures, ratios, "tokens per second and command", options.json)


if __name__ == "__main__":
    main()
