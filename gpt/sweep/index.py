"""The file sweep.json of a sweep's directory: its jobs in order, and what each was composed from."""

import os
import platform
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gpt.errors import InputError
from gpt.files import LAYOUT, locked, write_json
from gpt.rundir import INDEX, read_sweep
from gpt.sweep.jobs import Job, State
from gpt.sweep.question import describe

HYDRA_FILE = "multirun.yaml"  # what Hydra's own sweeper puts there before it launches


class Index:
    """The content of sweep.json, to which each command adds its jobs.

    ``sweep_dir`` is None while the directory has no name yet. Raises InputError for a directory that holds no sweep.
    """

    def __init__(self, sweep_dir: Path | None, config: DictConfig):
        self.baseline = config.sweep.baseline
        # Taken before the jobs are composed: files may change while they run.
        sources = config.hydra.runtime.config_sources
        roots = [Path(source.path) for source in sources if source.schema == "file"]
        self.fingerprint = _hash_yaml_files(roots)
        self.about = describe(config.hydra.runtime.choices.get("sweeps"), roots)
        self.content: dict[str, Any] = {}
        if sweep_dir is not None:
            _check_sweep_dir(sweep_dir)
            self.content = read_sweep(sweep_dir) or {}

    def has(self, name: str, overrides: list[str]) -> bool:
        """Return whether a finished job of this name was composed from the same overrides and files."""
        entries = self.content.get("jobs", {})
        return entries.get(name) == self._finished_entry(overrides)

    def left_out_here(self) -> dict[str, str]:
        """Return the jobs that an earlier command has left out on this machine, and why."""
        if self.content.get("machine") != _this_machine():
            return {}
        return self.content.get("left_out", {})

    def add(self, title: str, jobs: list[Job], sweep_dir: Path) -> None:
        """Add the jobs of this command to those of earlier ones.

        The files that a job is composed from are noted once it is done: a run that is to be replaced would otherwise
        pass for the new one, if this command were killed before that.
        """
        entries = dict(self.content.get("jobs", {}))
        left_out = {}
        for job in jobs:
            if job.state == State.LEFT_OUT:
                left_out[job.name] = job.note
                continue
            name = str(job.run_dir.relative_to(sweep_dir))
            if job.is_finished:
                entries[name] = self._finished_entry(job.overrides)
            else:
                entries[name] = {"overrides": job.overrides}

        # Keys that another version has written stay.
        self.content |= {
            "layout": LAYOUT,
            "name": title,
            "baseline": self.baseline,
            "about": self.about,
            "jobs": entries,
            "left_out": left_out,
            "machine": _this_machine(),
        }

    def write(self, sweep_dir: Path) -> None:
        """Write sweep.json. Raises OSError."""
        write_json(sweep_dir / INDEX, self.content)

    def _finished_entry(self, overrides: list[str]) -> dict[str, Any]:
        return {"overrides": overrides, "configs": self.fingerprint}


def _check_sweep_dir(path: Path) -> None:
    """Check that a directory is empty, or a sweep's, and not in use. Raises InputError."""
    if not path.exists():
        return
    if path.is_dir():
        names = {inside.name for inside in path.iterdir()}
        if names <= {HYDRA_FILE}:
            return
    if not (path / INDEX).exists():
        raise InputError(
            f"{path} is there already and holds no sweep (it has no {INDEX})",
            "take another directory: hydra.sweep.dir=DIR",
        )

    # It can be read, and no other command has it.
    read_sweep(path)
    with locked(path):
        pass


def _hash_yaml_files(roots: list[Path]) -> str:
    """Return the hash of the paths and contents of all YAML files below some directories."""
    digest = sha256()
    for root in roots:
        for directory, _, names in os.walk(root, followlinks=True):
            for name in sorted(names):
                # The path counts too: a file that is renamed is another option.
                if not name.endswith((".yaml", ".yml")):
                    continue
                path = Path(directory, name)
                digest.update(f"{path}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _this_machine() -> str:
    """Return a text that tells machines apart, and one with GPUs from itself without."""
    gpus = list(Path("/dev").glob("nvidia[0-9]*"))
    n_gpus = len(gpus)
    return f"{platform.node()}, {n_gpus} GPUs"
