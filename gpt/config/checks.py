"""What no run can mean: names, ranges and combinations, refused before anything is started. Imports no torch."""

import difflib
import math
import re
from typing import TYPE_CHECKING, Any

from gpt.errors import InputError
from gpt.schedule import SHAPES, warmup

if TYPE_CHECKING:
    from gpt.config.load import Config

CHOICES = {
    "device": ["auto", "cpu", "cuda", "mps"],
    "model.position": ["learned", "none", "sinusoidal"],
    "model.norm": ["post", "pre"],
    "model.activation": ["gelu_exact", "gelu_tanh", "relu"],
    "model.attention": ["naive", "sdpa"],
    "model.activation_checkpointing": ["blocks", "none"],
    "data.tokenizer": ["bytes", "chars", "gpt2"],
    "data.documents": ["masked", "packed", "separate"],
    "data.invalid_utf8": ["refuse", "replace"],
    "data.order": ["permutation", "random"],
    "data.read": ["mmap", "pread"],
    "sweep.on_failure": ["continue", "stop"],
    "sweep.on_change": ["refuse", "rerun"],
    "tracker.artifacts": ["none", "last", "best", "all"],
    "schedule.name": sorted(SHAPES),
    "precision.name": ["bf16", "fp16", "fp32", "tf32"],
}
MIN_FRACTION = 1e-9  # of the text, which leaves a token of a billion
MIN_SHARD, MAX_SHARD = 100, 1 << 40  # tokens of a file
MAX_PROCESSES = 1024
AT_LEAST_ONE = """
    model.n_head model.n_embd model.seq_len model.vocab_multiple optimizer.ns_steps
    batch.global_tokens batch.micro_batch_size schedule.decay_until
    cluster.nproc cluster.threads cluster.timeout cluster.nnodes cluster.cpus
    batch.ramp.start_tokens batch.ramp.over_tokens batch.ramp.multiple_of
    data.shard_tokens data.processes data.digits data.problems data.val_problems
    trainer.max_steps trainer.max_tokens trainer.eval_every trainer.eval_tokens trainer.log_every
    tracker.histograms_every checkpoint.every checkpoint.keep sample.top_k
"""
NOT_NEGATIVE = """
    seed data.seed model.n_layer data.num_workers optimizer.weight_decay schedule.warmup_tokens trainer.grad_clip
    sample.tokens cluster.node_rank cluster.gpus
"""
POSITIVE = """
    model.init_std model.peak_lr optimizer.lr optimizer.eps optimizer.adamw_lr sample.temperature plan_mfu
"""
RATIOS = "schedule.min_lr_ratio schedule.decay_fraction plan_mfu"
PROBABILITIES = "model.dropout optimizer.momentum optimizer.betas"
LARGEST = 2**63 - 1  # what torch and numpy count with
# Where a slip of the keyboard would take hours or all memory: the most that is taken, far above what anyone has used.
AT_MOST = {
    "model.n_layer": (1_000, "as many as the deepest published (DeepNet, Wang et al. 2022)"),
    "model.n_embd": (100_000, "GPT-3 has 12,288"),
    "model.seq_len": (10_000_000, "as long as the longest published contexts (Gemini 1.5)"),
    "model.vocab_multiple": (1_000_000, "large vocabularies have 256,000 tokens"),
    "optimizer.ns_steps": (99, "torch.optim.Muon takes no more"),
    "batch.global_tokens": (100_000_000, "Llama 3 has 16,000,000"),
    "sample.tokens": (100_000, "they are drawn one after the other, after each evaluation"),
    "data.num_workers": (1_024, "a machine has fewer cores"),
    "cluster.threads": (1_024, "a machine has fewer cores"),
    "cluster.timeout": (2**31 // 1000, "gloo and poll(2) count milliseconds in 32 bits"),
}
NOT_BELOW = {"sample.temperature": 0.01, "plan_mfu": 0.001}
MOST_RAMP_SIZES = 10_000  # of a batch; GPT-3's ramp has some hundred
LONGEST_NAME = 100  # characters, of the 255 that a directory's name may have
PROJECT = r"(?=.*\S)[^/\\#?%:]{1,128}"  # W&B's rule for the names of projects and users


def did_you_mean(given: str, allowed: list[str]) -> str:
    """A closing question for a message, or nothing when no allowed word is close."""
    close = difflib.get_close_matches(given, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check_names(key: str, given: str, allowed: list[str]) -> None:
    """A key with a fixed set of values. Raises InputError."""
    if given not in allowed:
        hint = did_you_mean(str(given), allowed)
        raise InputError(f"{key}={given} is not known", f"allowed: {', '.join(allowed)}{hint}")


def check(config: "Config", flat: dict[str, Any]) -> None:
    """Refuse what no run can mean; ``flat`` holds the config by dotted keys. Raises InputError."""
    for key, allowed in CHOICES.items():
        if key in flat:
            check_names(key, flat[key], allowed)
    check_sizes(flat)
    check_cluster(config)
    for keys, fine, allowed in [
        (AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
        (NOT_NEGATIVE, lambda v: v >= 0 and math.isfinite(v), "0 or more"),
        (POSITIVE, lambda v: v > 0 and math.isfinite(v), "more than 0"),
        (RATIOS, lambda v: 0 <= v <= 1, "0 to 1"),
        (PROBABILITIES, lambda v: 0 <= v < 1, "0 up to, not including, 1"),
    ]:
        for key in keys.split():
            given = flat.get(key)  # None too where the option has no such key
            values = given if isinstance(given, list) else [] if given is None else [given]
            if not all(fine(v) for v in values):
                raise InputError(f"{key}={given} makes no sense", f"allowed: {allowed}")
    for key, least in NOT_BELOW.items():
        if flat[key] < least:
            raise InputError(f"{key}={flat[key]} is too small", f"allowed: at least {least}")
    check_names_and_data(config)
    check_tracker(config)
    check_model(config)
    check_optimizer(config)
    check_length(config)
    check_batch(config)
    check_ramp(config)
    check_schedule(config)


def check_sizes(flat: dict[str, Any]) -> None:
    """Whole numbers that can be counted with, and sizes that anyone could mean. Raises InputError."""
    for key, given in flat.items():
        if any(abs(number) > LARGEST for number in whole_numbers(given)):
            raise InputError(f"{key}={given} does not fit into 64 bits", f"allowed: up to {LARGEST}")
    for key, (most, why) in AT_MOST.items():
        if (flat.get(key) or 0) > most:
            raise InputError(f"{key}={flat[key]} is too much", f"allowed: up to {most:,}; {why}")


def whole_numbers(value: Any) -> list[int]:
    """Those that a value is or holds."""
    if isinstance(value, list):
        return [number for inside in value for number in whole_numbers(inside)]
    return [value] if isinstance(value, int) else []


def check_tracker(config: "Config") -> None:
    """Whom W&B files the run under. Raises InputError."""
    for key in ("project", "entity"):
        check_wandb_name(f"tracker.{key}", getattr(config.tracker, key, None))


def check_wandb_name(key: str, name: str | None) -> None:
    """The name of a project or a user in W&B; None: its default. Raises InputError."""
    if name is not None and not re.fullmatch(PROJECT, name):
        raise InputError(f"{key}={name!r} is no name in W&B", r"allowed: 1 to 128 characters, none of / \ # ? % :")


def check_names_and_data(config: "Config") -> None:
    """What the run is called, and which tokens it reads in which order."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", config.name) or len(config.name) > LONGEST_NAME:
        raise InputError(
            f"name={config.name!r} cannot name a directory",
            f"allowed: letters, digits and . _ -, up to {LONGEST_NAME} characters",
        )
    if config.plan and config.resume:
        raise InputError("plan=true says what a run would be, and resume continues one", "leave one of them out")
    data = config.data
    check_data(config)
    if data.files and data.source in ("stdlib", "arithmetic"):
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


def check_data(config: "Config") -> None:
    """What is read, and where what is made of it lies."""
    data = config.data
    if not re.fullmatch(r"[A-Za-z0-9._-]+", data.name):
        raise InputError(f"data.name={data.name!r} cannot name a directory", "allowed: letters, digits and . _ -")
    for key, given in {"data.cache_dir": data.cache_dir, "data.dir": data.dir}.items():
        if given == "":
            raise InputError(f"{key} is empty", "give a directory, or leave it out")
    if not MIN_FRACTION <= data.val_fraction <= 1 - MIN_FRACTION:
        raise InputError(
            f"data.val_fraction={data.val_fraction} leaves a part empty",
            f"allowed: between 0 and 1, from {MIN_FRACTION} on",
        )
    for key, given, low, high in [
        ("data.shard_tokens", data.shard_tokens, MIN_SHARD, MAX_SHARD),
        ("data.processes", data.processes or 1, 1, MAX_PROCESSES),
    ]:
        if not low <= given <= high:
            raise InputError(f"{key}={given} makes no sense", f"allowed: between {low:,} and {high:,}")
    if pattern := getattr(data, "document_start", None):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"data.document_start={pattern} is no regular expression: {error}", "such as ' = [^=]', see Python's re"
            ) from error


def check_model(config: "Config") -> None:
    """Widths that must divide."""
    m = config.model
    if m.n_embd % m.n_head:
        raise InputError(
            f"model.n_embd={m.n_embd} is not divisible by model.n_head={m.n_head}",
            f"nearest model.n_embd that is: {nearest(m.n_embd, m.n_head)}",
        )
    if m.position == "sinusoidal" and m.n_embd % 2:
        raise InputError(
            f"model.n_embd={m.n_embd} is odd, and model.position=sinusoidal takes sines and cosines in pairs",
            f"nearest model.n_embd that is even: {nearest(m.n_embd, 2)}",
        )


def check_optimizer(config: "Config") -> None:
    """Adam's betas, and matrices for Muon."""
    betas = getattr(config.optimizer, "betas", None)
    if betas is not None and len(betas) != 2:
        raise InputError(f"optimizer.betas={betas} are not Adam's", "allowed: two numbers of 0 up to, not including, 1")
    if config.optimizer.name == "muon" and config.model.n_layer == 0:
        raise InputError(
            f"optimizer=muon works on the matrices of the blocks, and model={config.model.name} has no blocks",
            "take optimizer=adamw, or model.n_layer of at least 1",
        )


def check_cluster(config: "Config") -> None:
    """How many ranks there are, and which machine this is."""
    cluster = config.cluster
    if cluster.name == "single" and cluster.nproc != 1:
        raise InputError(
            f"cluster=single is one process, and cluster.nproc={cluster.nproc} is given",
            f"several ranks: cluster=ddp cluster.nproc={cluster.nproc}",
        )
    if cluster.name == "slurm":
        check_slurm(config)
    if cluster.name != "multinode":
        return
    if cluster.node_rank >= cluster.nnodes:
        raise InputError(
            f"cluster.node_rank={cluster.node_rank} is none of cluster.nnodes={cluster.nnodes} machines",
            f"allowed: 0 to {cluster.nnodes - 1}",
        )
    match = re.fullmatch(r"(\[.+\]|[^:]+):([0-9]{1,5})", cluster.rdzv_endpoint)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise InputError(
            f"cluster.rdzv_endpoint={cluster.rdzv_endpoint} is no address",
            "give HOST:PORT, a port of 1 to 65535 that is free on machine 0",
        )


def check_slurm(config: "Config") -> None:
    """Ranks, a GPU for each where there are any, and values that are a line of an sbatch file each."""
    cluster = config.cluster
    for key in cluster.sbatch:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(key)):
            raise InputError(
                f"cluster.sbatch has {key!r}, which is no option of sbatch",
                "allowed: its long options without the dashes, such as +cluster.sbatch.constraint=a100",
            )
    options = {key: getattr(cluster, key) for key in ("partition", "account", "time", "memory")}
    options |= {f"sbatch.{key}": value for key, value in cluster.sbatch.items()}
    for key, value in options.items():
        if not str(value).isprintable():
            raise InputError(
                f"cluster.{key}={value!r} holds a line break or another control character",
                "allowed: what stands on one line of an sbatch file; shell lines are for cluster.setup",
            )
    if not cluster.nproc:
        raise InputError(
            f"cluster=slurm with cluster.gpus={cluster.gpus} does not say how many ranks there are",
            "give cluster.gpus, a rank for each, or cluster.nproc",
        )
    if 0 < cluster.gpus < cluster.nproc and config.device != "cpu":
        raise InputError(
            f"cluster.nproc={cluster.nproc} is more ranks than cluster.gpus={cluster.gpus}",
            "give as many GPUs as ranks, or device=cpu cluster.gpus=0",
        )


def check_length(config: "Config") -> None:
    """The run must end, and be evaluated at step boundaries."""
    t = config.trainer
    if t.max_steps is None and t.max_tokens is None:
        raise InputError(
            "neither trainer.max_steps nor trainer.max_tokens is given, so the run would never end",
            "give one of them; with both, the first reached ends the run",
        )
    full = config.batch.global_tokens
    if t.eval_every < full:
        raise InputError(
            f"trainer.eval_every={t.eval_every} counts tokens, and one step has {full} (batch.global_tokens)",
            f"every {t.eval_every} steps would be trainer.eval_every={t.eval_every * full}",
        )


def check_batch(config: "Config") -> None:
    """The global batch must divide into full micro-batches of whole sequences."""
    tokens, unit = config.batch.global_tokens, config.unit_tokens
    if tokens % unit:
        raise InputError(
            f"batch.global_tokens={tokens} is not divisible by {unit_in_words(config)}",
            f"nearest batch.global_tokens that are: {nearest(tokens, unit)}",
        )


def check_ramp(config: "Config") -> None:
    """The sizes of a batch ramp, and its place in the run."""
    if config.batch.name == "ramp":
        largest, full, over, _ = check_linear_ramp(config)
    elif config.batch.name == "ramp_steps":
        check_ramp_steps(config)
        largest, full = max(size for _, size in config.given_stages), config.batch.global_tokens
        over = config.given_stages[-1][0]
    else:
        return
    if largest > full:
        raise InputError(
            f"the batch ramp goes above batch.global_tokens={full}",
            "allowed: sizes up to batch.global_tokens, the full batch",
        )
    if over > (total := config.total_tokens):
        raise InputError(
            f"the batch ramp of {over} tokens is longer than the run of {total}",
            "shorten it (batch.ramp), or raise trainer.max_steps or trainer.max_tokens",
        )


def check_linear_ramp(config: "Config") -> tuple[int, int, int, int]:
    """``batch=ramp``: its sizes are multiples of one, and that of the micro-batch on all ranks. Returns the ramp."""
    start, full, _, multiple_of = config.ramp
    if multiple_of % config.unit_tokens:
        raise InputError(
            f"batch.ramp.multiple_of={multiple_of} is not divisible by {unit_in_words(config)}",
            f"nearest batch.ramp.multiple_of that are: {nearest(multiple_of, config.unit_tokens)}",
        )
    if (sizes := (full - start) // multiple_of) > MOST_RAMP_SIZES:
        raise InputError(
            f"the batch ramp has {sizes:,} sizes, {multiple_of} tokens apart",
            f"allowed: up to {MOST_RAMP_SIZES:,}; raise batch.ramp.multiple_of",
        )
    for key, size in {"batch.ramp.start_tokens": start, "batch.global_tokens": full}.items():
        if size % multiple_of:
            raise InputError(
                f"{key}={size} is no multiple of batch.ramp.multiple_of={multiple_of}",
                f"nearest {key} that are: {nearest(size, multiple_of)}",
            )
    return config.ramp


def check_ramp_steps(config: "Config") -> None:
    """``batch=ramp_steps``: pairs that ascend, of whole micro-batches."""
    stages = config.batch.ramp.stages
    if any(len(stage) != 2 for stage in stages or []):
        raise InputError(
            f"batch.ramp.stages={stages} are not pairs",
            "allowed: [[until_tokens, tokens_per_step], …], such as [[1_000_000,16_384],[2_000_000,32_768]]",
        )
    begins = [begin for begin, _ in config.given_stages]
    if begins != sorted(set(begins)):
        raise InputError(
            f"batch.ramp.stages={stages} do not ascend", "each pair: until so many tokens, steps of so many"
        )
    for _, size in config.given_stages:
        if size < 1 or size % config.unit_tokens:
            raise InputError(
                f"batch.ramp.stages: {size} is not divisible by {unit_in_words(config)}",
                f"nearest that are: {nearest(size, config.unit_tokens)}",
            )


def check_schedule(config: "Config") -> None:
    """The warm-up must end within the run."""
    schedule, total = config.schedule, config.total_tokens
    if (schedule.warmup_tokens or 0) > total:
        raise InputError(
            f"schedule.warmup_tokens={schedule.warmup_tokens} is longer than the run of {total} tokens",
            f"allowed: up to {total}; null is 2 % of the run",
        )
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


def unit_in_words(config: "Config") -> str:
    """What batches are multiples of."""
    micro, ranks = config.batch.micro_batch_size, config.world_size
    return (
        f"model.seq_len={config.model.seq_len}"
        + (f" × batch.micro_batch_size={micro}" if micro else "")
        + (f" × {ranks} ranks" if ranks > 1 else "")
    )


def nearest(number: int, unit: int) -> str:
    """The multiples of ``unit`` around a number, in words."""
    lower = number // unit * unit
    return " or ".join(str(n) for n in (lower, lower + unit) if n > 0)
