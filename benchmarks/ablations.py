"""Run every sweep completely, at toy size, and collect the comparisons.

python benchmarks/ablations.py [--sweeps NAME …] [--out DIR] [--slots N] [--json FILE]

Started again, it continues where it stopped. With --costs it also measures the time of a finished sweep that is run
again, and the gain from a second slot.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from harness import ROOT, alternate, arguments, machine

from gpt.compare.statistics import Losses, steps
from gpt.config.groups import options

QUICK = """
    experiment=ablation_toy trainer.max_tokens=65_536 trainer.eval_every=65_536 trainer.eval_tokens=4_096
    seed=1,2,3,4,5,6,7,8
""".split()
FIGURES = ("val_loss", "difference", "tokens_per_sec", "peak_memory_bytes")  # of each arm


def run(*overrides: str, cwd: Path) -> float:
    """Run train.py; return the seconds that it takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "train.py"), *overrides], cwd=cwd, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def ablation(name: str, out: Path, slots: int) -> dict[str, Any]:
    """Run a sweep to its end; return the figures of every arm from its comparison."""
    # A finished sweep starts no jobs.
    run(f"sweeps={name}", "experiment=ablation_toy", f"hydra.launcher.slots={slots}", cwd=out)
    path = out / "outputs" / "sweeps" / name / "compare.json"
    comparison = json.loads(path.read_text())
    arms = {}
    for arm in comparison["arms"]:
        arms[arm["arm"]] = {key: arm[key] for key in FIGURES}
    if is_ladder(name):
        for label, difference in steps(losses_of(comparison)).items():
            arms[label]["step"] = asdict(difference)
    return {"warnings": comparison["warnings"], "baseline": comparison["baseline"], "arms": arms}


def is_ladder(name: str) -> bool:
    """Return whether the arms of a sweep add to each other."""
    sweeper = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())["hydra"]["sweeper"]
    return sweeper.get("ladder", False)


def losses_of(comparison: dict[str, Any]) -> dict[str, Losses]:
    """Return the losses of every arm by seed."""
    losses: dict[str, Losses] = {}
    for run in comparison["runs"]:
        if run["is_counted"]:
            losses.setdefault(run["arm"], {})[run["seed"]] = run["val_loss"]
    return losses


def costs(rounds: int) -> dict[str, Any]:
    """Measure eight jobs in one slot and in two, and a finished sweep that is run again. Each job has one thread."""
    n_cores = len(os.sched_getaffinity(0))

    # A new sweep each time, which has nothing to keep.
    def sweep(slots: int) -> float:
        with tempfile.TemporaryDirectory() as cwd:
            return run("--multirun", *QUICK, f"hydra.launcher.slots={slots}", cwd=Path(cwd))

    with tempfile.TemporaryDirectory() as finished:
        # The first run finishes the sweep, and is not counted.
        again = ["--multirun", *QUICK, f"hydra.launcher.slots={n_cores}", "hydra.sweep.dir=kept"]
        run(*again, cwd=Path(finished))
        contestants = {
            "one slot": lambda: sweep(1),
            "two slots": lambda: sweep(2),
            "again": lambda: run(*again, cwd=Path(finished)),
        }
        seconds = alternate(contestants, rounds)
    gain = seconds["one slot"]["median"] / seconds["two slots"]["median"]
    return {"jobs": 8, "seconds": seconds, "two_slots_over_one": gain}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sweeps", nargs="*", default=list(options("sweeps")), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path(), help="where outputs/sweeps is")
    parser.add_argument("--slots", type=int, default=1, help="jobs at a time; more blur the speeds")
    parser.add_argument("--costs", type=int, metavar="ROUNDS", help="measure slots and reruns, so many times")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    # Sweeps that the file has already are kept, unless they are run again.
    content: dict[str, Any] = {"sweeps": {}}
    if args.json and args.json.exists():
        content = json.loads(args.json.read_text())
    content["machine"] = machine()

    # Saved after each sweep, because all of them take hours.
    for name in args.sweeps:
        content["sweeps"][name] = ablation(name, args.out, args.slots)
        report = args.out / "outputs" / "sweeps" / name / "compare.txt"
        print(report.read_text(), flush=True)
        save(content, args.json)

    if args.costs:
        content["costs"] = costs(args.costs)
        print(json.dumps(content["costs"], indent=1))
        save(content, args.json)


def save(content: dict[str, Any], path: Path | None) -> None:
    """Write the results so far, if a file is wanted."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
