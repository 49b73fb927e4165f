"""How fast recipes reach a loss: ``python -m gpt.speedrun``, whose rules are in docs/speedrun.md."""
