"""The output directory of a run or a sweep: names and readers of its files, and locks. Needs no torch.

Those of checkpoints are in :mod:`gpt.checkpoint`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from gpt.errors import InputError, Interrupted
from gpt.files import LAYOUT, check_kinds, locked, read_json, write_json

METRICS = "metrics.jsonl"
SAMPLES = "samples.txt"
HISTOGRAMS = "histograms.jsonl"
RESULT = "result.json"
ABOUT = "about.json"  # of a run: facts, and its starts
INDEX = "sweep.json"  # of a sweep: its baseline, and its jobs in order
# All files and directories that a run writes.
FILES = [
    "config.yaml",
    ".hydra/overrides.yaml",
    METRICS,
    SAMPLES,
    HISTOGRAMS,
    RESULT,
    ABOUT,
    "log.txt",
    "loss.png",
    "code.diff",
    "wandb.json",
]
DIRECTORIES = [".hydra", "checkpoints", "logs", "slurm", "tensorboard"]

NOT_FINITE = "not finite"  # cause of a failure in result.json: numbers that were not finite

# Types of the values in result.json. Every other key is a number, or null: metrics of evaluations too.
RESULT_KINDS = {
    "layout": int,
    "status": str,
    "cause": str,
    "step": int,
    "tokens": int,
    "tokenizer": dict,
    "references": dict,
    "data_fingerprint": str,
    "data_masks": dict,
    "data_order_hash": str,
    "init_sha256": str,
}
NUMBER = (int, float, NoneType)


# --- locks


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Lock a run's directory for this command. Raises InputError while another command or a training uses it."""
    with locked(run_dir):
        # A training may outlive its command, on another machine for instance, so that it has a lock of its own.
        metrics = run_dir / METRICS
        if metrics.is_file():
            with locked(metrics):
                pass
        yield


@contextlib.contextmanager
def lock_logs(run_dir: Path) -> Iterator[None]:
    """Lock a run's logs for this training. Raises InputError while another training uses them."""
    metrics = run_dir / METRICS
    metrics.touch()
    with locked(metrics):
        yield


# --- result.json, about.json, sweep.json


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Write result.json, whole or not at all."""
    write_json(run_dir / RESULT, {"layout": LAYOUT, **result})


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Read result.json; None where there is none. Raises InputError for a file that this version cannot read."""
    path = run_dir / RESULT
    if not path.exists():
        return None
    result = read_json(path, ("status",), "delete it: the run writes it again when it goes on")
    kinds = dict.fromkeys(result, NUMBER)
    kinds.update(RESULT_KINDS)
    check_kinds(path, result, kinds)
    return result


def read_about(run_dir: Path) -> dict[str, Any] | None:
    """Read about.json; None where there is none. Raises InputError for a file that this version cannot read."""
    path = run_dir / ABOUT
    if not path.exists():
        return None
    about = read_json(path, ("starts",))
    check_kinds(path, about, {"starts": list})

    # Every start is a section; a list without any is refused too.
    kinds = {"git": (dict, NoneType), "machine": dict, "versions": dict, "torch": dict}
    for start in about["starts"] or [None]:
        check_kinds(path, {"a start": start}, {"a start": dict})
        check_kinds(path, start, kinds)
    return about


def read_sweep(directory: Path) -> dict[str, Any] | None:
    """Read sweep.json; None where there is none. Raises InputError for a file that this version cannot read."""
    path = directory / INDEX
    if not path.exists():
        return None
    sweep = read_json(path, ("jobs",))
    check_kinds(path, sweep, {"jobs": dict, "baseline": (str, NoneType), "left_out": dict, "about": dict})

    # Every job is a section with a list of overrides.
    check_kinds(path, sweep["jobs"], dict.fromkeys(sweep["jobs"], dict))
    for job in sweep["jobs"].values():
        check_kinds(path, job, {"overrides": list})
        for override in job.get("overrides", []):
            check_kinds(path, {"an override": override}, {"an override": str})

    # Jobs that were left out have a reason in words.
    left_out = sweep.get("left_out", {})
    check_kinds(path, left_out, dict.fromkeys(left_out, str))
    return sweep


# --- checks


def check_layout(run_dir: Path) -> None:
    """Check that no file stands where a directory belongs, nor a directory where a file does. Raises InputError."""
    for name in ("", *DIRECTORIES, *FILES):
        path = run_dir / name
        if not path.exists():
            continue
        if name in FILES:
            kind = "file"
            is_right = path.is_file()
        else:
            kind = "directory"
            is_right = path.is_dir()
        if not is_right:
            raise InputError(
                f"{path} is no {kind}",
                f"move it away: runs keep a {kind} of this name there",
            )


def outcome(result: dict[str, Any], run_dir: Path) -> float | None:
    """Return the validation loss of a run, which only rank 0 knows. Raises Interrupted where a signal ended it."""
    if result["status"] == "interrupted":
        step = result["step"]
        raise Interrupted(f"interrupted after step {step}; continue with\n  python train.py resume={run_dir}")
    return result.get("val_loss")
