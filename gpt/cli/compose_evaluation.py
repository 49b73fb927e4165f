"""The config of an evaluation: that of a run, or of a model from elsewhere, with other data, tasks and arithmetic."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from gpt.cli.arguments import parse
from gpt.cli.compose import compose
from gpt.cli.init_from import overrides_of
from gpt.config.load import load, read_saved
from gpt.config.schema import Config, ModelConfig
from gpt.errors import InputError

# What may be changed, in the config of a run too.
CHANGEABLE = re.compile(
    r"data(\..*)?|(sample|hellaswag|perplexity|arithmetic|inspect|lm_eval)\..*|seed|device|compile|precision"
    r"|trainer\.eval_tokens|batch\.micro_batch_size|cluster(\..*)?"
)
MICRO_BATCH = "batch.micro_batch_size"
TOKENS = 4_096  # of a micro-batch of a model from elsewhere
MANY_RANKS = 7_207_200  # tokens of a batch that up to 16 ranks divide, and most numbers beyond


def compose_evaluation(run_dir: Path, overrides: list[str]) -> Config:
    """Return the saved config of a run, changed by the overrides. Raises InputError."""
    chosen = _parse(overrides, f"the run in {run_dir}")
    saved = read_saved(run_dir / "config.yaml")

    # Neither the run's ranks nor its compilation, which pays only in training.
    default = OmegaConf.create(asdict(compose([])))
    OmegaConf.update(saved, "resume", None)
    OmegaConf.update(saved, "init_from", None)
    OmegaConf.update(saved, "compile", False)
    OmegaConf.update(saved, "cluster", default.cluster, merge=False)
    return _changed(saved, chosen)


def compose_foreign(model: ModelConfig, overrides: list[str]) -> Config:
    """Return the default config with a model from elsewhere, changed by the overrides. Raises InputError."""
    # A step has one sequence, of which nothing is trained; a forward pass may have several.
    chosen = _parse(overrides, f"the model {model.name}")
    batch = [f"batch.global_tokens={model.seq_len}", f"trainer.eval_every={model.seq_len}"]
    default = OmegaConf.create(asdict(compose([*overrides_of(model), *batch])))
    config = _changed(default, chosen)
    if MICRO_BATCH not in chosen:
        config.batch.micro_batch_size = max(1, TOKENS // model.seq_len)
    return config


def compose_ranks(overrides: list[str], device: str) -> Config:
    """Return a config whose cluster is the one of an evaluation's overrides; nothing else of it means anything.

    Apart from the config of the evaluation, whose batch need not divide by these ranks. Raises InputError.
    """
    chosen = [override.input_line for override in parse(overrides) if override.key_or_group.startswith("cluster")]
    if "cluster=slurm" in chosen:
        raise InputError("cluster=slurm trains, and an evaluation runs here", "call eval.py in a job of your own")
    # A model and a batch that allow any number of ranks.
    batch = ["model.seq_len=1", f"{MICRO_BATCH}=1", f"batch.global_tokens={MANY_RANKS}"]
    return compose([*chosen, *batch, f"trainer.eval_every={MANY_RANKS}", "trainer.max_steps=1", f"device={device}"])


def _parse(overrides: list[str], owner: str) -> dict[str, Override]:
    """Return the overrides by key or group. Raises InputError for what belongs to the owner of the config."""
    chosen = {}
    for override in parse(overrides):
        key = override.key_or_group
        if not CHANGEABLE.fullmatch(key):
            raise InputError(
                f"{key} belongs to {owner}, and an evaluation cannot change it",
                "allowed: data, data.*, keys of tasks (sample.*, hellaswag.*, …), seed, device, compile, precision, "
                "trainer.eval_tokens, batch.micro_batch_size, cluster=single or ddp, cluster.*",
            )
        if override.is_sweep_override():
            raise InputError(
                f"{override.input_line}: several values, and an evaluation takes one",
                f"a list is {key}=[a,b]; text with a comma is quoted twice: \"{key}='a, b'\"",
            )
        chosen[key] = override
    return chosen


def _changed(saved: Any, chosen: dict[str, Override]) -> Config:
    """Return a config changed by overrides, but for the cluster (:func:`compose_ranks`). Raises InputError."""
    here = {key: override for key, override in chosen.items() if not key.startswith("cluster") and key != MICRO_BATCH}
    groups = {key: override for key, override in here.items() if "." not in key}

    # First whole options, then keys: of the option that is given, or else of the saved one.
    composed = compose([override.input_line for override in groups.values()])
    others = OmegaConf.create(asdict(composed))  # types come with load
    for group in groups:
        OmegaConf.update(saved, group, OmegaConf.select(others, group), merge=False)
    for key, override in here.items():
        if key not in groups:
            OmegaConf.update(saved, key, override.value(), merge=False, force_add=True)
    config = load(saved)

    # The micro-batch need not divide the batch of the run; by default it is that of the run on one rank.
    config.batch.micro_batch_size = config.micro_batch_size
    if MICRO_BATCH in chosen:
        size = chosen[MICRO_BATCH].value()
        if type(size) is not int or size < 1:
            raise InputError(f"{MICRO_BATCH}={size} makes no sense", "allowed: at least 1")
        config.batch.micro_batch_size = size
    return config
