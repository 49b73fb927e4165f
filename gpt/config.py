"""The typed schema of a run, and the door through which every config comes in. Imports no torch."""

import difflib
import math
import os
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from gpt.errors import InputError

# Without batch.micro_batch_size, a forward pass takes as many whole sequences as fit into this many tokens.
DEFAULT_MICRO_BATCH_TOKENS = 4096


# Values, units and sources of the keys stand beside them in conf/.


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    name: str
    n_layer: int
    n_head: int
    n_embd: int
    seq_len: int
    vocab_multiple: int
    bias: bool
    dropout: float
    init_std: float
    attention: str
    activation: str
    peak_lr: float


@dataclass(kw_only=True, slots=True)
class DataConfig:
    name: str
    source: str
    files: list[str]
    url: str | None
    sha256: str | None
    tokenizer: str
    val_fraction: float
    dir: str | None
    cache_dir: str
    read: str
    num_workers: int


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    name: str
    lr: float
    betas: list[float]
    eps: float
    weight_decay: float
    fused: bool


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    name: str
    warmup_tokens: int | None
    min_lr_ratio: float


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    name: str
    global_tokens: int
    micro_batch_size: int | None


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    name: str


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    name: str
    threads: int | None


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    name: str
    plot: bool


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    max_steps: int | None
    max_tokens: int | None
    eval_every: int
    eval_tokens: int | None
    log_every: int
    grad_clip: float


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    every: int
    keep: int


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    tokens: int
    prompt: str | None
    temperature: float
    top_k: int | None


@dataclass(kw_only=True, slots=True)
class Config:
    """One run. Two runs differ only in what this says."""

    name: str
    tags: list[str]
    seed: int
    device: str
    compile: bool
    resume: str | None
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    batch: BatchConfig
    precision: PrecisionConfig
    cluster: ClusterConfig
    tracker: TrackerConfig
    trainer: TrainerConfig
    checkpoint: CheckpointConfig
    sample: SampleConfig

    @property
    def batch_size(self) -> int:
        """Sequences per optimizer step."""
        return self.batch.global_tokens // self.model.seq_len

    @property
    def micro_batch_size(self) -> int:
        """Sequences per forward: as given, or the largest divisor of the batch that fits into 4,096 tokens."""
        if self.batch.micro_batch_size is not None:
            return self.batch.micro_batch_size
        fits = max(1, DEFAULT_MICRO_BATCH_TOKENS // self.model.seq_len)
        return max(n for n in range(1, min(fits, self.batch_size) + 1) if self.batch_size % n == 0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps until ``trainer.max_steps`` or ``trainer.max_tokens``, whichever comes first."""
        limits = []
        if self.trainer.max_steps is not None:
            limits.append(self.trainer.max_steps)
        if self.trainer.max_tokens is not None:
            limits.append(math.ceil(self.trainer.max_tokens / self.batch.global_tokens))
        return min(limits)

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, the clock of the learning-rate schedule."""
        return self.total_steps * self.batch.global_tokens


ConfigStore.instance().store(name="schema", node=Config)

CHOICES = {
    "device": ["auto", "cpu", "cuda", "mps"],
    "model.attention": ["naive", "sdpa"],
    "model.activation": ["gelu_exact", "gelu_tanh", "relu"],
    "data.source": ["stdlib", "text"],
    "data.tokenizer": ["bytes", "chars", "gpt2"],
    "data.read": ["mmap", "pread"],
    "optimizer.name": ["adamw"],
    "schedule.name": ["constant", "cosine"],
    "precision.name": ["bf16", "fp32"],
}
AT_LEAST_ONE = """
    model.n_layer model.n_head model.n_embd model.seq_len model.vocab_multiple
    batch.global_tokens batch.micro_batch_size cluster.threads
    trainer.max_steps trainer.max_tokens trainer.eval_every trainer.eval_tokens trainer.log_every
    checkpoint.every checkpoint.keep sample.top_k
"""
NOT_NEGATIVE = "seed data.num_workers optimizer.weight_decay schedule.warmup_tokens trainer.grad_clip sample.tokens"
POSITIVE = "model.init_std model.peak_lr optimizer.lr optimizer.eps sample.temperature"

# What may differ from the saved config when a run is resumed: none of it changes what the run computes,
# but for the length of the run. Where the data lies may change too; its fingerprint is compared instead.
MAY_CHANGE_ON_RESUME = re.compile(
    r"resume|cluster\..*|batch\.micro_batch_size|data\.(num_workers|read|files(\[.*)?|dir|cache_dir|url)"
    r"|trainer\.(max_.*|log_every)|checkpoint\..*|tracker\..*"
)


def load(composed: DictConfig) -> Config:
    """Merge what Hydra composed into the schema once more (this catches ``+`` keys), check it, and type it.

    Raises InputError.
    """
    raw = OmegaConf.to_container(composed)
    raw.pop("hydra", None)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), raw))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    check(config)
    return config


def save(config: Config, path: Path) -> None:
    """Write the config as YAML, whole or not at all; :func:`read` gives it back."""
    part = path.with_name(f".{path.name}")
    OmegaConf.save(OmegaConf.structured(config), part)
    os.replace(part, path)


def read(path: Path) -> Config:
    """Read a saved config. Raises InputError when a key is unknown, missing or of the wrong type."""
    return load(OmegaConf.load(path))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config as a flat dict of dotted keys."""
    flat = {}
    for field in fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        flat |= flatten(value, key + ".") if is_dataclass(value) else {key: value}
    return flat


def changed_keys(saved: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Keys that differ and must not when a run is resumed, with their saved and new values."""
    old, now = flatten(saved), flatten(new)
    return {
        key: (old[key], now[key]) for key in now if old[key] != now[key] and not MAY_CHANGE_ON_RESUME.fullmatch(key)
    }


