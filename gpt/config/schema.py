"""The config of a run: every key with its type, its choices and its range. Imports no torch.

Defaults, units and sources of the keys stand in conf/.
"""

from dataclasses import asdict, dataclass
from typing import Any

from gpt.config import budget
from gpt.config.budget import LinearRamp, Stages
from gpt.config.counts import as_count
from gpt.config.derived import Derived
from gpt.config.keys import choice, number, pairs, text
from gpt.config.model import ModelConfig
from gpt.config.optimizer import OPTIMIZERS, OptimizerConfig
from gpt.schedule import SHAPES, lr_multiplier

# The groups whose options have keys of their own: the schema of each option, filled in below the classes. A file in
# conf/ names its schema first: defaults: [_muon, _self_].
VARIANTS: dict[str, dict[str, type]] = {"data": {}, "optimizer": OPTIMIZERS, "batch": {}, "cluster": {}, "tracker": {}}


# A key without choice, number or text beside it is a switch, a list of text, or a table: its type says it all.


# --- the sections of a config; those with options are followed by the schemas of these


@dataclass(kw_only=True, slots=True)
class DataConfig:
    name: str = text()
    source: str = choice(VARIANTS["data"])
    files: list[str]
    tokenizer: str = choice(["bytes", "chars", "gpt2"])
    documents: str = choice(["masked", "packed", "separate"])
    val_fraction: float = number(
        above=0,
        at_most=1,
        smallest=1e-9,
        problem="leaves a part empty",
    )
    shard_tokens: int = number(counts="tokens", at_least=100, at_most=1 << 40)
    processes: int | None = number(at_least=1, at_most=1_024)
    dir: str | None = text()
    cache_dir: str = text()
    shuffle: bool
    seed: int = number(at_least=0)
    order: str = choice(["permutation", "random"])
    read: str = choice(["mmap", "pread"])
    num_workers: int = number(at_least=0, largest=1_024, reason="a machine has fewer cores")
    references: dict[str, float]


@dataclass(kw_only=True, slots=True)
class TextConfig(DataConfig):
    url: str | None = text()
    sha256: str | None = text()
    invalid_utf8: str = choice(["refuse", "replace"])


@dataclass(kw_only=True, slots=True)
class ColumnConfig(DataConfig):
    column: str = text()
    document_start: str | None = text()
    invalid_utf8: str = choice(["refuse", "replace"])


@dataclass(kw_only=True, slots=True)
class HubConfig(ColumnConfig):
    path: str | None = text()
    config: str | None = text()
    split: str = text()
    val_split: str | None = text()
    revision: str | None = text()
    streaming: bool


@dataclass(kw_only=True, slots=True)
class ArithmeticConfig(DataConfig):
    operations: str = text()
    digits: int = number(at_least=1)
    problems: int = number(at_least=1)
    val_problems: int = number(at_least=1)


VARIANTS["data"].update(
    stdlib=DataConfig,
    text=TextConfig,
    jsonl=ColumnConfig,
    parquet=ColumnConfig,
    hf=HubConfig,
    bin=DataConfig,
    arithmetic=ArithmeticConfig,
)


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    name: str = choice(SHAPES)
    warmup_tokens: int | None = number(counts="tokens", at_least=0)
    min_lr_ratio: float = number(at_least=0, at_most=1)
    decay_fraction: float = number(at_least=0, at_most=1)
    decay_until: int | None = number(counts="tokens", at_least=1)

    def multiplier(self, tokens: int, total_tokens: int) -> float:
        """Return the factor on the peak learning rate (:func:`gpt.schedule.lr_multiplier`)."""
        return lr_multiplier(tokens=tokens, total_tokens=total_tokens, **asdict(self))


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    name: str = choice(VARIANTS["batch"])
    global_tokens: int = number(counts="tokens", at_least=1, largest=100_000_000, reason="Llama 3 has 16,000,000")
    micro_batch_size: int | None = number(at_least=1)

    def stages(self, seq_len: int, run_tokens: int) -> Stages:
        """Return the batch as the keys give it, for a run of ``run_tokens`` with sequences of ``seq_len``."""
        return [(0, self.global_tokens)]

    def meant_by_null(self, seq_len: int, run_tokens: int) -> dict[str, Any]:
        """Return the keys of the batch that are null and follow the length of the run, with what it gives them."""
        return {}


@dataclass(kw_only=True, slots=True)
class Ramp:
    start_tokens: int | None = number(counts="tokens", at_least=1)
    over_tokens: int | None = number(counts="tokens", at_least=1)
    multiple_of: int | None = number(counts="tokens", at_least=1)


@dataclass(kw_only=True, slots=True)
class RampBatchConfig(BatchConfig):
    ramp: Ramp

    def linear_ramp(self, seq_len: int, run_tokens: int) -> LinearRamp:
        """Return the ramp, with what null means."""
        return budget.linear_ramp(self.global_tokens, seq_len, run_tokens, **asdict(self.ramp))

    def stages(self, seq_len: int, run_tokens: int) -> Stages:
        return budget.linear_stages(*self.linear_ramp(seq_len, run_tokens))

    def meant_by_null(self, seq_len: int, run_tokens: int) -> dict[str, Any]:
        if self.ramp.over_tokens is not None:
            return {}
        return {"batch.ramp.over_tokens": self.linear_ramp(seq_len, run_tokens).over_tokens}


@dataclass(kw_only=True, slots=True)
class RampSteps:
    stages: list[list[Any]] | None = pairs(counts="tokens")  # noqa: RUF009 (a field, no list)

    def __post_init__(self):
        self.stages = as_count(self.stages)


@dataclass(kw_only=True, slots=True)
class RampStepsBatchConfig(BatchConfig):
    ramp: RampSteps

    def stages(self, seq_len: int, run_tokens: int) -> Stages:
        # The stages are given, or three doublings.
        pairs = self.ramp.stages
        if pairs is None:
            pairs = budget.doublings(self.global_tokens, seq_len, run_tokens)
        return budget.stages_of_pairs(pairs, self.global_tokens)

    def meant_by_null(self, seq_len: int, run_tokens: int) -> dict[str, Any]:
        if self.ramp.stages is not None:
            return {}
        return {"batch.ramp.stages": budget.doublings(self.global_tokens, seq_len, run_tokens)}


VARIANTS["batch"].update(constant=BatchConfig, ramp=RampBatchConfig, ramp_steps=RampStepsBatchConfig)


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    name: str = choice(["bf16", "fp16", "fp32", "tf32"])


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    name: str = choice(VARIANTS["cluster"])
    nproc: int | None = number(at_least=1)
    threads: int | None = number(at_least=1, largest=1_024, reason="a machine has fewer cores")
    timeout: int = number(at_least=1, largest=2**31 // 1000, reason="gloo and poll(2) count milliseconds in 32 bits")

    @property
    def n_machines(self) -> int:
        """Number of machines."""
        return 1


@dataclass(kw_only=True, slots=True)
class NodesConfig(ClusterConfig):
    nnodes: int = number(at_least=1)

    @property
    def n_machines(self) -> int:
        return self.nnodes


@dataclass(kw_only=True, slots=True)
class MultinodeConfig(NodesConfig):
    node_rank: int = number(at_least=0)
    rdzv_endpoint: str = text()

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of ``rdzv_endpoint``, where an IPv6 address stands in brackets."""
        host, _, port = self.rdzv_endpoint.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(kw_only=True, slots=True)
class SlurmConfig(NodesConfig):
    partition: str | None = text()
    account: str | None = text()
    time: str | None = text()
    memory: str | None = text()
    gpus: int = number(at_least=0)
    cpus: int | None = number(at_least=1)
    sbatch: dict[str, Any]
    setup: list[str]
    dry_run: bool


VARIANTS["cluster"].update(
    single=ClusterConfig, ddp=ClusterConfig, multinode=MultinodeConfig, slurm=SlurmConfig, torchrun=ClusterConfig
)


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    name: str = choice(VARIANTS["tracker"])
    plot: bool
    histograms_every: int | None = number(counts="steps", at_least=1)


@dataclass(kw_only=True, slots=True)
class WandbConfig(TrackerConfig):
    project: str = text()
    entity: str | None = text()
    group: str | None = text()
    job_type: str = text()
    notes: str | None = text()
    artifacts: str = choice(["none", "last", "best", "all"])


VARIANTS["tracker"].update(local=TrackerConfig, wandb=WandbConfig, wandb_offline=WandbConfig, tensorboard=TrackerConfig)


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    max_steps: int | None = number(counts="steps", at_least=1)
    max_tokens: int | None = number(counts="tokens", at_least=1)
    eval_every: int = number(counts="tokens", at_least=1)
    eval_tokens: int | None = number(counts="tokens", at_least=1)
    tasks: list[str]
    tasks_every: int | None = number(counts="tokens", at_least=1)
    log_every: int = number(counts="steps", at_least=1)
    grad_clip: float = number(at_least=0)
    ema: float | None = number(above=0, below=1)
    average_from: float | None = number(at_least=0, below=1)
    one_batch: bool
    profile: bool
    anomaly: bool

    @property
    def n_averages(self) -> int:
        """Number of averages of the weights that are kept beside them."""
        return (self.ema is not None) + (self.average_from is not None)


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    every: int = number(counts="steps", at_least=1)
    keep: int = number(at_least=1)


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    arm: str | None = text()
    baseline: str | None = text()
    on_failure: str = choice(["continue", "stop"])
    on_change: str = choice(["refuse", "rerun"])
    leave_out: bool


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    tokens: int = number(
        counts="tokens", at_least=0, largest=100_000, reason="they are drawn one after the other, after each evaluation"
    )
    prompt: str | None = text()
    temperature: float = number(above=0, smallest=0.01)
    top_k: int | None = number(at_least=1)
    top_p: float | None = number(above=0, at_most=1)


# --- evaluation tasks with keys of their own


@dataclass(kw_only=True, slots=True)
class HellaswagConfig:
    path: str | None = text()
    examples: int | None = number(at_least=1)


@dataclass(kw_only=True, slots=True)
class PerplexityConfig:
    files: list[str]
    stride: int | None = number(counts="tokens", at_least=1)


@dataclass(kw_only=True, slots=True)
class ProblemsConfig:
    problems: int = number(at_least=1, at_most=1_000)
    shots: int = number(at_least=0, at_most=100)


@dataclass(kw_only=True, slots=True)
class InspectConfig:
    tokens: list[str]


@dataclass(kw_only=True, slots=True)
class LmEvalConfig:
    tasks: list[str]
    include_path: str | None = text()
    limit: int | None = number(at_least=1)


# --- the whole


@dataclass(kw_only=True, slots=True)
class Config(Derived):
    """One run. Two runs differ only in what this says."""

    name: str = text()
    tags: list[str]
    seed: int = number(at_least=0)
    device: str = choice(["auto", "cpu", "cuda", "mps"])
    compile: bool
    resume: str | None = text()
    init_from: str | None = text()
    plan: bool
    plan_mfu: float = number(at_least=0, at_most=1, smallest=0.001)
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
    hellaswag: HellaswagConfig
    perplexity: PerplexityConfig
    arithmetic: ProblemsConfig
    inspect: InspectConfig
    lm_eval: LmEvalConfig
    sweep: SweepConfig

    @property
    def is_dry_run(self) -> bool:
        """True where a job file is to be shown, and nothing started."""
        return isinstance(self.cluster, SlurmConfig) and self.cluster.dry_run
