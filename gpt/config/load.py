"""The config of a run, what follows from it, and the door through which every config comes in. Imports no torch."""

import itertools
import math
import os
import re
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from gpt.config import layouts
from gpt.config.checks import check, check_names, did_you_mean
from gpt.config.schema import (
    AdamWConfig,
    ArithmeticConfig,
    BatchConfig,
    CheckpointConfig,
    ClusterConfig,
    ColumnConfig,
    CustomConfig,
    DataConfig,
    HubConfig,
    ModelConfig,
    MultinodeConfig,
    MuonConfig,
    NodesConfig,
    OptimizerConfig,
    PrecisionConfig,
    RampBatchConfig,
    RampStepsBatchConfig,
    SampleConfig,
    ScheduleConfig,
    SlurmConfig,
    SweepConfig,
    TextConfig,
    TrackerConfig,
    TrainerConfig,
    WandbConfig,
)
from gpt.errors import InputError, TrainingError
from gpt.files import CURE, read_yaml, write_text
from gpt.schedule import Stages, linear_stages, run_length, whole_batches

# Without batch.micro_batch_size, a forward pass takes as many whole sequences as fit into this many tokens.
DEFAULT_MICRO_BATCH_TOKENS = 4096
# Without batch.ramp.over_tokens, a ramp takes this share of the run, GPT-3's first 4 of 300 billion tokens, and
# without batch.ramp.start_tokens it starts at this share of the full batch, 32k of 0.5M (Brown et al. 2020, app. B).
DEFAULT_RAMP, DEFAULT_RAMP_START = Fraction(4, 300), Fraction(1, 16)


