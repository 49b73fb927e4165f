"""Train a GPT. ``python train.py --help`` says what can be chosen."""

import sys
from typing import Any

from gpt.cli import command


def train(composed: Any) -> Any:
    """One run, from the composed config to its validation loss (nats per token), or to the SLURM job that runs it."""
    from gpt.cli.compose import output_dir, ready
    from gpt.cli.resume_checks import describe_length_change
    from gpt.cluster.machine import settle
    from gpt.config.load import load, save
    from gpt.console import say
    from gpt.rundir import outcome

    config = load(composed)
    run_dir = output_dir()
    if config.plan:
        from data.preparation import vocab_size
        from gpt.cli.plan import plan

        return plan(config, vocab_size(config.data), run_dir) if run_dir else None
    if config.is_dry_run:
        from gpt.cluster.slurm import sbatch_file

        return print(sbatch_file(config))
    train_file, val_file = ready(config, run_dir)
    settle(config)
    if run_dir:
        if config.resume and (line := describe_length_change(config, run_dir)):
            say(line)
        save(config, run_dir / "config.yaml")
    if config.cluster.name == "slurm":
        from gpt.cluster.slurm import submit

        return submit(config, train_file, val_file, run_dir)

    from gpt.cluster.launch import launch  # torch, once the rest is right
    from gpt.trainer import run

    return outcome(launch(config.cluster, run, config, train_file, val_file, run_dir), run_dir)


if __name__ == "__main__":
    sys.exit(command.run(train))
