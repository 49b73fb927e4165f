"""The plot of a run: what it shows, and what it leaves out."""

from pathlib import Path

import matplotlib.figure
import pytest

from gpt.tracker.plot import BATCH, NORM, TRAIN, VAL, loss_limits, plot, running_mean
from gpt.tracker.summary import _zlib_per_token


def rows(n: int, batch=lambda step: 256) -> list[dict]:
    """Rows of a run whose loss falls from 9 to 2 within a tenth of it, and whose norm is large at first."""
    made = []
    for step in range(10, 10 * n + 1, 10):
        loss = 9.0 if step == 10 else 2.0 + 0.1 * (step % 20 == 0)
        row = {"step": step, "tokens": 256 * step, TRAIN: loss, "optim/lr": 1e-3, BATCH: batch(step)}
        made.append(row | {NORM: 50.0 if step == 10 else 1.0, "perf/tokens_per_sec": 1e4})
    made[-1][VAL] = 2.2
    return made


@pytest.fixture
def drawn(monkeypatch):
    """A function that returns the panels of a plot, by what is on their vertical axis."""
    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *path, **how: figures.append(figure))

    def draw(*arguments) -> dict:
        plot(arguments[0], Path("loss.png"), "tiny", *arguments[1:])
        return {axes.get_ylabel(): axes for axes in figures[-1].axes}

    return draw


def test_a_batch_of_one_size_has_no_panel(drawn):
    others = ["loss (nats per token)", "learning rate", "gradient norm", "tokens/s"]
    assert list(drawn(rows(100), {})) == others
    assert list(drawn(rows(100, lambda step: step), {})) == [*others[:2], "tokens per step", *others[2:]]


def test_resumptions_are_marked_where_they_were(drawn):
    marks = []
    for axes in drawn(rows(100), {}, [507]).values():
        marks += [line.get_xdata()[0] for line in axes.lines if line.get_label() == "resumed" or line.get_ls() == ":"]
    assert marks == [256 * 500] * 4


def test_the_first_steps_squeeze_nothing_and_references_above_are_named(drawn):
    panels = drawn(rows(100), {"ln(vocab_size)": 5.5, "zlib": 1.4})
    losses = panels["loss (nats per token)"]
    low, high = losses.get_ylim()
    assert low == pytest.approx(1.4, abs=0.1) and high == pytest.approx(2.2, abs=0.1)
    labels = losses.get_legend_handles_labels()[1]
    assert labels[-2:] == ["ln(vocab_size), 5.500, above", "zlib, 1.400"]
    assert panels["gradient norm"].get_ylim()[1] == pytest.approx(1.05)


def test_few_rows_are_shown_as_they_are(drawn):
    labels = drawn(rows(3), {})["loss (nats per token)"].get_legend_handles_labels()[1]
    assert labels == ["train, step by step", "validation, 2.200 at the end"]
    assert loss_limits([2.0], [2.0], [], {}) == (1.9, 2.1)


def test_numbers_below_a_thousand_are_plain(drawn):
    panels = drawn(rows(100), {})
    form = panels["gradient norm"].yaxis.get_major_formatter()
    assert [form(value, 0) for value in (0.0, 0.5, 50.0, 1500.0, 500_000.0)] == ["0", "0.5", "50", "1.5k", "500k"]


def test_the_running_mean_stays_on_a_line():
    means, width = running_mean([float(100 - i) for i in range(100)])
    assert width == 11
    assert means[:90] == pytest.approx([100 - i for i in range(90)])
    assert means[-1] == pytest.approx(3.5)  # the last six


def test_zlib_is_drawn_in_nats_per_token():
    result = {"val_loss": 3.0, "bpb": 1.0, "gzip_bpb": 1.5}  # three nats per token for each bit per byte
    assert list(_zlib_per_token(result).values()) == [4.5]
    assert _zlib_per_token({"val_loss": 3.0}) == {}