def did_you_mean(given: str, allowed: list[str]) -> str:
    """A closing question for a message, or nothing when no allowed word is close."""
    close = difflib.get_close_matches(given, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def explain(error: OmegaConfBaseException, given: str | None = None) -> InputError:
    """Say what OmegaConf found wrong: which key, what was given (the override, if known), what is allowed."""
    key = error.full_key or str(error.key or "")
    parent, _, name = key.rpartition(".")
    if isinstance(error, MissingMandatoryValue):
        return InputError(f"{key} has no value", f"give one: {key}=…")
    if isinstance(error, (ConfigKeyError, AttributeError)) and error.parent_node is not None:
        allowed = [str(k) for k in error.parent_node if k != "hydra"]
        where = f"keys of {parent}" if parent else "keys"
        return InputError(f"unknown key {key}", f"{where}: {', '.join(allowed)}{did_you_mean(name, allowed)}")
    reason = str(error).splitlines()[0]
    return InputError(f"{given or key}: {reason}", f"{key} takes {expected_type(key)}")


TYPES_IN_WORDS = {
    int: "a whole number, such as 1000 or 1_000",
    float: "a number, such as 0.1 or 6e-4",
    bool: "true or false",
    str: "text",
    list[str]: "a list: [a,b]",
    list[float]: "a list of numbers: [0.9,0.95]",
}


def expected_type(key: str) -> str:
    """What the schema wants for a dotted key, in words."""
    kind: Any = Config
    for name in key.split("."):
        kind = {f.name: f.type for f in fields(kind)}.get(name.partition("[")[0]) if is_dataclass(kind) else None
    if "[" in key:
        kind = kind.__args__[0]  # of the list's elements
    options = [option for option in getattr(kind, "__args__", []) if option in TYPES_IN_WORDS]
    if type(None) in getattr(kind, "__args__", []):
        return f"{TYPES_IN_WORDS[options[0]]}, or null"
    return TYPES_IN_WORDS.get(kind, "an option of its group, or single keys below it")


def check(config: Config) -> None:
    """Refuse what no run can mean, before anything is started. Raises InputError."""
    flat = flatten(config)
    for key, allowed in CHOICES.items():
        if flat[key] not in allowed:
            hint = did_you_mean(str(flat[key]), allowed)
            raise InputError(f"{key}={flat[key]} is not known", f"allowed: {', '.join(allowed)}{hint}")
    for keys, fine, allowed in [
        (AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
        (NOT_NEGATIVE, lambda v: v >= 0 and math.isfinite(v), "0 or more"),
        (POSITIVE, lambda v: v > 0 and math.isfinite(v), "more than 0"),
    ]:
        for key in keys.split():
            if flat[key] is not None and not fine(flat[key]):
                raise InputError(f"{key}={flat[key]} makes no sense", f"allowed: {allowed}")
    check_ranges(config)
    check_length(config)
    check_batch(config)


def check_ranges(config: Config) -> None:
    """Values with bounds of their own."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", config.name):
        raise InputError(f"name={config.name!r} cannot name a directory", "allowed: letters, digits and . _ -")
    m = config.model
    if m.n_embd % m.n_head:
        lower = m.n_embd // m.n_head * m.n_head
        nearest = " or ".join(str(n) for n in (lower, lower + m.n_head) if n > 0)
        raise InputError(
            f"model.n_embd={m.n_embd} is not divisible by model.n_head={m.n_head}",
            f"nearest model.n_embd that is: {nearest}",
        )
    if not 0 <= m.dropout < 1:
        raise InputError(
            f"model.dropout={m.dropout} is no probability to train with", "allowed: 0 up to, not including, 1"
        )
    if not 0 < config.data.val_fraction < 1:
        raise InputError(
            f"data.val_fraction={config.data.val_fraction} leaves a part empty", "allowed: between 0 and 1"
        )
    if not 0 <= config.schedule.min_lr_ratio <= 1:
        raise InputError(f"schedule.min_lr_ratio={config.schedule.min_lr_ratio} is no ratio", "allowed: 0 to 1")
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise InputError(f"optimizer.betas={betas} are not Adam's", "allowed: two numbers of 0 up to, not including, 1")


def check_length(config: Config) -> None:
    """The run must end, and be evaluated at step boundaries."""
    t = config.trainer
    if t.max_steps is None and t.max_tokens is None:
        raise InputError(
            "neither trainer.max_steps nor trainer.max_tokens is given, so the run would never end",
            "give one of them; with both, the first reached ends the run",
        )
    step_tokens = config.batch.global_tokens
    if t.eval_every < step_tokens:
        raise InputError(
            f"trainer.eval_every={t.eval_every} counts tokens, and one step has {step_tokens} (batch.global_tokens)",
            f"every {t.eval_every} steps would be trainer.eval_every={t.eval_every * step_tokens}",
        )


def check_batch(config: Config) -> None:
    """The global batch must divide into full micro-batches of whole sequences."""
    tokens, seq_len, micro = config.batch.global_tokens, config.model.seq_len, config.batch.micro_batch_size
    unit = seq_len * (micro or 1)
    if tokens % unit:
        lower = tokens // unit * unit
        nearest = " or ".join(str(n) for n in (lower, lower + unit) if n > 0)
        what = f"model.seq_len={seq_len}" + (f" × batch.micro_batch_size={micro}" if micro else "")
        raise InputError(
            f"batch.global_tokens={tokens} is not divisible by {what}",
            f"nearest batch.global_tokens that are: {nearest}",
        )
