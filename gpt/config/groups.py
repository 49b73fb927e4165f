"""The config groups and the options of each, from the files in conf/. Imports next to nothing, for --help."""

import re
from pathlib import Path

CONF = Path(__file__).parents[2] / "conf"
GROUPS = "model data optimizer schedule batch precision cluster tracker experiment sweeps debug".split()


def options(group: str) -> dict[str, str]:
    """Return the options of a config group, each with the line that opens its file."""
    described = {}
    for path in sorted((CONF / group).glob("[!_]*.yaml"), key=lambda path: _in_numeric_order(path.stem)):
        comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
        described[path.stem] = next(line for line in comments if not line.startswith("@package"))
    return described


def _in_numeric_order(name: str) -> str:
    """A key for sorting that puts gpt2_355m before gpt2_1558m."""
    return re.sub(r"\d+", lambda number: number[0].zfill(9), name)
