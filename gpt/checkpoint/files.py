"""Checkpoints as files: their names, the newest one, state.json, and damage. Needs no torch.

A directory ``checkpoints/step_00000500/`` holds model.safetensors, optimizer.safetensors (keyed by parameter name),
averages of the weights where the run keeps any (ema.safetensors), the run's metrics.jsonl and samples.txt up to that
step, and state.json with the sha256 of each of them. ``last`` and ``best`` are links to such directories, and follow
from state.json. A checkpoint holds no times, hosts or paths.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from gpt.errors import InputError
from gpt.files import parse_object
from gpt.rundir import HISTOGRAMS, read_sweep

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
TRAINED = "trained.safetensors"  # the weights that training goes on from, where those of the model are averaged
AVERAGES = {"ema": "trainer.ema", "average": "trainer.average_from"}  # further weights, and the keys that ask for them
STATE = "state.json"
WHEN_SAVED = "a run saves at its evaluations, every checkpoint.every steps, and at its end"
MOST_NAMED = 6  # jobs in a message
LAYOUT = 1  # of state.json; 0, which is still read, had no hashes
NAME = re.compile(r"step_(\d{8,})")
# Keys of state.json in every layout that are read without torch, and their types.
KEYS = {
    "progress": dict,
    "tokenizer": dict,
    "fingerprint": str,
    "logs": dict,
}


# --- names


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Return the directory of the checkpoint of a step."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def weights_file(name: str) -> str:
    """Return the name of the file with an average of the weights."""
    return f"{name}.safetensors"


def find_average(path: Path, name: str) -> Path:
    """Return the file with an average of the weights in a checkpoint, or the last one of a run. Raises InputError."""
    checkpoint = find_checkpoint(path)
    file = checkpoint / weights_file(name)
    if file.is_file():
        return file
    # The refusal names those that are there.
    there = [other for other in AVERAGES if (checkpoint / weights_file(other)).is_file()]
    cure = f"it has weights={', '.join(there)}" if there else "leave weights= out"
    if name in AVERAGES:
        cure += f"; a run keeps them with {AVERAGES[name]}"
    raise InputError(f"weights={name}: {checkpoint} has no such average", cure)


def _step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint, which its name holds."""
    return int(NAME.fullmatch(checkpoint.name)[1])


