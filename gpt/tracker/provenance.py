"""Provenance of a run's figures: the code, the versions and the machine of each of its starts, in about.json.

Changes to the code that are not committed stand beside it, in code.diff.
"""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt.files import ROOT, write_json
from gpt.rundir import ABOUT, read_about

DIFF = "code.diff"
PACKAGES = ("torch", "numpy", "h5py", "hydra-core", "omegaconf", "tiktoken", "safetensors", "wandb")


def write_about(run_dir: Path, facts: dict[str, Any], step: int, world_size: int) -> None:
    """Write about.json when a run starts, or goes on after a step: facts, and one more of its starts."""
    # A run that starts from step 0 has no history, whatever the directory holds.
    about = read_about(run_dir) if step else None
    earlier_starts = about["starts"] if about else []
    code, diff = _git()
    if diff:
        (run_dir / DIFF).write_bytes(diff)
    start = {
        "step": step,
        "date": datetime.now(UTC).date().isoformat(),
        "world_size": world_size,
        "git": code,
        "versions": _versions(),
        "machine": _machine(),
        "torch": _torch_settings(),
    }
    write_json(run_dir / ABOUT, {"layout": 1, **facts, "starts": [*earlier_starts, start]})


def _git(root: Path = ROOT) -> tuple[dict[str, Any] | None, bytes]:
    """Return the commit of the code and whether the code was changed since, and these changes as a diff."""
    # Code that was copied or installed has no commit.
    commit = _ask_git(root, "rev-parse", "HEAD")
    if not commit:
        return None, b""
    diff = _ask_git(root, "diff", "HEAD") or b""
    remote = _ask_git(root, "config", "--get", "remote.origin.url") or b""
    code = {
        "commit": commit.decode().strip(),
        "remote": _without_secrets(remote.decode().strip()) or None,
        "changed": bool(diff),
        "diff_sha256": sha256(diff).hexdigest() if diff else None,
    }
    return code, diff


def _without_secrets(remote: str) -> str:
    """Return the address of a repository without user, password and query, which may hold tokens.

    The user ``git`` is everybody's, and stays.
    """
    scheme, user, rest = re.fullmatch(r"(.*?://)?(?:([^/]*)@)?(.*)", remote, re.DOTALL).groups(default="")
    if scheme:
        rest = re.split(r"[?#]", rest)[0]
    if user == "git":
        rest = f"git@{rest}"
    return scheme + rest


def _ask_git(root: Path, *arguments: str) -> bytes | None:
    """Return the output of a git command, or None without git or a repository."""
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _versions() -> dict[str, str]:
    """Return the versions of Python, of the packages that matter, and of CUDA."""
    import torch  # not for those who only read what was written

    # Packages that are not installed, such as wandb, are left out.
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return versions


def _machine() -> dict[str, Any]:
    """Return the name and the processors of this machine."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"host": platform.node(), "cpu": cpu_name(), "cores": os.cpu_count(), "gpus": gpus}


def _torch_settings() -> dict[str, Any]:
    """Return what changes how torch computes on this machine, and stands in no config."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def cpu_name() -> str:
    """Return the name of the processor, as the system calls it."""
    # Python itself knows only the architecture, on Linux.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()
