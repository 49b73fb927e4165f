"""Files from a URL, downloaded once."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from gpt.console import say
from gpt.errors import InputError

TIMEOUT_SECONDS = 30


def fetch(url: str, sha256: str | None, path: Path, cure: str) -> Path:
    """Download a file once, to ``path``; ``cure`` is how to give a local copy instead.

    Raises InputError when it cannot be reached or is not the expected one.
    """
    if path.exists():
        if not path.is_file() or (sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256):
            raise InputError(f"{path} is not the text that was fetched", f"delete it: {url} is fetched again")
        return path

    # Only what has the expected hash is kept.
    content = _download(url, cure)
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{url} is not the text it was (sha256 differs)", cure)

    # Written beside its place and renamed, so that another command never reads a part.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}", "choose another place: data.cache_dir=DIR") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _download(url: str, cure: str) -> bytes:
    """Return what is at an address. Raises InputError."""
    say(f"fetching {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            return response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"{url} cannot be reached: {error}", cure) from error
