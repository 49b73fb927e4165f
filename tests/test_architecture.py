"""The house: imports go one way, as docs/architecture.md draws it, and never in circles."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from conftest import ROOT

SOURCES = ["gpt", "data", "hydra_plugins", "train.py", "eval.py"]


def modules() -> dict[str, Path]:
    """The path of every module by its dotted name."""
    found = {}
    for source in SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, inside functions too, but not those for type checking alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in full}
    return {name for name in found if name in known and known[name] != path}


def test_imports_go_one_way():
    block = re.search(r"```layers\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)[1]
    layer = {}
    for depth, line in enumerate(block.splitlines()):
        for name in re.split(r"\s{2,}", line, maxsplit=1)[1].split():
            layer[name] = depth
    known = modules()

    def depth_of(module: str) -> int:
        parts = module.split(".")
        return next(layer[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in layer)

    upward = [
        f"{module} imports {other}"
        for module, path in known.items()
        for other in imported(path, known)
        if depth_of(other) < depth_of(module)
    ]
    assert not upward, "\n".join(upward)


def test_there_are_no_circles():
    known = modules()
    circle = []
    try:
        TopologicalSorter({module: imported(path, known) for module, path in known.items()}).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle
