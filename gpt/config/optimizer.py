"""The keys of optimizers, and what each optimizer keeps beside the weights. Imports no torch."""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from gpt.config.keys import choice, number, text

# The schema of each option, filled in at the end of this file.
OPTIMIZERS: dict[str, type] = {}
# Every parameter of a model belongs to one of these: tables that are looked up (a tied head among them), an untied
# head, matrices, and all that has one dimension.
GROUPS = ("embedding", "head", "matrices", "scalars")


@dataclass(kw_only=True, slots=True)
class GroupConfig:
    """The keys of one group of parameters; null is what the optimizer has."""

    lr: float | None = number(above=0)
    betas: list[float] | None = number(at_least=0, below=1)  # noqa: RUF009 (a field, no list)
    weight_decay: float | None = number(at_least=0)

    @property
    def given(self) -> dict[str, Any]:
        """The keys that are not null."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(kw_only=True, slots=True)
class GroupsConfig:
    embedding: GroupConfig
    head: GroupConfig
    matrices: GroupConfig
    scalars: GroupConfig


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    # Tensors of its size that the optimizer keeps for each matrix, and for each other parameter.
    matrix_averages: ClassVar[int] = 2
    averages: ClassVar[int] = 2
    # True where its weights of training and of evaluation differ, so that no learning rate has to fall.
    is_schedule_free: ClassVar[bool] = False

    name: str = choice(OPTIMIZERS)
    lr: float = number(above=0)
    weight_decay: float = number(at_least=0)
    groups: GroupsConfig

    def group(self, name: str) -> GroupConfig:
        """Return the keys of a group of parameters."""
        return getattr(self.groups, name)

    def group_lr(self, name: str) -> float:
        """Return the peak learning rate of a group of parameters."""
        given = self.group(name).lr
        return self.lr if given is None else given

    @property
    def other_rates(self) -> dict[str, float]:
        """The peak learning rates of the groups that have another one than ``lr``, by group."""
        rates = {name: self.group_lr(name) for name in GROUPS}
        return {name: rate for name, rate in rates.items() if rate != self.lr}

    def kept_numbers(self, group: str, shape: tuple[int, ...]) -> int:
        """Return how many numbers the optimizer keeps for a parameter of a group, in one of 32 bits each."""
        averages = self.matrix_averages if group == "matrices" else self.averages
        return averages * math.prod(shape)


@dataclass(kw_only=True, slots=True)
class AdamWConfig(OptimizerConfig):
    betas: list[float] = number(at_least=0, below=1)  # noqa: RUF009 (a field, no list)
    eps: float = number(above=0)
    fused: bool


@dataclass(kw_only=True, slots=True)
class MuonConfig(AdamWConfig):
    matrix_averages: ClassVar[int] = 1

    adamw_lr: float = number(above=0)
    momentum: float = number(at_least=0, below=1)
    momentum_start: float = number(at_least=0, below=1)
    momentum_warmup: int | None = number(counts="tokens", at_least=1)
    nesterov: bool
    ns_steps: int = number(at_least=1, largest=99, reason="torch.optim.Muon takes no more")
    split_qkv: bool
    normuon: bool
    normuon_beta2: float = number(at_least=0, below=1)
    cautious_weight_decay: bool

    def group_lr(self, name: str) -> float:
        given = self.group(name).lr
        usual = self.lr if name == "matrices" else self.adamw_lr
        return usual if given is None else given

    def kept_numbers(self, group: str, shape: tuple[int, ...]) -> int:
        rows = shape[0] if self.normuon and group == "matrices" else 0
        return AdamWConfig.kept_numbers(self, group, shape) + rows


@dataclass(kw_only=True, slots=True)
class CustomConfig(OptimizerConfig):
    _target_: str = text()
    betas: list[float] | None = number(at_least=0, below=1)  # noqa: RUF009 (a field, no list)
    options: dict[str, Any]


@dataclass(kw_only=True, slots=True)
class LionConfig(CustomConfig):
    matrix_averages: ClassVar[int] = 1
    averages: ClassVar[int] = 1


@dataclass(kw_only=True, slots=True)
class ScheduleFreeConfig(CustomConfig):
    is_schedule_free: ClassVar[bool] = True


@dataclass(kw_only=True, slots=True)
class SoapConfig(CustomConfig):
    def kept_numbers(self, group: str, shape: tuple[int, ...]) -> int:
        # Beside Adam's averages a preconditioner and its eigenvectors for each side that is not too long.
        longest = self.options.get("max_precondition_dim", 10_000)
        sides = [side for side in shape if len(shape) > 1 and side <= longest]
        return CustomConfig.kept_numbers(self, group, shape) + 2 * sum(side**2 for side in sides)


OPTIMIZERS.update(
    adamw=AdamWConfig,
    muon=MuonConfig,
    custom=CustomConfig,
    lion=LionConfig,
    soap=SoapConfig,
    schedule_free=ScheduleFreeConfig,
)
