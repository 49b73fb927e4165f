"""The config groups and the options of each, from the files in conf/. Imports next to nothing, for --help."""

import re
from pathlib import Path

CONF = Path(__file__).parents[2] / "conf"
GROUPS = "model data optimizer schedule batch precision cluster tracker experiment sweeps debug".split()
LIST_GROUPS = ("experiment", "debug")  # those of which a run may take several options


def options(group: str, directory: Path = CONF) -> dict[str, str]:
    """Return the options of a config group in a directory, each with the line that opens its file."""
    paths = list((directory / group).glob("[!_]*.yaml"))
    paths.sort(key=_numeric_order)
    described = {}
    for path in paths:
        # The first comment, but for the one that is an instruction to Hydra.
        text = path.read_text()
        match = re.search(r"^# (?!@package)(.*)", text, re.MULTILINE)
        described[path.stem] = match[1] if match else ""
    return described


def _numeric_order(path: Path) -> str:
    """Return the name of a file with its numbers filled up with zeros, so that gpt2_355m comes before gpt2_1558m."""
    return re.sub(
        r"\d+",
        lambda number: number[0].zfill(9),
        path.stem,
    )