def list_checkpoints(run_dir: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first. A directory gets such a name only when it is whole."""
    found = []
    for path in (run_dir / "checkpoints").glob("step_*"):
        if NAME.fullmatch(path.name) and path.is_dir():
            found.append(path)
    return sorted(found, key=_step_of)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None where there is none."""
    found = list_checkpoints(run_dir)
    return found[-1] if found else None


def find_checkpoint(path: Path) -> Path:
    """Return ``path`` if it is a checkpoint, else the last one of the run in this directory. Raises InputError."""
    # A copy of a checkpoint may have another name, and a damaged one may lack its state.json.
    has_state = (path / STATE).exists()
    has_name = NAME.fullmatch(path.resolve().name) is not None
    is_checkpoint = path.is_dir() and (has_state or has_name)
    checkpoint = path if is_checkpoint else latest_checkpoint(path)
    if checkpoint is None:
        check_no_sweep("checkpoint", path)
        if (path / "config.yaml").is_file():
            raise InputError(
                f"checkpoint={path}: this run has saved nothing",
                f"give another: {WHEN_SAVED}",
            )
        raise InputError(
            f"checkpoint={path}: no checkpoint there",
            "give the output directory of a run, or one of its checkpoints: DIR/checkpoints/best",
        )

    # The config of the run says what model the checkpoint is of.
    checkpoint = checkpoint.resolve()
    run_dir = checkpoint.parents[1]
    if not (run_dir / "config.yaml").is_file():
        raise InputError(
            f"checkpoint={path}: no config.yaml in {run_dir}",
            "a checkpoint is read where its run wrote it",
        )
    return checkpoint


def check_no_sweep(key: str, path: Path) -> None:
    """Check that the directory given for a run does not hold a sweep. Raises InputError, which names its jobs."""
    sweep = read_sweep(path)
    if sweep is None:
        return
    jobs = list(sweep["jobs"])
    listed = ", ".join(jobs[:MOST_NAMED])
    n_more = len(jobs) - MOST_NAMED
    if n_more > 0:
        listed += f" and {n_more} more"
    raise InputError(f"{key}={path} holds a sweep, not a run", f"give one of its jobs, {path}/JOB: {listed}")


def resume_hint(run_dir: Path) -> str:
    """Tell the user what an ended run has saved, and the command that continues it."""
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        return f"nothing had been saved yet; from the beginning: python train.py resume={run_dir}"
    return f"the checkpoint of step {_step_of(checkpoint):,} is intact: python train.py resume={run_dir}"


# --- state.json


def write_state(checkpoint: Path, content: dict[str, Any], hashes: dict[str, str]) -> None:
    """Write state.json: its layout, ``content``, and the sha256 of the other files and of itself."""
    content = {"layout": LAYOUT, **content, "sha256": hashes}
    hashes[STATE] = _json_hash(content)
    (checkpoint / STATE).write_text(json.dumps(content, indent=1) + "\n")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read state.json: progress, tokenizer, fingerprint of the data, bytes of each log, hashes of the other files.

    Raises InputError where it is damaged, or of a newer layout.
    """
    try:
        return _parse_state(checkpoint)
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, STATE, error) from error


def _parse_state(checkpoint: Path) -> dict[str, Any]:
    """Read and check state.json. Raises OSError or ValueError, and InputError for a newer layout."""
    path = checkpoint / STATE
    content = parse_object(path.read_text())

    # The layout comes first: another one may have other keys.
    layout = content.get("layout", 0)
    if layout not in range(LAYOUT + 1):
        raise InputError(
            f"{path} has layout {layout}, and this version of gptlab reads up to {LAYOUT}",
            "take the version that wrote it",
        )

    # The file's own hash is that of the content without it.
    hashes = content.get("sha256")
    if layout or hashes is not None:
        own_hash = None
        if isinstance(hashes, dict):
            own_hash = hashes.pop(STATE, None)
        if own_hash != _json_hash(content):
            raise ValueError("its sha256 is not what it says")
    content.setdefault("sha256", {})

    # Layout 0 may lack hashes, so that its content is checked.
    for key, kind in KEYS.items():
        if key not in content:
            raise ValueError(f"it has no {key}")
        if not isinstance(content[key], kind):
            raise ValueError(f"its {key} is no {kind.__name__}")
    for key in ("step", "tokens"):
        if key not in content["progress"]:
            raise ValueError(f"its progress has no {key}")
    return content


def _json_hash(content: dict[str, Any]) -> str:
    """Return the sha256 of an object written as JSON."""
    text = json.dumps(content)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- damage


def check_whole(checkpoint: Path) -> dict[str, Any]:
    """Check that every file is as it was written, and return the content of state.json.

    Raises InputError, which names another checkpoint that is whole.
    """
    state = read_state(checkpoint)
    for name, expected in state["sha256"].items():
        try:
            _check_file(checkpoint / name, expected)
        except (OSError, ValueError) as error:
            raise _damaged(checkpoint, name, error) from error
    return state


def _check_file(path: Path, expected: str) -> None:
    """Compare a file with its hash in state.json. Raises OSError or ValueError."""
    if file_hash(path) != expected:
        raise ValueError(f"its sha256 is not what {STATE} says")


def _is_whole(checkpoint: Path) -> bool:
    """Return whether all files of a checkpoint are as they were written, and can be read by this version."""
    try:
        state = _parse_state(checkpoint)
        for name, expected in state["sha256"].items():
            _check_file(checkpoint / name, expected)
    except (OSError, ValueError, InputError):
        return False
    return True


def _damaged(checkpoint: Path, name: str, error: OSError | ValueError) -> InputError:
    """Return the refusal of a checkpoint, which names a whole one to use instead: an older one if there is one."""
    # A run that still trains deletes old checkpoints.
    if not checkpoint.exists():
        return InputError(
            f"{checkpoint} is gone: its run has replaced it by a newer one",
            "give the command again",
        )

    # The newest of the older ones is tried first, then the newer ones.
    newest_first = list_checkpoints(checkpoint.parents[1])[::-1]
    older = [path for path in newest_first if path.name < checkpoint.name]
    newer = [path for path in newest_first if path.name > checkpoint.name]
    cure = "no other checkpoint of this run is whole: restore this one from a copy"
    for path in older + newer:
        if _is_whole(path):
            cure = f"{path} is whole: evaluate that one; to go on from there, delete {checkpoint.name} and resume"
            break

    reason = error.strerror if isinstance(error, OSError) else str(error)
    return InputError(f"{checkpoint / name} is damaged: {reason}", cure)


def check_links(run_dir: Path) -> None:
    """Check that ``last`` and ``best`` are links, not copies of what they name. Raises InputError."""
    for name in ("last", "best"):
        path = run_dir / "checkpoints" / name
        if path.is_dir() and not path.is_symlink():
            raise InputError(
                f"{path} is a directory, and should be a link to a checkpoint beside it",
                "delete it, if that checkpoint is there: the link is made again",
            )


def check_logs(run_dir: Path, checkpoint: Path, state: dict[str, Any]) -> None:
    """Check that the part of each log that belongs to a checkpoint is in the log or the checkpoint. Raises InputError.

    Histograms may be missing altogether: the user has chosen to go on without.
    """
    for name, length in state["logs"].items():
        # A log is rebuilt from its copy in the checkpoint.
        if (checkpoint / name).exists():
            continue
        path = run_dir / name
        cure = "restore it from a copy"
        if name == HISTOGRAMS:
            if not path.exists():
                continue
            cure += ", or delete it to go on without"
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            raise InputError(
                f"{path} has {size:,} bytes, and {length:,} belong to {checkpoint.name}",
                cure,
            )
