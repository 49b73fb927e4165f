"""Train a GPT. ``python train.py --help`` says what can be chosen."""

import sys
from pathlib import Path

from gpt import cli
from gpt.errors import Interrupted


def train(composed) -> float | None:
    """One run, from the composed config to its validation loss (nats per token); or, with ``plan=true``, a plan."""
    from hydra.core.hydra_config import HydraConfig

    from gpt.compose import ready
    from gpt.config import load, save

    config = load(composed)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if run_dir.is_relative_to(Path.cwd()):
        run_dir = run_dir.relative_to(Path.cwd())  # as one would type it
    if config.plan:
        from data.prepare import vocab_size
        from gpt.plan import plan

        return plan(config, vocab_size(config.data), run_dir)
    train_file, val_file = ready(config, run_dir)
    save(config, run_dir / "config.yaml")

    from gpt.trainer import Trainer  # torch, once the rest is right

    result = Trainer(config, train_file, val_file, run_dir).fit()
    if result["status"] == "interrupted":
        raise Interrupted(f"interrupted after step {result['step']}; continue with\n  python train.py resume={run_dir}")
    return result["val_loss"]


if __name__ == "__main__":
    sys.exit(cli.run(train))
