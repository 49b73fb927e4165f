"""One rank of a run: it joins the others, compares itself with them, and trains."""

import hashlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt.config.load import flatten
from gpt.config.schema import Config
from gpt.device import pick_device
from gpt.distributed import World, process_group
from gpt.errors import InputError
from gpt.files import ROOT
from gpt.tokens.tokenfile import TokenFile, data_fingerprint
from gpt.trainer import Trainer

# Keys that may differ between ranks: paths on their machine, and which machine it is.
PER_RANK_KEYS = ("cluster.node_rank", "cluster.rdzv_endpoint", "data.files", "data.dir", "data.cache_dir", "resume")
CODE = ("gpt", "data", "hydra_plugins")  # with train.py, the code of a run
PREPARED = Path("data", "cache")  # holds data, no code


def run(world: World, config: Config, train: TokenFile, val: TokenFile, run_dir: Path | None) -> dict[str, Any]:
    """Take this rank's part in a run, from joining the others to its end; only rank 0 needs to know the directory.

    Raises InputError when the ranks, or config, data and checkpoint, do not fit together, and TrainingError when
    the run cannot go on.
    """
    device = pick_device(config.device, world.local_rank)
    with process_group(world, device, config.cluster.timeout):
        run_dir = _compare_ranks(world, config, data_fingerprint(train, val), run_dir)
        with _redirect_output(world, run_dir):
            return Trainer(config, train, val, run_dir, world).fit()


def _compare_ranks(world: World, config: Config, data: str, run_dir: Path | None) -> Path:
    """Compare code, config and data of all ranks; returns the output directory, which only rank 0 knows before.

    ``data`` is the fingerprint of the data. Raises InputError, on every rank, where one differs.
    """
    # Every rank compares, so that every rank refuses.
    own = _fingerprints(config, data)
    everyone = world.gather((own, run_dir and str(run_dir.resolve())))
    reference, directory = everyone[0]
    for rank, (theirs, _) in enumerate(everyone):
        for subject in reference:
            if theirs[subject] != reference[subject]:
                raise InputError(f"rank {rank} has other {subject} than rank 0", f"give every rank the same {subject}")
    return run_dir or Path(directory)


def _fingerprints(config: Config, data: str) -> dict[str, str]:
    """Return what all ranks must have in common: hash of the code, the config, fingerprint of the data."""
    code = hashlib.sha256()
    for path in _code_files():
        content = path.read_bytes()
        code.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode())
        code.update(content)

    # The config, but for the keys that each rank has its own value of.
    shared = {key: value for key, value in flatten(config).items() if key not in PER_RANK_KEYS}
    return {"code": code.hexdigest(), "config": repr(shared), "data": data}


def _code_files() -> list[Path]:
    """List the Python files that a run can use, in an order that is the same on every machine."""
    paths = [ROOT / "train.py"]
    for name in CODE:
        for path in (ROOT / name).rglob("*.py"):
            if not path.is_relative_to(ROOT / PREPARED):
                paths.append(path)
    return sorted(paths, key=lambda path: path.relative_to(ROOT).as_posix())


@contextmanager
def _redirect_output(world: World, run_dir: Path) -> Iterator[None]:
    """Redirect the output of all ranks but 0 to logs/rank_N.log, with the traceback of an exception."""
    if world.is_main:
        yield
        return
    path = run_dir / "logs" / f"rank_{world.rank}.log"
    path.parent.mkdir(exist_ok=True)

    # Descriptors, not sys.stdout: libraries in C++ write to them too.
    sys.stdout.flush()
    sys.stderr.flush()
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    except BaseException:
        traceback.print_exc()
        raise
