"""Refusals of what no run can mean: what keys say together. Imports no torch.

What each key may hold by itself is refused by gpt/config/values.py.
"""

import re

from gpt.config.keys import Choice, Range
from gpt.config.model_checks import check_model
from gpt.config.optimizer_checks import check_averages, check_optimizer
from gpt.config.schema import Config, DataConfig, MultinodeConfig, SlurmConfig
from gpt.config.values import (
    check_64_bits,
    check_names,
    check_not_too_much,
    check_range,
    check_wandb_name,
    nearest,
    values_of,
)
from gpt.errors import InputError
from gpt.schedule import warmup

MOST_RAMP_SIZES = 10_000  # of a batch; GPT-3's ramp has some hundred
LIKE_STEPS = 10_000  # a number of tokens below it may be meant as one of steps
LONGEST_NAME = 100  # characters, of the 255 that a directory's name may have
FILE_NAME = r"[A-Za-z0-9._-]+"
SBATCH_OPTION = r"[A-Za-z][A-Za-z0-9_-]*"
HOST_AND_PORT = r"(\[.+\]|[^:]+):([0-9]{1,5})"
SOURCES_WITHOUT_FILES = ("stdlib", "arithmetic")


def check(config: Config) -> None:
    """Refuse what no run can mean. Raises InputError."""
    # Each key by itself, as far as what the keys mean together does not say it better.
    keys = list(values_of(config))
    for key, value, allowed in keys:
        if isinstance(allowed, Choice):
            check_names(key, value, list(allowed.values))
    for key, value, allowed in keys:
        check_64_bits(key, value)
        if isinstance(allowed, Range):
            check_not_too_much(key, value, allowed)
    _check_ranks(config)
    for key, value, allowed in keys:
        if isinstance(allowed, Range):
            check_range(key, value, allowed)

    # Keys that mean something only together.
    _check_cluster(config)
    _check_run(config)
    _check_data(config.data)
    _check_tracker(config)
    check_model(config.model)
    check_optimizer(config)
    _check_length(config)
    _check_batch(config)
    _check_ramp(config)
    _check_schedule(config)
    check_averages(config)


def _check_run(config: Config) -> None:
    """Check the name of the run, and that it is either planned or resumed. Raises InputError."""
    if not re.fullmatch(FILE_NAME, config.name) or len(config.name) > LONGEST_NAME:
        raise InputError(
            f"name={config.name!r} cannot name a directory",
            f"allowed: letters, digits and . _ -, up to {LONGEST_NAME} characters",
        )
    if config.plan and config.resume:
        raise InputError(
            "plan=true says what a run would be, and resume continues one",
            "leave one of them out",
        )


def _check_data(data: DataConfig) -> None:
    """Check the names of directories, the pattern of documents, and the order of samples. Raises InputError."""
    if not re.fullmatch(FILE_NAME, data.name):
        raise InputError(
            f"data.name={data.name!r} cannot name a directory",
            "allowed: letters, digits and . _ -",
        )
    for key, directory in {"data.cache_dir": data.cache_dir, "data.dir": data.dir}.items():
        if directory == "":
            raise InputError(f"{key} is empty", "give a directory, or leave it out")
    _check_pattern("data.document_start", getattr(data, "document_start", None))

    # What is read, and in which order.
    if data.files and data.source in SOURCES_WITHOUT_FILES:
        raise InputError(
            f"data={data.name} reads no files, and data.files={data.files} is given",
            f"say of what kind they are: data=text data.files={data.files}, or jsonl, parquet, bin",
        )
    if data.order == "random" and data.documents == "separate":
        raise InputError(
            "data.order=random starts anywhere, and data.documents=separate where documents do",
            "allowed with data.order=random: data.documents=packed or masked",
        )
    if data.order == "random" and not data.shuffle:
        raise InputError(
            "data.order=random with data.shuffle=false is neither",
            "data.shuffle=false reads the text from its beginning",
        )


