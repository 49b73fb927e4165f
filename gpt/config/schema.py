"""The keys of every config group and their types. Imports no torch."""

from dataclasses import asdict, dataclass
from typing import Any

from gpt.schedule import lr_multiplier

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
    tie_head: bool
    position: str
    norm: str
    activation: str
    attention: str
    activation_checkpointing: str
    init_std: float
    residual_scaling: bool
    peak_lr: float


@dataclass(kw_only=True, slots=True)
class DataConfig:
    name: str
    source: str
    files: list[str]
    tokenizer: str
    documents: str
    val_fraction: float
    shard_tokens: int
    processes: int | None
    dir: str | None
    cache_dir: str
    shuffle: bool
    seed: int
    order: str
    read: str
    num_workers: int
    references: dict[str, float]


@dataclass(kw_only=True, slots=True)
class TextConfig(DataConfig):
    url: str | None
    sha256: str | None
    invalid_utf8: str


@dataclass(kw_only=True, slots=True)
class ColumnConfig(DataConfig):
    column: str
    document_start: str | None
    invalid_utf8: str


@dataclass(kw_only=True, slots=True)
class HubConfig(ColumnConfig):
    path: str | None
    config: str | None
    split: str
    val_split: str | None
    revision: str | None
    streaming: bool


@dataclass(kw_only=True, slots=True)
class ArithmeticConfig(DataConfig):
    operations: str
    digits: int
    problems: int
    val_problems: int


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    name: str
    lr: float
    weight_decay: float


@dataclass(kw_only=True, slots=True)
class AdamWConfig(OptimizerConfig):
    betas: list[float]
    eps: float
    fused: bool


@dataclass(kw_only=True, slots=True)
class MuonConfig(AdamWConfig):
    adamw_lr: float
    momentum: float
    nesterov: bool
    ns_steps: int


@dataclass(kw_only=True, slots=True)
class CustomConfig(OptimizerConfig):
    _target_: str
    betas: list[float] | None
    options: dict[str, Any]


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    name: str
    warmup_tokens: int | None
    min_lr_ratio: float
    decay_fraction: float
    decay_until: int | None

    def multiplier(self, tokens: int, total_tokens: int) -> float:
        """See :func:`gpt.schedule.lr_multiplier`."""
        return lr_multiplier(tokens=tokens, total_tokens=total_tokens, **asdict(self))


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    name: str
    global_tokens: int
    micro_batch_size: int | None


@dataclass(kw_only=True, slots=True)
class Ramp:
    start_tokens: int | None
    over_tokens: int | None
    multiple_of: int | None


@dataclass(kw_only=True, slots=True)
class RampBatchConfig(BatchConfig):
    ramp: Ramp


@dataclass(kw_only=True, slots=True)
class RampSteps:
    stages: list[list[int]] | None


@dataclass(kw_only=True, slots=True)
class RampStepsBatchConfig(BatchConfig):
    ramp: RampSteps


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    name: str


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    name: str
    nproc: int | None
    threads: int | None
    timeout: int


@dataclass(kw_only=True, slots=True)
class NodesConfig(ClusterConfig):
    nnodes: int


@dataclass(kw_only=True, slots=True)
class MultinodeConfig(NodesConfig):
    node_rank: int
    rdzv_endpoint: str

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of ``rdzv_endpoint``, where an IPv6 address stands in brackets."""
        host, _, port = self.rdzv_endpoint.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(kw_only=True, slots=True)
class SlurmConfig(NodesConfig):
    partition: str | None
    account: str | None
    time: str | None
    memory: str | None
    gpus: int
    cpus: int | None
    sbatch: dict[str, Any]
    setup: list[str]
    dry_run: bool


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    name: str
    plot: bool
    histograms_every: int | None


@dataclass(kw_only=True, slots=True)
class WandbConfig(TrackerConfig):
    project: str
    entity: str | None
    group: str | None
    job_type: str
    notes: str | None
    artifacts: str


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    max_steps: int | None
    max_tokens: int | None
    eval_every: int
    eval_tokens: int | None
    log_every: int
    grad_clip: float
    one_batch: bool
    profile: bool
    anomaly: bool


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    every: int
    keep: int


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    arm: str | None
    baseline: str | None
    on_failure: str
    on_change: str
    leave_out: bool


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    tokens: int
    prompt: str | None
    temperature: float
    top_k: int | None
