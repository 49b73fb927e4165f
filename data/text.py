"""Text files of the user's own, or one fetched from a URL."""

import glob
import hashlib
import os
import urllib.request
from pathlib import Path

from gpt.errors import InputError
from gpt.schema import DataConfig

TIMEOUT_SECONDS = 30


def files(data: DataConfig, cache_dir: Path) -> list[Path]:
    """The files that ``data.files`` names, in its order (globs sorted), or the one that ``data.url`` gives.

    Raises InputError when a pattern matches nothing, or nothing can be fetched.
    """
    if not data.files:
        return [fetch(data, cache_dir)]
    found = []
    for pattern in data.files:
        matches = sorted(
            path for path in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(path)
        )
        if not matches:
            raise InputError(
                f"data.files: no file matches {pattern} (from {Path.cwd()})",
                "correct the path; data that is prepared already can be given by its directory: data.dir=…",
            )
        found += [Path(match).resolve() for match in matches]
    return found


def fetched(data: DataConfig, cache_dir: Path) -> Path:
    """Where what ``data.url`` gives lies once it is fetched."""
    return cache_dir / f"{data.name}.txt"


def fetch(data: DataConfig, cache_dir: Path) -> Path:
    """Download ``data.url`` once. Raises InputError when it cannot be reached or is not the expected text."""
    if data.url is None:
        raise InputError(
            f"data={data.name} has no text to read", "give files or globs: data.files=[a.txt,'books/*.txt']"
        )
    path = fetched(data, cache_dir)
    if path.exists():
        return path
    print(f"fetching {data.url}", flush=True)
    try:
        with urllib.request.urlopen(data.url, timeout=TIMEOUT_SECONDS) as response:
            content = response.read()
    except OSError as error:
        raise InputError(
            f"{data.url} cannot be reached: {error}",
            "give a local copy instead: data.files=[path/to/input.txt]",
        ) from error
    if data.sha256 and hashlib.sha256(content).hexdigest() != data.sha256:
        raise InputError(f"{data.url} is not the text it was (sha256 differs)", "give a local copy: data.files=[…]")
    cache_dir.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)
    return path
