"""Everything that is checked before a run starts, in the order of its cost, and what the checks have loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt.cli.init_from import alphabet_of, check_init_from, check_start
from gpt.cli.resume_checks import check_resumable, check_same_data, check_unused
from gpt.config.schema import Config
from gpt.console import say
from gpt.errors import InputError
from gpt.evaluation.tasks import check_tasks, usual_tasks

if TYPE_CHECKING:
    from gpt.tokens.tokenfile import TokenFile


@dataclass
class CheckedRun:
    """A run that can start: its config, with the ranks counted, its data, and its output directory.

    A plan has no data, but the size of the vocabulary where it is known; a dry run has neither. ``run_dir`` is None in
    a process that follows rank 0.
    """

    config: Config
    train: "TokenFile | None" = None
    val: "TokenFile | None" = None
    vocab_size: int | None = None
    run_dir: Path | None = None


def check_run(config: Config, run_dir: Path | None) -> CheckedRun:
    """Check what can be wrong, as far as it can be known here, and prepare the data on the way. Raises InputError.

    ``run_dir`` is None while it has no name yet, and in a process that follows rank 0.
    """
    # A plan fetches no files, so only the names of its tasks are checked.
    check_tasks(config, [] if config.plan else usual_tasks(config))

    # A look at the run needs little.
    if config.plan:
        return CheckedRun(config, vocab_size=_check_plan(config, run_dir))
    if config.is_dry_run:
        return CheckedRun(config)

    # SLURM's answer takes less time than preparing data. The job checks the machines that it gets.
    if config.cluster.name == "slurm":
        _check_submission(config, run_dir)
        train, val = check_and_prepare(config, run_dir)
        return CheckedRun(config, train, val)

    # Importing torch takes longer than finding prepared data.
    train, val = check_and_prepare(config, run_dir)
    _check_this_machine(config)
    return CheckedRun(config, train, val)


def check_and_prepare(config: Config, run_dir: Path | None) -> "tuple[TokenFile, TokenFile]":
    """Check all that needs no torch, and prepare the data; return the training and the validation file.

    ``run_dir`` is None while it is not made. Raises InputError.
    """
    # The directory, by the small files in it.
    state = None
    if run_dir is not None:
        if config.resume:
            state = check_resumable(config, run_dir)
        else:
            check_unused(run_dir)

    # The weights that it starts from, which one that goes on no longer needs.
    weights = check_init_from(config) if state is None else None

    # numpy and h5py are imported once config and directory are right.
    from data.preparation import check_fits, check_trains, describe_tokenizer, prepare
    from gpt.tokens.tokenfile import data_fingerprint

    check_trains(config.data)
    line = describe_tokenizer(config)
    if line:
        say(line)
    train, val = prepare(config.data, alphabet_of(config, weights, state))
    check_fits(config, train, val)
    if weights is not None:
        check_start(weights, train.vocabulary)
    if state is not None:
        check_same_data(run_dir, state, data_fingerprint(train, val), train.vocabulary)
    return train, val


def _check_this_machine(config: Config) -> None:
    """Count the ranks, and check that this machine can run them. Raises InputError."""
    from gpt.cluster.machine import check_machine, check_meeting_place, check_memory, resolve_ranks

    resolve_ranks(config)
    check_meeting_place(config.cluster)
    check_machine(config)
    check_memory(config)


def _check_submission(config: Config, run_dir: Path | None) -> None:
    """Check that SLURM would take the job, and does not run an earlier one of this run. Raises InputError."""
    from gpt.cluster.slurm import attach, check_sbatch

    check_sbatch(config, run_dir)
    earlier = attach(config, run_dir) if run_dir is not None else None
    if earlier is not None:
        raise InputError(
            f"{run_dir} is in use: SLURM job {earlier.job_id} is not over",
            f"wait for it, or end it after its step: scancel --signal=USR2 {earlier.job_id}",
        )


def _check_plan(config: Config, run_dir: Path | None) -> int | None:
    """Check what a plan needs of directory, data and device; return the size of the vocabulary, if it is known.

    Raises InputError.
    """
    if run_dir is not None:
        check_unused(run_dir)
    check_init_from(config)

    from data.preparation import check_trains, vocab_size

    check_trains(config.data)
    size = vocab_size(config.data)

    # torch is imported once the data is right. Not the precision: the plan may be for another machine.
    from gpt.device import pick_device
    from gpt.optimizer.build import check_optimizer

    device = pick_device(config.device)
    check_optimizer(config.optimizer, device)
    return size
