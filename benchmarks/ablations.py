"""Every sweep whole, at toy size, and what each says.

python benchmarks/ablations.py [--sweeps NAME …] [--out DIR] [--slots N] [--json FILE]

Run again, it continues where it was ended. Also measures what a finished sweep costs when it is run again, and what a
second slot gains (--costs).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import ROOT, alternate, arguments, machine

from gpt.config.groups import options

QUICK = """
    experiment=ablation_toy trainer.max_tokens=65_536 trainer.eval_every=65_536 trainer.eval_tokens=4_096
    seed=1,2,3,4,5,6,7,8
""".split()


def run(*overrides: str, cwd: Path) -> float:
    """Seconds that a command of train.py takes."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "train.py"), *overrides], cwd=cwd, check=True, stdout=sys.stderr)
    return time.perf_counter() - begun


def ablation(name: str, out: Path, slots: int) -> dict[str, Any]:
    """Run a sweep to its end; returns what its comparison says of every arm."""
    run(f"sweeps={name}", "experiment=ablation_toy", f"hydra.launcher.slots={slots}", cwd=out)
    found = json.loads((out / "outputs" / "sweeps" / name / "compare.json").read_text())
    arms = {
        arm["arm"]: {
            "val_loss": arm["val_loss"],
            "difference": arm["difference"],
            "tokens_per_sec": arm["tokens_per_sec"],
            "peak_memory_bytes": arm["peak_memory_bytes"],
        }
        for arm in found["arms"]
    }
    return {"warnings": found["warnings"], "baseline": found["baseline"], "arms": arms}


def costs(rounds: int) -> dict[str, Any]:
    """Eight jobs in one slot and in two, and a finished sweep again. Each job has one thread."""
    cores = len(os.sched_getaffinity(0))

    def sweep(slots: int) -> float:
        with tempfile.TemporaryDirectory() as cwd:
            return run("--multirun", *QUICK, f"hydra.launcher.slots={slots}", cwd=Path(cwd))

    with tempfile.TemporaryDirectory() as cwd:
        kept = ["--multirun", *QUICK, f"hydra.launcher.slots={cores}", "hydra.sweep.dir=kept"]
        run(*kept, cwd=Path(cwd))
        seconds = alternate(
            {"one slot": lambda: sweep(1), "two slots": lambda: sweep(2), "again": lambda: run(*kept, cwd=Path(cwd))},
            rounds,
        )
    gain = seconds["one slot"]["median"] / seconds["two slots"]["median"]
    return {"jobs": 8, "seconds": seconds, "two_slots_over_one": gain}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sweeps", nargs="*", default=list(options("sweeps")), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path(), help="where outputs/sweeps is")
    parser.add_argument("--slots", type=int, default=1, help="jobs at a time; more blur the speeds")
    parser.add_argument("--costs", type=int, metavar="ROUNDS", help="measure slots and reruns, so many times")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    content = json.loads(given.json.read_text()) if given.json and given.json.exists() else {"sweeps": {}}
    content["machine"] = machine()
    for name in given.sweeps:
        content["sweeps"][name] = ablation(name, given.out, given.slots)
        print((given.out / "outputs" / "sweeps" / name / "compare.txt").read_text(), flush=True)
        save(content, given.json)
    if given.costs:
        content["costs"] = costs(given.costs)
        print(json.dumps(content["costs"], indent=1))
        save(content, given.json)


def save(content: dict[str, Any], path: Path | None) -> None:
    """Write what is known so far, if a file is wanted."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
