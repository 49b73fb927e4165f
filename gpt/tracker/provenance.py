"""Where a run's figures come from: the code, the versions and the machine of each of its starts, in about.json.

Changes to the code that are not committed stand beside it, in code.diff.
"""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt.files import ROOT, write_json
from gpt.rundir import ABOUT, read_about

DIFF = "code.diff"
PACKAGES = ("torch", "numpy", "h5py", "hydra-core", "omegaconf", "tiktoken", "safetensors", "wandb")


def write_about(run_dir: Path, facts: dict[str, Any], step: int, world_size: int) -> None:
    """Write what is known of a run when it starts, or goes on after a step: facts, and one more of its starts."""
    path = run_dir / ABOUT
    about = read_about(run_dir) if step else None
    before = about["starts"] if about else []
    code, diff = git()
    if diff:
        (run_dir / DIFF).write_bytes(diff)
    start = {"step": step, "world_size": world_size, "git": code, "versions": versions(), "machine": machine()}
    write_json(path, {"layout": 1, **facts, "starts": [*before, start]})


def git(root: Path = ROOT) -> tuple[dict[str, Any] | None, bytes]:
    """The commit that the code comes from and whether it was changed since, and these changes as a diff."""
    commit = ask_git(root, "rev-parse", "HEAD")
    if not commit:
        return None, b""
    diff = ask_git(root, "diff", "HEAD") or b""
    remote = ask_git(root, "config", "--get", "remote.origin.url") or b""
    return {
        "commit": commit.decode().strip(),
        "remote": without_secrets(remote.decode().strip()) or None,
        "changed": bool(diff),
    }, diff


def without_secrets(remote: str) -> str:
    """The address of a repository without user, password and query, which may hold tokens; ``git`` is a user of all."""
    scheme, user, rest = re.fullmatch(r"(.*?://)?(?:([^/]*)@)?(.*)", remote, re.DOTALL).groups(default="")
    if scheme:
        rest = re.split(r"[?#]", rest)[0]
    return scheme + ("git@" if user == "git" else "") + rest


def ask_git(root: Path, *arguments: str) -> bytes | None:
    """What git answers, or None where there is none, or no repository."""
    try:
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Of Python and the packages that matter."""
    import torch  # not for those who only read what was written

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def machine() -> dict[str, Any]:
    """What the run is computed on."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"host": platform.node(), "cpu": cpu_name(), "cores": os.cpu_count(), "gpus": gpus}


def cpu_name() -> str:
    """The processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
