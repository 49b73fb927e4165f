"""What every benchmark shares: alternating contestants, their spread, the machine, the JSON file."""

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
sys.path.insert(0, str(ROOT))  # so that `python benchmarks/NAME.py` finds gpt and data


def arguments(description: str) -> argparse.ArgumentParser:
    """The parser with --json FILE."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, figures and ratios here")
    return parser


def rounds_of(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call all contestants in turn, ``rounds`` times after one to warm up; each returns its figure."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            figure = contestant()
            if number:
                figures[name].append(figure)
    return figures


def spread(values: list[float]) -> dict[str, float]:
    """What a figure's rounds come to."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def alternate(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """The spread of each contestant's rounds."""
    return {name: spread(values) for name, values in rounds_of(contestants, rounds).items()}


def machine() -> dict[str, Any]:
    """Where and with what the figures were taken."""
    import torch

    from gpt.tracker.provenance import cpu_name

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "h5py", "hydra-core")},
    }


def report(figures: dict[str, Any], ratios: dict[str, Any], unit: str, path: Path | None) -> None:
    """Print the table and write the JSON file. A ratio is a number, or several by name."""
    print(f"{'':42} {'min':>10} {'median':>10} {'max':>10}  {unit}")
    for name, spread in figures.items():
        print(f"{name:42} " + " ".join(f"{spread[k]:10.3g}" for k in ("min", "median", "max")))
    for name, ratio in ratios.items():
        for part, value in ratio.items() if isinstance(ratio, dict) else [("", ratio)]:
            print(f"{f'{name} {part}':42} {value:10.3f}")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "unit": unit, "figures": figures, "ratios": ratios}
        path.write_text(json.dumps(content, indent=1) + "\n")
