"""The jobs of a sweep: which there are, what they are called, and how each stands by what its directory holds."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, ListConfig

from gpt.cli.arguments import parse
from gpt.cli.run_checks import CheckedRun
from gpt.config.checks import check_names
from gpt.config.layouts import rename_override
from gpt.config.load import SAME_RUN, Config, changed_keys, read
from gpt.errors import InputError
from gpt.files import locked
from gpt.rundir import INDEX, check_layout, held, read_result, read_sweep
from gpt.sweep.slots import Process, Slot

if TYPE_CHECKING:
    from gpt.cluster.slurm import Submitted

HYDRAS = "multirun.yaml"  # what Hydra's own sweeper puts there before it launches
REPLACED = "replaced"  # the directory in it of runs that sweep.on_change=rerun has replaced
LONGEST_NAME = 100
UNNAMED = re.compile(rf"{SAME_RUN.pattern}|cluster|tracker|name|tags|plan|sweeps")  # keys that name no job
MOST_JOBS = 1_000  # composing and checking each, before the first starts, takes a tenth of a second
NOT_IN_NAMES = r"[^A-Za-z0-9.+_-]+"


@dataclass
class Job:
    """A job: what it is, and how it stands.

    ``state`` is waiting, running, done, kept (it was done before), interrupted, failed or left out; ``note`` says why.
    One that is kept may not have been composed.
    """

    name: str
    overrides: list[str]
    composed: DictConfig | None
    config: Config | None
    run_dir: Path
    checked: CheckedRun | None = None  # of a job that is to be submitted
    state: str = "waiting"
    note: str = ""
    handle: "Process | Submitted | None" = None
    slot: Slot | None = None
    began: float = 0.0
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether its run is whole."""
        return self.state in ("done", "kept")

    @property
    def on_slurm(self) -> bool:
        """Whether SLURM runs it."""
        return self.config.cluster.name == "slurm"


def check_swept(overrides: list[Override], arms: dict[str, list[str]], may_be_one: bool) -> None:
    """There are jobs, and no more than can be composed while one waits. Raises InputError.

    ``may_be_one``: a job alone is meant, such as one more of a sweep that has a name.
    """
    for name, arm in arms.items():
        if not isinstance(arm, (list, ListConfig)) or not all(isinstance(override, str) for override in arm):
            raise InputError(f"hydra.sweeper.arms.{name}={arm} is no arm", "allowed: a list of overrides: [A=1,…]")
    swept = {override.get_key_element(): override for override in overrides}  # the last of each, as Hydra takes it
    named = [override.input_line for override in overrides if override.key_or_group == "sweep.arm"]
    jobs = 1 if named else max(1, len(arms))
    for override in swept.values():
        if not override.is_sweep_override():
            continue
        values = count_values(override)
        if not values:
            raise InputError(f"{override.input_line} has no values", "give some: KEY=1,2,3 or KEY=range(1,4)")
        jobs *= values
    if jobs > MOST_JOBS:
        raise InputError(
            f"this sweep has {jobs:,} jobs", f"allowed: up to {MOST_JOBS:,}; sweep over fewer values at a time"
        )
    if not (arms or may_be_one or any(override.is_sweep_override() for override in swept.values())):
        raise InputError(
            "--multirun without several values of anything", "give some: seed=1,2; for one run leave --multirun out"
        )
    if named and not arms:
        raise InputError(f"{named[0]}: this sweep has no arms", "leave sweep.arm out")


def count_values(override: Override) -> int:
    """How many values an override sweeps over, without making them. Raises InputError where they cannot be listed."""
    swept = override.value()
    if isinstance(swept, RangeSweep):
        numbers = [float(number) for number in (swept.start, swept.stop, swept.step)]
        if not all(map(math.isfinite, numbers)) or not swept.step:
            raise InputError(f"{override.input_line} has no end", "allowed: range(START,STOP,STEP), such as range(1,4)")
        start, stop, step = map(Fraction, (swept.start, swept.stop, swept.step))
        return max(0, math.ceil((stop - start) / step))
    if isinstance(swept, IntervalSweep):
        raise InputError(f"{override.input_line} has no values that can be listed", "give some: KEY=0.1,0.2")
    return len(list(override.sweep_string_iterator()))


def over_arms(jobs: list[list[str]], arms: dict[str, list[str]], ladder: bool) -> list[list[str]]:
    """Each job for each arm in turn, or for the one that it names (``sweep.arm``); what the job itself says comes last.

    Raises InputError for an arm that there is not.
    """
    if not arms:
        return jobs
    expanded, before = {}, []
    for name, overrides in arms.items():
        before = [*before, *overrides] if ladder else list(overrides)
        expanded[name] = list({override.partition("=")[0]: override for override in before}.values())
    found = []
    for job in jobs:
        named = [override.partition("=")[2] for override in job if override.startswith("sweep.arm=")]
        for given in named:
            check_names("sweep.arm", given, list(arms))
        rest = [override for override in job if not override.startswith("sweep.arm=")]
        found += [[*expanded[name], f"sweep.arm={name}", *rest] for name in named or arms]
    return found


