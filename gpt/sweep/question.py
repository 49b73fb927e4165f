"""The question of a sweep: the comment at the beginning of its file in sweeps/, and the command that asked it."""

import re
import shlex
import sys
from pathlib import Path


def describe(choice: str | None, roots: list[Path]) -> dict[str, str]:
    """Return what a sweep is about, for sweep.json: its command and, from its file below one of the roots, the rest."""
    program, *arguments = sys.argv
    about = {"command": shlex.join(["python", Path(program).name, *arguments])}
    for root in roots:
        path = root / "sweeps" / f"{choice}.yaml"
        if choice and path.is_file():
            return about | read_question(path.read_text())
    return about


def read_question(text: str) -> dict[str, str]:
    """Return the parts of the comment that a sweep's file begins with: question, expected, source.

    The question is its first paragraph; the others begin with their word, and their further lines are indented.
    """
    parts = {"question": ""}
    part = "question"
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        words = line.removeprefix("#").strip()
        if words.startswith("@package"):
            continue
        named = re.fullmatch(r"(Expected|Source)\s+(.*)", words)
        if named:
            part = named[1].lower()
            words = named[2]
        before = parts.get(part, "")
        parts[part] = f"{before} {words}".strip()
    return {name: words for name, words in parts.items() if words}
