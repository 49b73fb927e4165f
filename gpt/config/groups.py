"""The config groups and the options of each, from the files in conf/."""

import functools
import re

from gpt.files import ROOT

CONF = ROOT / "conf"
GROUPS = "model data optimizer schedule batch precision cluster tracker experiment sweeps debug".split()


def options(group: str) -> dict[str, str]:
    """The options of a config group, each with the line that opens its file."""
    described = {}
    numbers = functools.partial(re.sub, r"\d+", lambda number: number[0].zfill(9))  # 355m before 1558m
    for path in sorted((CONF / group).glob("[!_]*.yaml"), key=lambda path: numbers(path.stem)):
        lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
        described[path.stem] = next(line for line in lines if not line.startswith("@package"))
    return described
