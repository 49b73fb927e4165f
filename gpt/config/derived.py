"""Quantities of a run that follow from its keys; their arithmetic is in gpt/config/budget.py."""

from typing import Any

from gpt.config import budget
from gpt.config.budget import LinearRamp, Stages


class Derived:
    """Properties of :class:`gpt.config.schema.Config`, which has the sections that they read."""

    __slots__ = ()

    @property
    def world_size(self) -> int:
        """Ranks on all machines; 1 until ``cluster.nproc`` is counted (:func:`gpt.cluster.machine.resolve_ranks`)."""
        return self.cluster.n_machines * self.cluster.nproc if self.cluster.nproc else 1

    @property
    def unit_tokens(self) -> int:
        """Tokens of the smallest possible batch: one micro-batch, as given, or one sequence, on every rank."""
        return self.model.seq_len * (self.batch.micro_batch_size or 1) * self.world_size

    @property
    def nominal_tokens(self) -> int:
        """Tokens of the run if every step had the full batch."""
        return budget.nominal_tokens(self.batch.global_tokens, self.trainer.max_steps, self.trainer.max_tokens)

    @property
    def ramp(self) -> LinearRamp:
        """The ramp of ``batch=ramp``, with what null means."""
        return self.batch.linear_ramp(self.model.seq_len, self.nominal_tokens)

    @property
    def given_stages(self) -> Stages:
        """The batch as the config asks for it."""
        return self.batch.stages(self.model.seq_len, self.nominal_tokens)

    @property
    def stages(self) -> Stages:
        """The batch over the run, as stages (tokens at which it begins, tokens per step)."""
        return budget.whole_batches(self.given_stages)

    @property
    def micro_batch_size(self) -> int:
        """Sequences per rank and forward: as given, or as many as fit."""
        if self.batch.micro_batch_size is not None:
            return self.batch.micro_batch_size
        return budget.micro_batch_size(self.stages, self.model.seq_len, self.world_size)

    @property
    def tasks_every(self) -> int:
        """Training tokens between runs of ``trainer.tasks``."""
        return self.trainer.tasks_every or self.trainer.eval_every

    @property
    def total_steps(self) -> int:
        """Optimizer steps until ``trainer.max_steps`` or ``trainer.max_tokens``, whichever comes first."""
        return budget.run_length(self.stages, self.trainer.max_steps, self.trainer.max_tokens)[0]

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, the clock of the learning-rate schedule."""
        return budget.run_length(self.stages, self.trainer.max_steps, self.trainer.max_tokens)[1]

    @property
    def steps_in_words(self) -> str:
        """The number of steps and their size, for a person."""
        return budget.steps_in_words(
            self.stages, self.total_steps, self.micro_batch_size, self.model.seq_len, self.world_size
        )

    @property
    def meant_by_null(self) -> dict[str, Any]:
        """The keys that are null and follow the length of the run, with the values that this length gives them."""
        meant = self.batch.meant_by_null(self.model.seq_len, self.nominal_tokens)
        if self.schedule.decay_until is None:
            meant = {"schedule.decay_until": self.total_tokens} | meant
        return meant
