"""Speedruns, the time that recipes take to a fixed loss: ``python -m gpt.speedrun``; docs/speedrun.md has the rules."""