@dataclass(kw_only=True, slots=True)
class Config:
    """One run. Two runs differ only in what this says."""

    name: str
    tags: list[str]
    seed: int
    device: str
    compile: bool
    resume: str | None
    plan: bool
    plan_mfu: float
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
    sweep: SweepConfig

    @property
    def world_size(self) -> int:
        """Ranks on all machines; 1 until ``cluster.nproc`` is counted (:func:`gpt.cluster.machine.resolve_ranks`)."""
        nnodes = self.cluster.nnodes if isinstance(self.cluster, NodesConfig) else 1
        return nnodes * self.cluster.nproc if self.cluster.nproc else 1

    @property
    def is_dry_run(self) -> bool:
        """Whether a job file is to be shown, and nothing started."""
        return isinstance(self.cluster, SlurmConfig) and self.cluster.dry_run

    @property
    def unit_tokens(self) -> int:
        """Tokens of the smallest batch that can be: one micro-batch, as given, or one sequence, on every rank."""
        return self.model.seq_len * (self.batch.micro_batch_size or 1) * self.world_size

    @property
    def nominal_tokens(self) -> int:
        """The shorter of ``trainer.max_tokens`` and ``trainer.max_steps`` steps of the full batch."""
        steps, tokens = self.trainer.max_steps, self.trainer.max_tokens
        limits = [steps * self.batch.global_tokens if steps is not None else None, tokens]
        return min(limit for limit in limits if limit is not None)

    @property
    def stages(self) -> Stages:
        """The batch over the run, as stages (tokens at which it begins, tokens per step)."""
        return whole_batches(self.given_stages)

    @property
    def given_stages(self) -> Stages:
        """The batch as the config asks for it."""
        full, batch = self.batch.global_tokens, self.batch
        if isinstance(batch, RampBatchConfig):
            return linear_stages(*self.ramp)
        if isinstance(batch, RampStepsBatchConfig):
            stages = batch.ramp.stages
            if stages is None:  # doubling up to the full batch, a third of the default ramp each
                sizes = [full // n for n in (8, 4, 2) if full % (n * self.model.seq_len) == 0]
                third = DEFAULT_RAMP * self.nominal_tokens / 3
                stages = [[math.ceil(third * (i + 1)), size] for i, size in enumerate(sizes)]
            begins = [0, *(until for until, _ in stages)]
            return list(zip(begins, [*(size for _, size in stages), full], strict=True))
        return [(0, full)]

    @property
    def ramp(self) -> tuple[int, int, int, int]:
        """Of ``batch=ramp``: tokens per step at its start and when full, its length, and the unit of all sizes."""
        ramp, full, seq_len = self.batch.ramp, self.batch.global_tokens, self.model.seq_len
        start, over, multiple_of = ramp.start_tokens, ramp.over_tokens, ramp.multiple_of
        if start is None:
            sequences = full // seq_len  # not micro-batches, which change nothing
            most = max(1, int(sequences * DEFAULT_RAMP_START))
            start = seq_len * max(n for n in range(1, most + 1) if sequences % n == 0)
        if over is None:
            over = max(1, int(DEFAULT_RAMP * self.nominal_tokens))
        return start, full, over, multiple_of or math.gcd(start, full)

    @property
    def meant_by_null(self) -> dict[str, Any]:
        """The keys that are null and follow the length of the run, with the values that this length gives them."""
        keys = flatten(self)
        meant: dict[str, Any] = {"schedule.decay_until": self.total_tokens}
        if isinstance(self.batch, RampBatchConfig):
            meant["batch.ramp.over_tokens"] = self.ramp[2]
        if isinstance(self.batch, RampStepsBatchConfig):
            stages = self.given_stages
            meant["batch.ramp.stages"] = [[end, size] for (_, size), (end, _) in itertools.pairwise(stages)]
        return {key: value for key, value in meant.items() if keys[key] is None}

    @property
    def micro_batch_size(self) -> int:
        """Sequences per rank and forward: as given, or the largest divisor of every batch that fits 4,096 tokens."""
        if self.batch.micro_batch_size is not None:
            return self.batch.micro_batch_size
        sequences = math.gcd(*(size for _, size in self.stages)) // (self.model.seq_len * self.world_size)
        fits = max(1, DEFAULT_MICRO_BATCH_TOKENS // self.model.seq_len)
        return max(n for n in range(1, min(fits, sequences) + 1) if sequences % n == 0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps until ``trainer.max_steps`` or ``trainer.max_tokens``, whichever comes first."""
        return run_length(self.stages, self.trainer.max_steps, self.trainer.max_tokens)[0]

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, the clock of the learning-rate schedule."""
        return run_length(self.stages, self.trainer.max_steps, self.trainer.max_tokens)[1]

    @property
    def steps_in_words(self) -> str:
        """How many steps of which size."""
        sizes, micro, seq_len = [size for _, size in self.stages], self.micro_batch_size, self.model.seq_len
        if len(sizes) == 1:
            ranks = f"{self.world_size} ranks × " if self.world_size > 1 else ""
            return (
                f"{self.total_steps:,} steps of {sizes[0]:,} tokens "
                f"({ranks}{sizes[0] // (self.world_size * micro * seq_len)} × {micro} sequences of {seq_len})"
            )
        return (
            f"{self.total_steps:,} steps of {min(sizes):,} to {max(sizes):,} tokens, {len(sizes)} stages "
            f"({micro} sequences of {seq_len} at a time)"
        )


# The groups whose options have keys of their own. A file in conf/ names its schema first: defaults: [_muon, _self_].
VARIANTS = {
    "data": {
        "stdlib": DataConfig,
        "text": TextConfig,
        "jsonl": ColumnConfig,
        "parquet": ColumnConfig,
        "hf": HubConfig,
        "bin": DataConfig,
        "arithmetic": ArithmeticConfig,
    },
    "optimizer": {"adamw": AdamWConfig, "muon": MuonConfig, "custom": CustomConfig},
    "batch": {"constant": BatchConfig, "ramp": RampBatchConfig, "ramp_steps": RampStepsBatchConfig},
    "cluster": {
        "single": ClusterConfig,
        "ddp": ClusterConfig,
        "multinode": MultinodeConfig,
        "slurm": SlurmConfig,
        "torchrun": ClusterConfig,
    },
    "tracker": {
        "local": TrackerConfig,
        "wandb": WandbConfig,
        "wandb_offline": WandbConfig,
        "tensorboard": TrackerConfig,
    },
}
SAYS_WHICH = {"data": "source"}  # the key that tells them apart, where it is not the name
ConfigStore.instance().store(name="schema", node=Config)
for group, variants in VARIANTS.items():
    for name, variant in variants.items():
        ConfigStore.instance().store(group=group, name=f"_{name}", node=variant)


def scaled(value: float | None, factor: float) -> float | None:
    """Hydra resolver: a multiple of a value; whole numbers stay whole, and null stays null."""
    if value is None:
        return None
    return int(value * factor) if isinstance(value, int) else float(f"{value * factor:.12g}")


# In conf/ and sweeps/: one sequence at least is ${max:1024,${model.seq_len}}, torchrun's ranks are ${ranks:}, and half
# the learning rate is ${scaled:${optimizer.lr},0.5}.
OmegaConf.register_new_resolver("scaled", scaled, replace=True)
OmegaConf.register_new_resolver("max", lambda *numbers: max(numbers), replace=True)
OmegaConf.register_new_resolver("ranks", lambda: int(os.environ.get("WORLD_SIZE", "1")), replace=True)

# What may differ from the saved config when a run goes on: none of it changes what the run computes, but for its
# length, which only a single run may change. Where the data lies may change too; its fingerprint is compared instead.
SAME_RUN = re.compile(
    r"resume|plan_mfu|sweep\..*|cluster\..*|batch\.micro_batch_size|data\.(num_workers|read|processes|shard_tokens|streaming|files(\[.*)?|dir|cache_dir|url)"
    r"|data\.references|trainer\.(log_every|profile|anomaly)|checkpoint\..*|tracker\..*"
)
LENGTH = ("trainer.max_steps", "trainer.max_tokens")


def load(composed: DictConfig) -> Config:
    """Merge what Hydra composed into the schema once more (this catches ``+`` keys), check it, and type it.

    Raises InputError.
    """
    try:
        raw = OmegaConf.to_container(composed, resolve=False)
        raw.pop("hydra", None)
        schema, options = OmegaConf.structured(Config), schema_of(raw)
        for group in VARIANTS:
            schema[group] = options[group]
        config = OmegaConf.to_object(OmegaConf.merge(schema, raw))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    flat = flatten(config)
    for key, value in flat.items():  # a merge takes lists in lists of text, which could not be saved
        if isinstance(value, list) and depth(value) > (2 if key == "batch.ramp.stages" else 1):
            raise InputError(f"{key}={value}: lists in a list", f"{key} takes {expected_type(key)}")
    check(config, flat)
    return config


def which_option(group: str) -> str:
    """The key that says which of a group's options a config has."""
    return f"{group}.{SAYS_WHICH.get(group, 'name')}"


def schema_of(raw: dict[str, Any]) -> dict[str, type]:
    """The types of a config's sections and keys, which depend on the options that it takes. Raises InputError."""
    schema = {field.name: field.type for field in fields(Config)}
    for group, variants in VARIANTS.items():
        given = layouts.value_at(raw, which_option(group))
        check_names(which_option(group), given, list(variants))
        schema[group] = variants[given]
    return schema


def keys_of(schema: dict[str, type]) -> dict[str, Any]:
    """The names of all keys, section in section."""
    return {
        name: keys_of({field.name: field.type for field in fields(kind)}) if is_dataclass(kind) else None
        for name, kind in schema.items()
    }


def depth(value: Any) -> int:
    """How many lists and dicts are in one another."""
    return 1 + max(map(depth, value), default=0) if isinstance(value, (list, dict)) else 0


def save(config: Config, path: Path) -> None:
    """Write the config as YAML, whole or not at all; :func:`read` gives it back. Raises TrainingError."""
    try:
        write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error}\n  make room, and give the command again") from error


def read(path: Path) -> Config:
    """Read a config that this version or an earlier one has saved. Raises InputError, with the path, for others."""
    saved = read_saved(path)
    try:
        return load(saved)
    except InputError as error:
        cure = f"{error.cure}; a newer gptlab wrote this file, or it was changed since"
        raise InputError(f"{path}: {error.problem}", cure) from error


def read_saved(path: Path) -> DictConfig:
    """A saved config in today's keys, not yet typed and checked. Raises InputError, with the path."""
    raw = read_yaml(path, dict)
    if not any(isinstance(raw.get(group), dict) for group in VARIANTS):
        raise InputError(f"{path} is damaged, or none of ours: it has no {' and no '.join(VARIANTS)}", CURE)
    try:
        layouts.rename(raw)
        layouts.check_there(raw, [which_option(group) for group in VARIANTS])
        layouts.complete(raw, keys_of(schema_of(raw)))
        return OmegaConf.create(raw)
    except InputError as error:
        raise InputError(f"{path}: {error.problem}", error.cure) from error
    except OmegaConfBaseException as error:  # an interpolation that nobody can read
        raise InputError(f"{path} is damaged, or none of ours: {str(error).splitlines()[0]}", CURE) from error


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config as a flat dict of dotted keys."""
    flat = {}
    for field in fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        flat |= flatten(value, key + ".") if is_dataclass(value) else {key: value}
    return flat


def changed_keys(saved: Config, new: Config, any_length: bool = True) -> dict[str, tuple[Any, Any]]:
    """Keys that make it another run, with their saved and new values (None: not there).

    With ``any_length`` the length may change, and what was null may be given as what it meant for the saved length.
    """
    old, now = flatten(saved), flatten(new)
    changed = {key: (old.get(key), now.get(key)) for key in {**old, **now} if old.get(key) != now.get(key)}
    free = set()
    if any_length:
        meant = saved.meant_by_null
        free = {*LENGTH, *(key for key in meant if meant[key] == now.get(key))}
    return {key: values for key, values in changed.items() if key not in free and not SAME_RUN.fullmatch(key)}


def explain(error: OmegaConfBaseException, given: str | None = None) -> InputError:
    """Say what OmegaConf found wrong: which key, what was given (the override, if known), what is allowed."""
    key = error.full_key or str(error.key or "")
    parent, _, name = key.rpartition(".")
    if isinstance(error, MissingMandatoryValue):
        return InputError(f"{key} has no value", f"give one: {key}=…")
    if isinstance(error, (ConfigKeyError, AttributeError)) and error.parent_node is not None:
        allowed = [str(k) for k in error.parent_node if k != "hydra"]
        if not allowed:  # a dict that is open
            return InputError(f"{key} is not there yet", f"a plus adds it: +{key}=…")
        where = f"keys of {parent}" if parent else "keys"
        elsewhere = [
            f"{parent}={option}"
            for option, variant in VARIANTS.get(parent, {}).items()
            if name in {field.name for field in fields(variant)}
        ]
        hint = f"; it is a key of {' and '.join(elsewhere)}" if elsewhere else did_you_mean(name, allowed)
        return InputError(f"unknown key {key}", f"{where}: {', '.join(allowed)}{hint}")
    reason = str(error).splitlines()[0]
    what = given or key or "the config"
    if isinstance(error, InterpolationResolutionError) or not key:
        return InputError(f"{what}: {reason}", "${…} holds the name of a key, or a resolver: ${oc.env:HOME}")
    if key.startswith("hydra."):
        return InputError(f"{what}: {reason}", "give what Hydra takes there: python train.py --cfg hydra")
    return InputError(f"{what}: {reason}", f"{key} takes {expected_type(key)}")


TYPES_IN_WORDS = {
    int: "a whole number, such as 1000 or 1_000",
    float: "a number, such as 0.1 or 6e-4",
    bool: "true or false",
    str: "text",
    list[str]: "a list: [a,b]",
    list[float]: "a list of numbers: [0.9,0.95]",
    list[int]: "a list of whole numbers: [1000,64]",
    list[list[int]]: "a list of pairs: [[1000,64],[2000,128]]",
    dict[str, float]: "names and numbers: {a: 1.5}",
}


def expected_type(key: str) -> str:
    """What the schema wants for a dotted key, in words."""
    kinds: list[Any] = [Config]
    group = key.partition(".")[0]
    for name in key.split("."):
        bare = name.partition("[")[0]
        kinds = [f.type for kind in kinds if is_dataclass(kind) for f in fields(kind) if f.name == bare]
        kinds = list(VARIANTS.get(group, {}).values()) if bare == group and group in VARIANTS else kinds
    kind = kinds[0] if kinds else None
    for _ in range(key.count("[")):
        kind = kind.__args__[0]  # of the list's elements
    options = [option for option in getattr(kind, "__args__", []) if option in TYPES_IN_WORDS]
    if type(None) in getattr(kind, "__args__", []):
        return f"{TYPES_IN_WORDS[options[0]]}, or null"
    return TYPES_IN_WORDS.get(kind, "an option of its group, or single keys below it")