def swept_keys(config: DictConfig, jobs: list[list[str]]) -> list[str]:
    """The keys that name the jobs: those with several values on the command line, and those of the sweep's file.

    Where there are none, all that the command gives and that make a difference. The seed comes last.
    """
    overrides = parse(list(config.hydra.overrides.task))
    given = [o.get_key_element() for o in overrides if o.is_sweep_override()]
    keys = ["sweep.arm", *(config.hydra.sweeper.get("params") or {}), *given]
    if not any(o.startswith(f"{key}=") for job in jobs for o in job for key in keys):
        keys = [key for o in overrides if not UNNAMED.fullmatch(key := o.get_key_element())]
    keys = sorted(dict.fromkeys(keys), key=lambda key: key == "seed")
    return [key for key in keys if any(o.startswith(f"{key}=") for job in jobs for o in job)]


def job_names(jobs: list[list[str]], keys: list[str], default: str) -> list[str]:
    """Names of directories such as ``vocab_multiple-64_seed-1``, equal for equal overrides; without = , and spaces."""
    last = Counter(re.split(r"[./]", key)[-1] for key in keys)
    names = []
    for job in jobs:
        parts = []
        for override in job:
            key, _, value = override.partition("=")
            if key not in keys:
                continue
            short = re.split(r"[./]", key)[-1]
            label = "" if key == "sweep.arm" else (short if last[short] == 1 else key.replace("/", ".")) + "-"
            plain = value.lower() if value in ("True", "False") else value
            if re.search(NOT_IN_NAMES, plain):
                plain = re.sub(NOT_IN_NAMES, "-", plain).strip("-")
            parts.append((keys.index(key), label + plain))
        name = "_".join(part for _, part in sorted(parts)) or default
        names.append(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{short_hash(name)}")
    twice = Counter(names)
    return [
        name if twice[name] == 1 else f"{name}-{short_hash(' '.join(job))}"
        for name, job in zip(names, jobs, strict=True)
    ]


def known_names(names: list[str], jobs: list[list[str]], index: dict[str, Any]) -> list[str]:
    """The names of jobs, where an earlier command has named one with the same overrides by other keys: that name."""
    known, before = index.get("jobs", {}), {}
    for name, entry in known.items():
        if overrides := entry.get("overrides"):
            before[frozenset(filter(None, map(rename_override, overrides)))] = name
    return [name if name in known else before.get(frozenset(job), name) for name, job in zip(names, jobs, strict=True)]


def short_hash(text: str) -> str:
    """Tells names apart that would be alike."""
    return sha256(text.encode()).hexdigest()[:6]


def check_sweep_dir(path: Path) -> None:
    """A sweep goes into a directory that is empty, or a sweep's, and not in use. Raises InputError."""
    if not path.exists() or (path.is_dir() and {inside.name for inside in path.iterdir()} <= {HYDRAS}):
        return
    if not (path / INDEX).exists():
        raise InputError(
            f"{path} is there already and holds no sweep (it has no {INDEX})",
            "take another directory: hydra.sweep.dir=DIR",
        )
    read_sweep(path)
    with locked(path):
        pass


def stand(job: Job) -> None:
    """See what is in a job's directory: nothing, a run that is done, or one that goes on. Raises InputError."""
    check_layout(job.run_dir)
    saved_config = job.run_dir / "config.yaml"
    if not saved_config.is_file():
        if (job.run_dir / "metrics.jsonl").exists():
            raise InputError(
                f"{job.run_dir} holds a run without config.yaml", "move it away, or take another directory"
            )
        return
    if job.on_slurm:
        from gpt.cluster.slurm import attach

        job.handle = attach(job.config, job.run_dir)
    if changed := changed_keys(read(saved_config), job.config, any_length=False):
        if job.config.sweep.on_change == "refuse":
            listed = ", ".join(f"{key} {was} -> {now}" for key, (was, now) in changed.items())
            raise InputError(
                f"{job.run_dir} holds a run with another config: {listed}",
                "take another directory (hydra.sweep.dir=DIR), or run it anew with sweep.on_change=rerun",
            )
        job.note, job.handle = REPLACED, None
        return
    result = read_result(job.run_dir)
    if result and result["status"] == "done":
        job.state, job.result = "kept", result
    elif job.handle is None:
        with held(job.run_dir):
            job.config.resume = str(job.run_dir)


def set_aside(run_dir: Path, replaced: Path) -> None:
    """Move a run away, under a name that is free."""
    replaced.mkdir(exist_ok=True)
    number = 1
    while (target := replaced / f"{run_dir.name}-{number}").exists():
        number += 1
    run_dir.rename(target)