def _check_pattern(key: str, pattern: str | None) -> None:
    """Check that a pattern is a regular expression. Raises InputError."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise InputError(
            f"{key}={pattern} is no regular expression: {error}",
            "such as ' = [^=]', see Python's re",
        ) from error


def _check_tracker(config: Config) -> None:
    """Check the names under which W&B files the run. Raises InputError."""
    for key in ("project", "entity"):
        check_wandb_name(f"tracker.{key}", getattr(config.tracker, key, None))


def _check_ranks(config: Config) -> None:
    """Check that the number of ranks is known where it must be. Raises InputError."""
    cluster = config.cluster
    # One process is one rank; a job of SLURM runs on machines that are not here to be counted.
    if cluster.name == "single" and cluster.nproc != 1:
        raise InputError(
            f"cluster=single is one process, and cluster.nproc={cluster.nproc} is given",
            f"several ranks: cluster=ddp cluster.nproc={cluster.nproc}",
        )
    if isinstance(cluster, SlurmConfig) and not cluster.nproc:
        raise InputError(
            f"cluster=slurm with cluster.gpus={cluster.gpus} does not say how many ranks there are",
            "give cluster.gpus, a rank for each, or cluster.nproc",
        )


def _check_cluster(config: Config) -> None:
    """Check the machine among several, and the job of SLURM. Raises InputError."""
    cluster = config.cluster
    if isinstance(cluster, SlurmConfig):
        _check_slurm(config)
    if not isinstance(cluster, MultinodeConfig):
        return

    # This machine is one of them, and machine 0 has an address.
    if cluster.node_rank >= cluster.nnodes:
        raise InputError(
            f"cluster.node_rank={cluster.node_rank} is none of cluster.nnodes={cluster.nnodes} machines",
            f"allowed: 0 to {cluster.nnodes - 1}",
        )
    match = re.fullmatch(HOST_AND_PORT, cluster.rdzv_endpoint)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise InputError(
            f"cluster.rdzv_endpoint={cluster.rdzv_endpoint} is no address",
            "give HOST:PORT, a port of 1 to 65535 that is free on machine 0",
        )


def _check_slurm(config: Config) -> None:
    """Check the lines of the sbatch file, and that every rank has a GPU where there are any. Raises InputError."""
    cluster = config.cluster
    for key in cluster.sbatch:
        if not re.fullmatch(SBATCH_OPTION, str(key)):
            raise InputError(
                f"cluster.sbatch has {key!r}, which is no option of sbatch",
                "allowed: its long options without the dashes, such as +cluster.sbatch.constraint=a100",
            )
    # Each value is a line of the file: another line could be an option of its own.
    options = {key: getattr(cluster, key) for key in ("partition", "account", "time", "memory")}
    options |= {f"sbatch.{key}": value for key, value in cluster.sbatch.items()}
    for key, value in options.items():
        if not str(value).isprintable():
            raise InputError(
                f"cluster.{key}={value!r} holds a line break or another control character",
                "allowed: what stands on one line of an sbatch file; shell lines are for cluster.setup",
            )

    # A rank has a GPU of its own, or all run on the CPU.
    if 0 < cluster.gpus < cluster.nproc and config.device != "cpu":
        raise InputError(
            f"cluster.nproc={cluster.nproc} is more ranks than cluster.gpus={cluster.gpus}",
            "give as many GPUs as ranks, or device=cpu cluster.gpus=0",
        )


def _check_length(config: Config) -> None:
    """Check that the run ends, and is evaluated at step boundaries. Raises InputError."""
    trainer = config.trainer
    if trainer.max_steps is None and trainer.max_tokens is None:
        raise InputError(
            "neither trainer.max_steps nor trainer.max_tokens is given, so the run would never end",
            "give one of them; with both, the first reached ends the run",
        )

    # A step is the least that can be between two evaluations.
    full = config.batch.global_tokens
    if trainer.eval_every < full:
        cure = f"allowed: trainer.eval_every={full} or more; that is after each step"
        if trainer.eval_every < LIKE_STEPS:
            cure = f"every {trainer.eval_every} steps would be trainer.eval_every={trainer.eval_every * full}"
        raise InputError(
            f"trainer.eval_every={trainer.eval_every} counts tokens, and one step has {full} (batch.global_tokens)",
            cure,
        )


def _check_batch(config: Config) -> None:
    """Check that the global batch divides into full micro-batches of whole sequences. Raises InputError."""
    tokens = config.batch.global_tokens
    if tokens % config.unit_tokens:
        raise InputError(
            f"batch.global_tokens={tokens} is not divisible by {_unit_in_words(config)}",
            f"nearest batch.global_tokens that are: {nearest(tokens, config.unit_tokens)}",
        )


def _check_ramp(config: Config) -> None:
    """Check the sizes of a batch ramp, and that it fits into the run. Raises InputError."""
    # The stages follow from the keys only where these are right.
    if config.batch.name == "ramp":
        _check_linear_ramp(config)
        largest = config.ramp.start_tokens
        over_tokens = config.ramp.over_tokens
    elif config.batch.name == "ramp_steps":
        _check_ramp_steps(config)
        largest = max(size for _, size in config.given_stages)
        over_tokens = config.given_stages[-1][0]
    else:
        return
    full = config.batch.global_tokens
    if largest > full:
        raise InputError(
            f"the batch ramp goes above batch.global_tokens={full}",
            "allowed: sizes up to batch.global_tokens, the full batch",
        )
    total = config.total_tokens
    if over_tokens > total:
        raise InputError(
            f"the batch ramp of {over_tokens} tokens is longer than the run of {total}",
            "shorten it (batch.ramp), or raise trainer.max_steps or trainer.max_tokens",
        )


def _check_linear_ramp(config: Config) -> None:
    """Check that the sizes of ``batch=ramp`` are multiples of one, and that of the micro-batch on all ranks.

    Raises InputError.
    """
    ramp = config.ramp
    multiple_of = ramp.multiple_of
    if multiple_of % config.unit_tokens:
        raise InputError(
            f"batch.ramp.multiple_of={multiple_of} is not divisible by {_unit_in_words(config)}",
            f"nearest batch.ramp.multiple_of that are: {nearest(multiple_of, config.unit_tokens)}",
        )
    # There are not too many sizes, and the first and the last are multiples as well.
    sizes = (ramp.full_tokens - ramp.start_tokens) // multiple_of
    if sizes > MOST_RAMP_SIZES:
        raise InputError(
            f"the batch ramp has {sizes:,} sizes, {multiple_of} tokens apart",
            f"allowed: up to {MOST_RAMP_SIZES:,}; raise batch.ramp.multiple_of",
        )
    for key, size in {"batch.ramp.start_tokens": ramp.start_tokens, "batch.global_tokens": ramp.full_tokens}.items():
        if size % multiple_of:
            raise InputError(
                f"{key}={size} is no multiple of batch.ramp.multiple_of={multiple_of}",
                f"nearest {key} that are: {nearest(size, multiple_of)}",
            )


def _check_ramp_steps(config: Config) -> None:
    """Check that the stages of ``batch=ramp_steps`` are pairs that ascend, of whole micro-batches.

    Raises InputError.
    """
    stages = config.batch.ramp.stages
    if any(len(stage) != 2 or not all(type(size) is int for size in stage) for stage in stages or []):
        raise InputError(
            f"batch.ramp.stages={stages} are not pairs",
            "allowed: [[until_tokens, tokens_per_step], …], in whole numbers, such as [[1M,16_384],[2M,32_768]]",
        )
    # With the pairs as stages: they begin one after the other, and each takes whole micro-batches on all ranks.
    begins = [begin for begin, _ in config.given_stages]
    if begins != sorted(set(begins)):
        raise InputError(
            f"batch.ramp.stages={stages} do not ascend",
            "each pair: until so many tokens, steps of so many",
        )
    for _, size in config.given_stages:
        if size < 1 or size % config.unit_tokens:
            raise InputError(
                f"batch.ramp.stages: {size} is not divisible by {_unit_in_words(config)}",
                f"nearest that are: {nearest(size, config.unit_tokens)}",
            )


def _check_schedule(config: Config) -> None:
    """Check that the warm-up ends within the run, and before the decay does. Raises InputError."""
    schedule = config.schedule
    total = config.total_tokens
    if (schedule.warmup_tokens or 0) > total:
        raise InputError(
            f"schedule.warmup_tokens={schedule.warmup_tokens} is longer than the run of {total} tokens",
            f"allowed: up to {total}; null is 2 % of the run",
        )
    # Null is a warm-up too, whose length follows from the end of the decay.
    warm = warmup(schedule.warmup_tokens, schedule.decay_until, total)
    if schedule.decay_until is not None and schedule.decay_until <= warm:
        raise InputError(
            f"schedule.decay_until={schedule.decay_until} is not after the warm-up",
            "raise it, or give null: the end of the run",
        )
    if schedule.name == "inverse_sqrt" and schedule.warmup_tokens == 0:
        raise InputError(
            "schedule=inverse_sqrt falls from the end of the warm-up, and schedule.warmup_tokens is 0",
            "allowed: at least 1; null is 2 % of the run",
        )


# --- words


def _unit_in_words(config: Config) -> str:
    """Return the unit that batches are multiples of."""
    words = f"model.seq_len={config.model.seq_len}"
    if config.batch.micro_batch_size:
        words += f" × batch.micro_batch_size={config.batch.micro_batch_size}"
    if config.world_size > 1:
        words += f" × {config.world_size} ranks"
    return words
