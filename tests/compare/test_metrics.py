"""Validation metrics in a comparison: by key, without being named in code."""

import json

import pytest
from made_up import make_run

from gpt.compare import compare, report
from gpt.compare.runs import find, measured_names
from gpt.errors import InputError
from gpt.evaluation.metrics import METRICS, Metric, metric_of


def make_measured(path, seed=1, **metrics):
    """A run whose evaluations have these metrics too, which grow to the given values."""
    run = make_run(path, seed=seed, loss=3.0 + 0.01 * seed)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "val/loss" in row:
            row |= {f"val/{name}": value and value * row["step"] / 10 for name, value in metrics.items()}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def measured(tmp_path):
    """Two seeds with a declared metric and one that nobody has heard of."""
    return [make_measured(tmp_path / f"s{s}", s, exact_match=0.5 * s, word_errors=12.0 / s) for s in (1, 2)]


def test_a_metric_is_shown_by_its_entry_or_by_its_name():
    assert metric_of("exact_match") is METRICS["exact_match"] and METRICS["exact_match"].is_ratio
    assert metric_of("word_errors") == Metric("word errors", ".4f", None)


def test_every_metric_has_its_column(measured, tmp_path):
    text = report(measured, out=tmp_path / "out").text
    arms, runs = text.split("\nruns\n")
    header = next(line for line in arms.splitlines() if line.startswith("arm "))
    assert header.index("best") < header.index("exact match") < header.index("word errors") < header.index("tokens")
    assert "75.00%        9.0000" in arms
    assert "50.00%       12.0000" in runs and "100.00%        6.0000" in runs


def test_every_metric_has_its_figures(measured, tmp_path):
    content = json.loads(report(measured, out=tmp_path / "out").files["data"].read_text())
    assert (content["arms"][0]["exact_match"], content["arms"][0]["word_errors"]) == (0.75, 9.0)
    assert [run["word_errors"] for run in content["runs"]] == [12.0, 6.0]


def test_every_metric_has_its_curves(measured, tmp_path):
    page = report(measured, out=tmp_path / "out").files["page"].read_text()
    assert 'value="val/exact_match" aria-pressed="false">exact match</button>' in page
    content = json.loads(page.split('<script id="content" type="application/json">')[1].split("</script>")[0])
    assert content["measures"]["val/exact_match"]["format"] == ".2%"
    assert content["measures"]["val/exact_match"]["references"] == {}
    *_, mean = content["curves"]
    assert mean["val/word_errors"]["values"] == pytest.approx([1.8, 3.6, 5.4, 7.2, 9.0])


def test_a_metric_that_others_have_published_has_their_lines(tmp_path):
    run = make_measured(tmp_path / "s1", 1, hellaswag_acc_norm=0.3)
    page = report([run], out=tmp_path / "out").files["page"].read_text()
    content = json.loads(page.split('<script id="content" type="application/json">')[1].split("</script>")[0])
    references = content["measures"]["val/hellaswag_acc_norm"]["references"]
    assert references == {"GPT-2 124M, 29.55%": 0.2955, "GPT-3 small, 33.70%": 0.337}


def test_runs_without_metrics_have_no_columns_and_no_curves(tmp_path):
    found = report([make_run(tmp_path / "plain")], out=tmp_path / "out")
    assert "exact match" not in found.text and "val/exact_match" not in found.files["page"].read_text()
    assert json.loads(found.files["data"].read_text())["runs"][0]["exact_match"] is None


def test_only_some_runs_may_have_a_metric(tmp_path):
    paths = [make_measured(tmp_path / "a", 1, word_errors=5.0), make_measured(tmp_path / "b", 2, word_errors=None)]
    paths.append(make_run(tmp_path / "c", seed=3, loss=4.0))
    content = json.loads(report(paths, out=tmp_path / "out").files["data"].read_text())
    assert [run["word_errors"] for run in content["runs"]] == [5.0, None, None]
    assert measured_names(find(paths).runs) == ["word_errors"]


def test_a_metric_that_is_not_finite_is_refused(tmp_path):
    path = make_measured(tmp_path / "a", word_errors=float("nan"))
    with pytest.raises(InputError, match=r"line 2, cannot be read: .*word_errors is nan"):
        compare([path], None, None)
