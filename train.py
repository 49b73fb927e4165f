"""Train a GPT. ``python train.py --help`` says what can be chosen."""

import sys

from gpt import cli
from gpt.errors import Interrupted


def train(composed) -> float | None:
    """One run, from the composed config to its validation loss (nats per token); or, with ``plan=true``, a plan."""
    from gpt.compose import output_dir, ready, settle
    from gpt.config import load, save

    config = load(composed)
    run_dir = output_dir()
    if config.plan:
        from data.prepare import vocab_size
        from gpt.plan import plan

        return plan(config, vocab_size(config.data), run_dir) if run_dir else None
    train_file, val_file = ready(config, run_dir)
    settle(config)
    if run_dir:
        save(config, run_dir / "config.yaml")

    from gpt.launch import launch  # torch, once the rest is right
    from gpt.trainer import run

    result = launch(config.cluster, run, config, train_file, val_file, run_dir)
    if result["status"] == "interrupted":
        raise Interrupted(f"interrupted after step {result['step']}; continue with\n  python train.py resume={run_dir}")
    return result.get("val_loss")  # which rank 0 knows


if __name__ == "__main__":
    sys.exit(cli.run(train))
