"""Seconds from a command to its answer: --help, --cfg job, a refusal, and the first step of the CPU recipe."""

import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, alternate, arguments, report

ANSWERS = {
    "--help": ["--help"],
    "--cfg job": ["--cfg", "job"],
    "refused key": ["precison=bf16"],
    "refused value": ["model.n_embd=130"],
}


def seconds_to_answer(overrides: list[str]) -> float:
    """Time a command to its end."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "train.py", *overrides], capture_output=True, timeout=60, check=False)
    return time.perf_counter() - begun


def seconds_to_first_step(text: Path, directory: str) -> float:
    """Time a run until the line of its first step is read; its data is prepared in the first round."""
    overrides = ["experiment=shakespeare_char_cpu", f"data.files=[{text}]", "trainer.eval_every=100_000_000"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "train.py", *overrides], cwd=directory, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step"):
            break
    seconds = time.perf_counter() - begun
    process.kill()
    process.communicate()
    return seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--text", type=Path, help="a local Tiny Shakespeare: also time the first step of the CPU recipe"
    )
    options = parser.parse_args()
    contestants = {}
    for name, overrides in ANSWERS.items():
        contestants[name] = functools.partial(seconds_to_answer, overrides)
    with tempfile.TemporaryDirectory() as directory:
        if options.text:
            contestants["first step"] = lambda: seconds_to_first_step(options.text.resolve(), directory)
        figures = alternate(contestants, rounds=5)
    report(figures, {}, "seconds", options.json)


if __name__ == "__main__":
    main()
