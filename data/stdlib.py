"""The source text of the running Python's standard library: real text on every machine."""

import sysconfig
from pathlib import Path

# Tests are not prose, installed packages are not the library, and build settings differ between machines.
EXCLUDED_DIRS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
EXCLUDED_FILES = "_sysconfigdata*"


def files() -> list[Path]:
    """All Python files of the library in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not EXCLUDED_DIRS & set(path.relative_to(root).parts) and not path.match(EXCLUDED_FILES)
    ]
