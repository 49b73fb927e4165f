"""The lines of a run on a terminal."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from gpt.tracker import tracker

ROW = {
    "step": 768, "tokens": 786_432, "train/loss": 1.6738, "val/loss": 1.7635, "val/bpb": 2.5441, "optim/lr": 1.13e-3,
    "optim/grad_norm": 1.05, "perf/tokens_per_sec": 30_099.0, "perf/mfu": 0.413,
}  # fmt: skip


@pytest.mark.parametrize(
    "width, last",
    [(200, "mfu 41.3%"), (100, "lr 1.13e-03"), (80, "bpb 2.5441"), (60, "loss 1.6738"), (30, "")],
)
def test_the_step_stays_on_a_narrow_terminal(width, last, tmp_path, monkeypatch):
    def console():
        return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, soft_wrap=True)

    monkeypatch.setattr(tracker, "plain_console", console)
    mirror = SimpleNamespace(start=lambda: None, news=list)
    with tracker.Tracker(tmp_path, {}, 0, 1536, mirror) as lines:
        lines.row(ROW)
        shown = console()
        shown.print(lines.bar.get_renderable())
    line = shown.file.getvalue().rstrip("\n")
    assert line.startswith("step 768/1536 ") and len(line) <= width and "━" in line
    figures = re.split("[━╸╺]+", line)[-1].strip()
    assert figures.removesuffix("-:--:--").rstrip().endswith(last)
    assert "…" not in line
