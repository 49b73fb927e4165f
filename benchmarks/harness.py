"""Shared parts of all benchmarks: alternating contestants, the spread of figures, the machine, the JSON file."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "numpy", "h5py", "hydra-core")
sys.path.insert(0, str(ROOT))  # so that `python benchmarks/NAME.py` finds gpt and data


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser that has --json FILE."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, figures and ratios here")
    return parser


def rounds_of(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call all contestants in turn, ``rounds`` times after a warm-up; return the figures of each."""
    # They alternate, so that a machine that speeds up or slows down is the same for all.
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            figure = contestant()
            is_warmup = number == 0
            if not is_warmup:
                figures[name].append(figure)
    return figures


def spread(values: list[float]) -> dict[str, float]:
    """Return the range and the median of a figure's rounds."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def alternate(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Call all contestants in turn; return the spread of each one's figures."""
    return {name: spread(values) for name, values in rounds_of(contestants, rounds).items()}


def machine() -> dict[str, Any]:
    """Return the hardware and the versions that the figures were measured with."""
    import torch

    from gpt.tracker.provenance import cpu_name

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def report(figures: dict[str, Any], ratios: dict[str, Any], unit: str, path: Path | None) -> None:
    """Print the table and write the JSON file. A ratio is a number, or a dict of several."""
    print(f"{'':42} {'min':>10} {'median':>10} {'max':>10}  {unit}")
    for name, figure in figures.items():
        print(f"{name:42} {figure['min']:10.3g} {figure['median']:10.3g} {figure['max']:10.3g}")

    # A ratio is a single number, without a spread.
    for name, ratio in ratios.items():
        parts = ratio if isinstance(ratio, dict) else {"": ratio}
        for part, value in parts.items():
            label = f"{name} {part}"
            print(f"{label:42} {value:10.3f}")

    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "unit": unit, "figures": figures, "ratios": ratios}
        path.write_text(json.dumps(content, indent=1) + "\n")
