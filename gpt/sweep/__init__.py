"""Sweeps: the work of ``hydra/launcher=local`` and ``hydra/sweeper=arms`` (hydra_plugins/)."""

from gpt.sweep.arms import check_swept, over_arms, param_overrides
from gpt.sweep.launch import launch, raise_failures

__all__ = ["check_swept", "launch", "over_arms", "param_overrides", "raise_failures"]
