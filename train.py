"""Train a GPT. ``python train.py --help`` says what can be chosen."""

import os
import sys
from typing import TYPE_CHECKING, Any

from gpt.cli import command

if TYPE_CHECKING:
    from gpt.cli.run_checks import CheckedRun


def train(checked: "CheckedRun") -> Any:
    """Start a run that has passed its checks; return its validation loss (nats per token), or its SLURM job.

    A plan and a dry run are shown, and return None.
    """
    config = checked.config
    run_dir = checked.run_dir

    # What asks for a look at the run starts nothing.
    if config.plan:
        from gpt.cli.plan import plan

        is_rank_0 = os.environ.get("RANK", "0") == "0"  # of those that torchrun has started
        return plan(config, checked.vocab_size, run_dir) if is_rank_0 else None
    if config.is_dry_run:
        from gpt.cluster.slurm import sbatch_file

        print(sbatch_file(config))
        return None

    # Rank 0's directory gets the config; a run that is resumed at another length says what becomes of its schedule.
    if run_dir:
        from gpt.cli.resume_checks import describe_length_change
        from gpt.config.load import save
        from gpt.console import say

        line = describe_length_change(config, run_dir) if config.resume else None
        if line:
            say(line)
        save(config, run_dir / "config.yaml")

    if config.cluster.name == "slurm":
        from gpt.cluster.slurm import submit

        return submit(config, checked.train, checked.val, run_dir)

    # torch is imported last, once all the rest is right. The next line on the terminal replaces this one.
    if sys.stdout.isatty():
        print("loading torch …", end="\r", flush=True)
    from gpt.cluster.launch import launch
    from gpt.cluster.rank import run
    from gpt.rundir import outcome

    result = launch(config.cluster, run, config, checked.train, checked.val, run_dir)
    return outcome(result, run_dir)


if __name__ == "__main__":
    sys.exit(command.run(train))
