"""Sweeps: what ``hydra/launcher=local`` and ``hydra/sweeper=arms`` (hydra_plugins/) do."""

from gpt.sweep.jobs import check_swept, over_arms
from gpt.sweep.sweep import launch, raise_failures

__all__ = ["check_swept", "launch", "over_arms", "raise_failures"]
