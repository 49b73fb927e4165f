"""Tokens per second of a training command that runs alone, and of two or three at once on the same CPU.

python benchmarks/side_by_side.py [--commands N …] [--rounds N] [--seconds N] [--json FILE]

Threads that wait for work sleep, as our commands ask for, or spin, as libgomp does where nobody asks. Each command has
as many threads as the machine has cores. Other load on the machine changes the figures: the ratios compare contestants
of the same round.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, arguments, report, rounds_of, spread

RUN = """
    device=cpu seed=1 trainer.log_every=1 trainer.max_tokens=1_000_000_000 trainer.eval_every=1_000_000_000
    checkpoint.every=1_000_000 tracker.plot=false
""".split()
WAITING = {
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # libgomp's own number; this variable wins over OMP_WAIT_POLICY
}
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def count_rows(run_dir: Path) -> int:
    """Return the number of steps that a run has logged."""
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def tokens_per_second(commands: int, waiting: str, seconds: float) -> float:
    """Return the mean speed of commands that all train for some seconds."""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS} | WAITING[waiting]
    with tempfile.TemporaryDirectory() as directory:
        run_dirs = [Path(directory) / str(number) for number in range(commands)]
        processes = []
        for run_dir in run_dirs:
            command = [sys.executable, ROOT / "train.py", *RUN, f"hydra.run.dir={run_dir}"]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        try:
            # They import for seconds, and then the first steps are slow.
            while any(count_rows(run_dir) < 20 for run_dir in run_dirs):
                if any(process.poll() is not None for process in processes):
                    raise SystemExit("a command has ended")
                time.sleep(0.05)
            before = sum(map(count_rows, run_dirs))
            begun = time.perf_counter()
            time.sleep(seconds)
            steps = sum(map(count_rows, run_dirs)) - before
            return steps * 1024 / (time.perf_counter() - begun) / commands
        finally:
            for process in processes:
                process.kill()
                process.wait()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--commands", type=int, nargs="+", default=[1, 2, 3], help="how many run at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="how long all of them train")
    options = parser.parse_args()
    contestants = {}
    for commands in options.commands:
        for waiting in WAITING:
            contestants[f"{commands} at once, {waiting}"] = lambda commands=commands, waiting=waiting: (
                tokens_per_second(commands, waiting, options.seconds)
            )
    speeds = rounds_of(contestants, options.rounds)

    # Rounds are compared with rounds, because the machine's speed drifts.
    ratios = {}
    for commands in options.commands:
        sleeping, spinning = (speeds[f"{commands} at once, {waiting}"] for waiting in WAITING)
        of_rounds = [a / b for a, b in zip(sleeping, spinning, strict=True)]
        ratios[f"sleeping over spinning, {commands} at once"] = spread(of_rounds)
    figures = {name: spread(values) for name, values in speeds.items()}
    report(figures, ratios, "tokens per second and command", options.json)


if __name__ == "__main__":
    main()
