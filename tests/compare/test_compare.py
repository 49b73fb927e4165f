"""Runs side by side: arms and their names, what cannot be compared, statistics, wrong input, files, the page."""

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, call
from made_up import make_run
from rich.console import Console
from scipy import stats

from gpt.compare import compare, report
from gpt.compare.arms import _labels, find_arms
from gpt.compare.curves import curve, mean_curve
from gpt.compare.runs import TRAIN, VAL, find, training_seconds
from gpt.compare.statistics import _holm, differences, steps, summarize
from gpt.compare.tables import FittedTable, Grid
from gpt.errors import InputError
from gpt.files import write_json

LOSSES = {64: [3.01, 2.99, 3.02], 128: [3.11, 3.08, 3.13], 256: [2.93, 2.90, 2.96]}


@pytest.fixture
def sweep(tmp_path):
    """Three arms of three seeds: the first the baseline, the second worse, the third better."""
    directory = tmp_path / "padding"
    for multiple, losses in LOSSES.items():
        for seed, loss in enumerate(losses, 1):
            name = f"vocab_multiple-{multiple}_seed-{seed}"
            make_run(directory / name, f"model.vocab_multiple={multiple}", seed=seed, loss=loss)
    jobs = {f"vocab_multiple-{m}_seed-{s}": {} for s, m in itertools.product((1, 2, 3), LOSSES)}
    write_json(directory / "sweep.json", {"layout": 1, "baseline": "vocab_multiple-64", "jobs": jobs})
    return directory


def arms_of(*paths):
    return find_arms(find(list(paths)).runs)


def warned(*paths):
    """The warnings of a comparison of these directories, joined."""
    return "\n".join(compare(list(paths), None, None).warnings)


# --- statistics

SLEEP = ([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
pure = pytest.mark.filterwarnings("error")


@pure
def test_a_mean_has_its_standard_error_and_t_interval():
    found = summarize(SLEEP[0])
    assert (found.n, found.mean) == (10, pytest.approx(0.75))
    assert (found.stderr, found.low, found.high) == pytest.approx((0.565734, -0.529780, 2.029780), abs=1e-6)  # by hand
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 9, 0.75, stats.sem(SLEEP[0])))
    assert summarize([]).mean is None
    assert (summarize([3.0]).mean, summarize([3.0]).stderr, summarize([3.0]).low) == (3.0, None, None)
    assert (summarize([3.0, 3.0]).stderr, summarize([3.0, 3.0]).high) == (0.0, 3.0)


@pure
def test_common_seeds_are_paired():
    """Student's sleep data (Biometrika 1908), with the figures that R's t.test(paired = TRUE) prints."""
    ours, theirs = (dict(enumerate(group)) for group in SLEEP)
    found = differences({"a": ours, "b": theirs}, "b")["a"]
    assert (found.test, found.n, found.verdict) == ("paired t", 10, "better")
    assert (found.mean, found.p) == (pytest.approx(-1.58), pytest.approx(0.002833, abs=1e-6))
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    test = stats.ttest_rel(*SLEEP)
    assert (found.p, found.low, found.high) == pytest.approx((test.pvalue, *test.confidence_interval()))
    more = differences({"a": ours | {77: 5.0}, "b": theirs | {78: -5.0}}, "b")["a"]
    assert (more.n, more.mean, more.p) == (10, found.mean, found.p)  # only seeds in common


@pure
def test_seeds_that_are_not_common_take_welch():
    """The same data unpaired: R's t.test(extra ~ group) prints these."""
    ours, theirs = dict(enumerate(SLEEP[0])), dict(enumerate(SLEEP[1], 100))
    found = differences({"a": ours, "b": theirs}, "b")["a"]
    assert (found.test, found.n, found.verdict) == ("Welch's t", 10, "undecided")
    assert found.p == pytest.approx(0.07939, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((-3.3654832, 0.2054832), abs=1e-7)
    two_in_common = differences({"a": {1: 3.0, 2: 3.1, 3: 3.2, 4: 3.3}, "b": {3: 3.3, 4: 3.2, 5: 3.25}}, "b")["a"]
    assert (two_in_common.test, two_in_common.n, two_in_common.mean) == ("Welch's t", 3, pytest.approx(-0.1))
    all_of_one = differences({"a": {1: 3.0, 2: 3.1}, "b": {1: 3.3, 2: 3.2, 3: 9.0}}, "b")["a"]
    assert (all_of_one.test, all_of_one.n, all_of_one.mean) == ("paired t", 2, pytest.approx(-0.2))
    one_in_common = differences({"a": {1: 3.0, 2: 3.1}, "b": {2: 3.3, 3: 3.2, 4: 3.25}}, "b")["a"]
    assert (one_in_common.test, one_in_common.n) == ("Welch's t", 2)


def test_the_steps_of_a_ladder_are_differences_from_the_arm_before():
    arms = {f"{multiple}": dict(enumerate(losses)) for multiple, losses in LOSSES.items()}
    found = steps(arms)
    assert list(found) == ["128", "256"]
    for before, label in (("64", "128"), ("128", "256")):
        alone = differences({before: arms[before], label: arms[label]}, before)[label]
        step = found[label]
        assert (step.mean, step.low, step.high, step.p) == (alone.mean, alone.low, alone.high, alone.p)
    assert [found[label].p_holm for label in found] == _holm([found[label].p for label in found])
    assert [found[label].verdict for label in found] == ["worse", "better"]


def test_holm_by_hand():
    assert _holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert _holm([0.6, 0.9]) == [1.0, 1.0]
    assert _holm([]) == []


BASE = {1: 3.00, 2: 2.98, 3: 3.05}


@pure
@pytest.mark.parametrize(
    "arm, verdict",
    [
        ({1: 2.90, 2: 2.87, 3: 2.96}, "better"),
        ({1: 3.10, 2: 3.07, 3: 3.16}, "worse"),
        ({1: 2.90, 2: 3.10, 3: 2.96}, "undecided"),  # the interval holds 0
        ({1: 2.90, 2: 2.8801}, "undecided"),  # two pairs, however small p is
        ({1: 2.90}, "undecided"),
        ({4: 2.90, 5: 2.91}, "undecided"),  # Welch with two runs in the smaller arm
        ({4: 2.50, 5: 2.51, 6: 2.49}, "better"),
        ({1: 3.00 - 0.01, 2: 2.98 - 0.01, 3: 3.05 - 0.01}, "undecided"),  # no spread to test
        ({4: 2.50, 5: 2.50, 6: 2.50}, "undecided"),
        ({1: 3.000009, 2: 2.98, 3: 3.05}, "equal"),
        ({1: 3.000011, 2: 2.98, 3: 3.05}, "undecided"),
        ({1: 3.00, 2: 2.98}, "undecided"),  # fewer pairs than better or worse needs
        ({2: 2.98}, "undecided"),
        ({}, None),
    ],
)
def test_verdicts(arm, verdict):
    assert differences({"base": BASE, "arm": arm}, "base")["arm"].verdict == verdict


@pure
def test_a_verdict_stands_after_the_correction_for_many():
    arm = {1: 2.95, 2: 2.93, 3: 2.985}  # p = 0.0046 alone, and times 20 more than 0.05
    alone = differences({"base": BASE, "arm": arm}, "base")["arm"]
    assert (alone.verdict, alone.p_holm) == ("better", alone.p)
    rest = {f"other{i}": {1: 3.0 + 0.01 * i, 2: 2.9, 3: 3.1 + i} for i in range(19)}
    among = differences({"base": BASE, "arm": arm, **rest}, "base")["arm"]
    assert (among.verdict, among.p_holm) == ("undecided", pytest.approx(20 * alone.p))
    assert among.high < 0


# --- curves


def test_training_time_is_summed_over_rows():
    rows = [{"tokens": 100, "perf/tokens_per_sec": 50}, {"tokens": 300, "perf/tokens_per_sec": 100}]
    assert training_seconds(rows) == [2.0, 4.0]


def test_curves_and_their_means(tmp_path):
    runs = find([make_run(tmp_path / f"s{i}", seed=i, loss=float(i)) for i in (2, 4)]).runs
    assert curve(runs[0], VAL)["tokens"] == [200, 400, 600, 800, 1000]
    assert curve(runs[0], VAL)["FLOPs"][-1] == 6000
    assert curve(runs[0], VAL)["time"] == pytest.approx([11, 13, 15, 17, 19])
    thin = curve(runs[0], TRAIN, most=4)  # ten rows in blocks of three
    assert thin["tokens"] == [300, 600, 900, 1000]
    assert thin["values"][0] == pytest.approx(2 + 0.5 * (9 / 1 + 8 / 2 + 7 / 3) / 3)
    mean = mean_curve([curve(run, VAL) for run in runs])
    assert (mean["steps"], mean["values"][-1]) == ([2, 4, 6, 8, 10], 3.0)
    shorter = find([make_run(tmp_path / "short", n=8)]).runs
    assert mean_curve([curve(run, VAL) for run in [*runs, *shorter]]) is None


# --- arms


@pytest.mark.parametrize(
    "overrides, labels",
    [
        ([[], []], ["tiny"]),
        ([["model.vocab_multiple=64"], ["model.vocab_multiple=1"]], ["vocab_multiple=64", "vocab_multiple=1"]),
        ([["optimizer=adamw"], ["optimizer=muon"]], ["optimizer=adamw", "optimizer=muon"]),
        ([["model=tiny"], ["model=bigram"]], ["model=tiny", "model=bigram"]),
        (
            [["optimizer=adamw"], ["optimizer=muon"], ["optimizer=muon", "optimizer.lr=1e-4"]],
            ["optimizer=adamw lr=0.002", "optimizer=muon lr=0.002", "optimizer=muon lr=0.0001"],
        ),
        ([["+sweep.arm=wide", "model.n_embd=256"], ["+sweep.arm=narrow"]], ["wide", "narrow"]),
        ([["+sweep.arm=wide", "model.n_embd=256"], []], ["wide", "no arm"]),
        (
            [["model.dropout=0.1", "trainer.max_tokens=20_000"], ["trainer.max_tokens=30_000"]],
            ["max_tokens=20000", "max_tokens=30000"],
        ),
        (  # nothing that changes a result
            [
                ["name=a", "tags=[x]", "checkpoint.keep=3", "tracker.plot=false"],
                ["trainer.log_every=1", "plan_mfu=0.1"],
                ["sample.tokens=5", "arithmetic.shots=2"],
            ],
            ["a"],
        ),
        ([["data.seed=5"], ["data.seed=6"]], ["data.seed=5", "data.seed=6"]),
        ([["cluster=single"], ["cluster=ddp", "cluster.nproc=1"], ["cluster=torchrun"]], ["tiny"]),
    ],
)
def test_arms_and_their_names(tmp_path, overrides, labels):
    paths = [
        make_run(tmp_path / f"run{i}-{seed}", *(o.lstrip("+") for o in given), seed=seed)
        for i, given in enumerate(overrides)
        for seed in (1, 2)
    ]
    arms = arms_of(*paths)
    shown = [label.replace("data.seed", "seed") for label in labels]
    assert [arm.label for arm in arms] == shown
    assert sum(len(arm.runs) for arm in arms) == len(paths)
    assert all(sorted({run.seed for run in arm.runs}) == [1, 2] for arm in arms)


def test_runs_on_other_data_are_other_arms_wherever_it_lies(tmp_path):
    paths = []
    for file, fingerprint in (("a.txt", "a-a"), ("moved.txt", "a-a"), ("bücher.txt", "b-b")):
        overrides = ["data=text", f"data.files='{file}'"]
        paths.append(make_run(tmp_path / file, *overrides, seed=len(paths), data_fingerprint=fingerprint))
    arms = arms_of(*paths)
    assert [(arm.label, len(arm.runs)) for arm in arms] == [("files=[a.txt]", 2), ("files=[bücher.txt]", 1)]


UNLIKE = [
    ["name=small"],
    ["data=shakespeare", "name=plays"],
    ["data=shakespeare", "optimizer=muon", "name=quick"],
    ["data=shakespeare", "optimizer=muon", "schedule=constant", "name=ramped"],
]


@pytest.mark.slow
def test_unlike_runs_are_named_by_their_runs(tmp_path):
    """Keys that tell them apart would be no names; of a sweep, keys are."""
    paths = [make_run(tmp_path / "day" / f"10-0{i}", *given) for i, given in enumerate(UNLIKE)]
    assert [arm.label for arm in arms_of(*paths)] == ["small", "plays", "quick", "ramped"]
    same = [make_run(tmp_path / "again" / f"11-0{i}", *given[:-1], "name=a") for i, given in enumerate(UNLIKE)]
    assert [arm.label for arm in arms_of(*same)] == ["11-00", "11-01", "11-02", "11-03"]
    write_json(tmp_path / "day" / "sweep.json", {"layout": 1, "jobs": {}})
    assert compare([tmp_path / "day"], None, None).arms[0].label.startswith("data=stdlib optimizer=adamw")


@pytest.mark.slow
def test_warnings_about_many_runs_are_short(tmp_path):
    """A line each, which lists a few names and counts the rest."""
    for i in range(12):
        make_run(tmp_path / "day" / f"r{i}", f"optimizer.lr={i + 1}e-4", tokens=1000 + i, data_fingerprint=f"{i}-{i}")
    warnings = compare([tmp_path / "day"], None, None).warnings
    assert [line.partition(":")[0] for line in warnings] == [
        "different training data", "different validation sets", "different numbers of tokens",
    ]  # fmt: skip
    assert all(len(line) <= 160 for line in warnings)
    assert all(line.endswith("and 8 more") for line in warnings)
    for i in range(12):
        fields = {"tokens": 2000 + i % 2, "data_fingerprint": f"{i % 2}-0"}
        make_run(tmp_path / "groups" / f"a-run-with-a-name-{i}", f"optimizer.lr={i + 1}e-4", **fields)
    warnings = compare([tmp_path / "groups"], None, None).warnings
    assert len(warnings) == 2
    assert warnings[0].endswith("lr=0.0001, lr=0.0003 and 4 more; another for lr=0.0002, lr=0.0004 and 4 more")


def test_labels_take_only_keys_that_tell_more_apart():
    arms = [dict(zip(("x.size", "y.size", "z.mode", "g.name"), values, strict=True)) for values in
            (("1", "1", "a", "adamw"), ("2", "1", "b", "adamw"), ("2", "2", "b", "adamw"), ("2", "2", "b", "muon"))]  # fmt: skip
    assert _labels(arms) == [
        "g=adamw x.size=1 y.size=1", "g=adamw x.size=2 y.size=1", "g=adamw x.size=2 y.size=2", "g=muon x.size=2 y.size=2",
    ]  # fmt: skip


def test_a_fixed_order_of_samples_is_one_arm(tmp_path):
    """data.seed=1 with seeds 1 and 2: that they are equal in the first run is chance."""
    fixed = [make_run(tmp_path / f"fixed{s}", "data.seed=1", "optimizer.lr=1e-3", seed=s) for s in (1, 2)]
    free = [make_run(tmp_path / f"free{s}", seed=s) for s in (1, 2)]
    arms = arms_of(*fixed, *free)
    assert [len(arm.runs) for arm in arms] == [2, 2]
    assert [arm.values["data.seed"] for arm in arms] == ["1", "${seed}"]


# --- what cannot be compared


def test_nothing_to_warn_of(sweep):
    found = compare([sweep], None, None)
    assert found.warnings == []
    assert (
        found.agreement
        == "comparable: same data in the same order, 1,000 tokens each, same validation set and tokenizer"
    )
    assert found.text.startswith(found.agreement)


@pytest.mark.parametrize(
    "other, warning",
    [
        ({"data_order_hash": "x"}, "not the same data in the same order as vocab_multiple=64 at equal seed and tokens: vocab_multiple=1"),
        ({"seed": 2}, "no seed in common with vocab_multiple=64, so other weights and other data: vocab_multiple=1"),
        ({"data_fingerprint": "aa-cc"}, "different validation sets: vocab_multiple=64; another for vocab_multiple=1"),
        ({"data_fingerprint": "cc-bb"}, "different training data: vocab_multiple=64; another for vocab_multiple=1"),
        ({"val_targets": 400}, "validated on different numbers of tokens: 500 (vocab_multiple=64); 400 (vocab_multiple=1)"),
        (
            {"tokenizer": {"name": "gpt2", "vocab_size": 50257, "chars": None}},
            "different tokenizers, so compare bits per byte (bpb), not losses per token: bytes with 257 tokens (vocab_multiple=64); "
            "gpt2 with 50,257 tokens (vocab_multiple=1)",
        ),
        ({"tokens": 2000}, "different numbers of tokens: 1,000 (vocab_multiple=64); 2,000 (vocab_multiple=1)"),
        ({"status": "interrupted"}, "interrupted, so left out of the statistics: other"),
        ({"status": "failed"}, "failed, so left out of the statistics: other"),
        ({"status": None}, "unfinished, so left out of the statistics: other"),
        ({"status": None, "n": 0}, "unfinished, so left out of the statistics: other"),
        ({"evaluated": False, "val_loss": None}, "no validation loss, so left out of the statistics: other"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_first(tmp_path, other, warning):
    one = make_run(tmp_path / "one", "model.vocab_multiple=64")
    two = make_run(tmp_path / "other", "model.vocab_multiple=1", **other)
    found = compare([one, two], None, tmp_path / "out")
    assert found.warnings == [warning]
    assert found.agreement is None
    assert found.text.startswith(f"warning: {warning}\n")
    assert found.arms[1].label == "vocab_multiple=1"


def test_other_windows_are_named(tmp_path):
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b", "model.seq_len=32", data_order_hash="x")
    assert "the windows necessarily differ" in warned(one, two)


def test_one_run_with_other_data_is_named_alone(sweep):
    path = sweep / "vocab_multiple-256_seed-2" / "result.json"
    path.write_text(path.read_text().replace('"2 1000"', '"other"'))
    assert warned(sweep).endswith("at equal seed and tokens: vocab_multiple-256_seed-2")


def test_seeds_that_some_arms_lack(sweep):
    shutil.rmtree(sweep / "vocab_multiple-256_seed-3")
    assert "tests take those in common): 1, 2, 3 (vocab_multiple=64, vocab_multiple=128); 1, 2 (vocab_multiple=256)" in warned(sweep)  # fmt: skip
    assert "not started: vocab_multiple-256_seed-3" in warned(sweep)


def test_the_second_of_one_seed_is_left_out(tmp_path):
    paths = [make_run(tmp_path / name, loss=loss) for name, loss in (("a", 3.0), ("b", 4.0))]
    found = compare(paths, None, tmp_path / "out")
    assert found.warnings == ["a seed is there twice in an arm, so left out of the statistics: b (a counts)"]
    assert found.means["tiny"].mean == 3.0


def test_seeds_without_effect(tmp_path):
    paths = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in (1, 2)]
    assert warned(*paths) == "all seeds end at the same loss, which says nothing about chance: tiny"


def test_few_common_seeds_among_many_are_named(tmp_path):
    paths = [make_run(tmp_path / f"a{s}", seed=s, loss=3.0 + s) for s in (1, 2, 3, 4)]
    paths += [make_run(tmp_path / f"b{s}", "compile=true", seed=s, loss=3.1 + s) for s in (3, 4, 5, 6)]
    assert warned(*paths) == (
        "fewer than 3 seeds in common with compile=false, so Welch's test over all of them: compile=true"
    )


def test_a_run_that_goes_on_is_unfinished(tmp_path):
    path = make_run(tmp_path / "a", step=8)
    assert find([path]).runs[0].state == "unfinished"


# --- baseline, statistics of runs, files


def test_the_sweep_is_compared_with_its_baseline(sweep):
    found = compare([sweep], None, None)
    assert [arm.label for arm in found.arms] == ["vocab_multiple=64", "vocab_multiple=128", "vocab_multiple=256"]
    assert (found.title, found.baseline) == ("padding", "vocab_multiple=64")
    assert {label: d.verdict for label, d in found.differences.items()} == {
        "vocab_multiple=128": "worse", "vocab_multiple=256": "better",
    }  # fmt: skip
    assert found.differences["vocab_multiple=128"].p == pytest.approx(stats.ttest_rel(LOSSES[128], LOSSES[64]).pvalue)
    assert found.means["vocab_multiple=64"].stderr == pytest.approx(stats.sem(LOSSES[64]))


@pytest.mark.parametrize("name", ["vocab_multiple=128", "vocab_multiple-128"])
def test_a_baseline_is_named_as_an_arm_or_as_its_directory(sweep, name):
    assert compare([sweep], name, None).baseline == "vocab_multiple=128"


@pytest.mark.slow
def test_a_baseline_that_has_not_begun_stops_nothing(sweep):
    for path in sweep.glob("vocab_multiple-64_*"):
        shutil.rmtree(path)
    found = compare([sweep], None, None)
    assert found.warnings[-1] == "the sweep's baseline vocab_multiple-64 has no run here, so nothing is tested"
    assert found.differences == {}


def test_two_sweeps_have_no_baseline(sweep, tmp_path):
    other = make_run(tmp_path / "more" / "muon", "optimizer=muon").parent
    found = compare([sweep, other, sweep / "vocab_multiple-64_seed-1"], None, tmp_path / "out")
    assert (found.baseline, found.title, len(found.arms)) == (None, "10 runs", 4)  # each run once
    assert found.files["page"] == tmp_path / "out" / "compare.html"


def test_one_run_has_curves_and_no_statistics(tmp_path):
    found = report([make_run(tmp_path / "alone")], out=tmp_path / "out")
    assert (found.warnings, found.agreement, found.differences) == ([], None, {})
    assert found.means["tiny"].stderr is None
    assert all(path.stat().st_size for path in found.files.values())


@pytest.mark.slow
def test_json_holds_everything_and_is_valid(sweep):
    make_run(sweep / "begun", "model.vocab_multiple=1", status=None, n=0)
    make_run(sweep / "blind", "model.vocab_multiple=2", evaluated=False)

    def refuse(constant):
        raise AssertionError(constant)

    found = report([sweep])
    held = json.loads(found.files["data"].read_text(), parse_constant=refuse)
    assert held["baseline"] == "vocab_multiple=64"
    assert held["keys"] == ["model.vocab_multiple"]
    assert held["arms"][1]["difference"]["verdict"] == "worse"
    assert held["arms"][1]["val_loss"]["mean"] == pytest.approx(sum(LOSSES[128]) / 3)
    assert held["arms"][3]["val_loss"]["mean"] is None
    assert held["arms"][0]["seconds"] == pytest.approx(19)
    assert held["arms"][0]["tokens_per_sec"] == 100
    assert {run["state"] for run in held["runs"]} == {"done", "unfinished"}
    assert len(held["runs"]) == 11
    assert found.files["text"].read_text() == found.text


@pytest.mark.slow
def test_equal_runs_give_equal_bytes_and_leave_nothing_else(sweep):
    first = {kind: path.read_bytes() for kind, path in report([sweep]).files.items()}
    again = {kind: path.read_bytes() for kind, path in report([sweep]).files.items()}
    assert first == again
    assert {path.name for path in sweep.iterdir() if not path.is_dir()} == {
        "sweep.json", "compare.html", "compare.png", "compare.txt", "compare.json",
    }  # fmt: skip


def test_names_are_no_markup(tmp_path):
    paths = [make_run(tmp_path / f"[red]<b>{i}</script>".replace("/", ""), "data=text", "data.files='<i>[x]'", seed=i, loss=i + 1.0, data_fingerprint="x")
             for i in (1, 2)]  # fmt: skip
    paths.append(make_run(tmp_path / "plain"))
    found = report(paths, out=tmp_path / "out")
    assert "<i>[x]" in found.text
    page = found.files["page"].read_text()
    assert "<i>[x]" not in page
    assert "&lt;i&gt;[x]" in page
    assert "[red]<b>" not in page


# --- wrong input


def module(*arguments, cwd):
    return call(*map(str, arguments), cwd=cwd, script="gpt.compare")


@pytest.mark.parametrize(
    "width, columns",
    [
        (130, ["arm", "val loss", "95 % interval", "verdict", "tokens", "options"]),
        (120, ["arm", "val loss", "95 % interval", "verdict", "tokens"]),
        (80, ["arm", "val loss", "95 % interval", "verdict"]),
        (60, ["arm", "val loss", "verdict"]),
        (30, ["arm"]),
    ],
)
def test_a_narrow_terminal_has_fewer_columns_and_no_broken_ones(width, columns):
    grid = Grid(
        "a title",
        ["arm", "val loss", "95 % interval", "verdict", "tokens", "options"],
        [["outputs/2026-11-21/10-00-00-tiny", "2.0525 ± 0.0063", "[2.0, 2.1]", "better", "393,216", "x" * 90]],
        {"arm"},
    )
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None, soft_wrap=True)
    console.print(FittedTable(grid, "compare.txt"))
    _, title, header, row, *rest = output.getvalue().split("\n")
    assert (title, re.split("   +", header.strip())) == ("a title", columns)
    assert row.startswith("outputs/2026-11-21/10-00-00-tiny")
    assert len(header.rstrip()) <= max(width, 33)
    left_out = [name for name in grid.header if name not in columns]
    assert all(name in " ".join(rest) for name in left_out)

    # A pipe and a file get all of it.
    output = io.StringIO()
    Console(file=output, width=width, soft_wrap=True).print(FittedTable(grid, "compare.txt"))
    assert "x" * 90 in output.getvalue()


@pytest.mark.slow
def test_the_command_prints_and_says_where_the_files_are(sweep):
    done = module("padding", "baseline=vocab_multiple-256", "formats=[svg, pdf]", cwd=sweep.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith((sweep / "compare.txt").read_text())
    assert done.stdout.endswith("page  padding/compare.html\nplot  padding/compare.png\ntext  padding/compare.txt\n"
                                "data  padding/compare.json\npdf   padding/compare.pdf\nsvg   padding/compare.svg\n")  # fmt: skip
    assert re.search(r"vocab_multiple=128 +\+0\.1767 .* worse", done.stdout)
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize(
    "arguments, problem, cure",
    [
        ([], "no directory is given", "usage: python -m gpt.compare DIR"),
        (["paddin"], "paddin: no such directory", "did you mean padding?"),
        (["padding", "basline=x"], "basline=x: no such argument", "did you mean baseline?"),
        (["padding", "--out"], "--out: no such argument", "did you mean out?"),
        (["padding", "out="], "out= names nothing", "usage: "),
        (["padding", "baseline=vocab_multiple=12"], "baseline=vocab_multiple=12 is none of the arms",
         "arms: vocab_multiple=64, vocab_multiple=128, vocab_multiple=256; did you mean vocab_multiple=128?"),
        (["padding", "formats=[svg,jpg]"], "formats=jpg is not known", "allowed: png, pdf, svg"),
        (["padding", "out=padding/sweep.json/x"], "the report cannot be written", "out=DIR"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_two_lines(sweep, arguments, problem, cure):
    refused = module(*arguments, cwd=sweep.parent)
    assert (refused.returncode, refused.stdout) == (2, "")
    lines = refused.stderr.splitlines()
    assert len(lines) == 2
    assert problem in lines[0]
    assert cure in lines[1]
    assert not list(sweep.parent.glob("**/*compare*"))


def test_help_says_what_it_is_for(tmp_path):
    assert "python -m gpt.compare DIR" in module("--help", cwd=tmp_path).stdout


def test_a_wrong_command_waits_for_no_library():
    slow = "{'torch', 'scipy', 'matplotlib', 'plotly', 'numpy'}"
    subprocess.run(
        [sys.executable, "-c", f"import gpt.compare, sys; assert not {slow} & set(sys.modules)"], cwd=ROOT, check=True
    )


def spoil(path, name, text):
    (path / name).write_text(text)


def spoil_row(path, number, key, value):
    """Give a row of metrics.jsonl another value."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[number - 1] = f'{lines[number - 1][:-1]}, "{key}": {value}}}'
    spoil(path, "metrics.jsonl", "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: shutil.rmtree(run), "runs is empty\n"),
        (lambda run: (run / "config.yaml").unlink(), "runs holds no run: no config.yaml"),
        (lambda run: (run / "metrics.jsonl").unlink(), "no run there has logged a step yet"),
        (lambda run: spoil(run, "result.json", '{"layout": 99}'), "result.json has layout 99"),
        (
            lambda run: spoil(run, "result.json", '{"layout": 1, "status": "done", "flops_per_token": NaN}'),
            "a/result.json cannot be read: flops_per_token is nan",
        ),
        (lambda run: spoil(run, "result.json", "[1, 2]"), "result.json is damaged, or none of ours"),
        (lambda run: spoil(run.parent, "sweep.json", "{}"), "sweep.json is damaged, or none of ours"),
        (lambda run: spoil(run.parent, "sweep.json", '{"layout": 2}'), "sweep.json has layout 2"),
        (lambda run: spoil(run.parent, "sweep.json", '{"layout": 1, "jobs": 3}'), "sweep.json is damaged, or none of ours"),
        (lambda run: spoil(run, "config.yaml", "model: 3"), "config.yaml is damaged, or none of ours"),
        (lambda run: spoil(run, "config.yaml", "a: [b"), "config.yaml is damaged, or none of ours"),
        (lambda run: spoil(run, "config.yaml", (run / "config.yaml").read_text() + "wings: 2\n"), "a/config.yaml: unknown key wings"),
        (lambda run: spoil(run, "metrics.jsonl", "{}\n"), "metrics.jsonl, line 1, cannot be read: KeyError('step')"),
        (lambda run: spoil(run, "metrics.jsonl", "torn\n"), "metrics.jsonl cannot be read"),
        (lambda run: spoil_row(run, 2, "val/loss", "NaN"), "a/metrics.jsonl, line 2, cannot be read: ValueError('val/loss is nan')"),
        (lambda run: spoil_row(run, 3, "train/loss", "Infinity"), "a/metrics.jsonl, line 3, cannot be read: ValueError('train/loss is inf')"),
        (lambda run: spoil_row(run, 1, "val/loss", "null"), "line 1, cannot be read: ValueError('val/loss is no number')"),
    ],
)  # fmt: skip
def test_wrong_directories_are_refused(tmp_path, change, message):
    run = make_run(tmp_path / "runs" / "a")
    change(run)
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        report([tmp_path / "runs"])
    assert len(str(refused.value).splitlines()) == 2
    assert not list((tmp_path / "runs").glob("*compare*"))


def test_half_a_row_is_none(tmp_path):
    run = make_run(tmp_path / "a")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "tok')
    assert find([run]).runs[0].tokens == 1000


# --- the page in a browser

POINT = """() => {
    const plot = document.getElementById("losses"), box = plot.getBoundingClientRect();
    const {xaxis, yaxis, _size} = plot._fullLayout, line = plot.data.findIndex(one => one.meta.includes("mean of 3"));
    const [x, y] = [plot.data[line].x.at(-2), plot.data[line].y.at(-2)];
    return [box.left + _size.l + xaxis.l2p(x), box.top + _size.t + yaxis.l2p(y), x, y, line];
}"""
VISIBLE = "() => document.getElementById('losses')._fullData.filter(line => line.visible === true).length"
TITLES = """() => { const {xaxis, yaxis} = document.getElementById("losses")._fullLayout;
    return [xaxis.title.text, yaxis.title.text, yaxis.type]; }"""


@pytest.fixture
def browser():
    """Headless Chromium, or a skip where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=arguments, timeout=60_000)
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_page_works_in_a_browser_and_asks_nobody(sweep, browser):
    path = report([sweep]).files["page"]
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    page.set_default_timeout(20_000)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("#losses .legend .traces")
    assert page.title() == "padding"
    assert page.locator(".notes").inner_text().startswith("comparable: same data in the same order")

    x, y, tokens, loss, line = page.evaluate(POINT)
    page.mouse.move(x, y)
    label = page.wait_for_selector("#losses .hoverlayer .hovertext")
    shown = label.text_content()
    assert "mean of 3 seeds" in shown
    assert f"tokens {tokens}" in shown
    assert f"loss {loss:.4f}" in shown
    assert len(page.evaluate("line => document.getElementById('losses').data[line].x", line)) == 5

    assert page.evaluate(VISIBLE) == 12
    page.locator("#losses .legendtoggle").nth(1).click()
    page.wait_for_function(f"({VISIBLE})() === 8")  # three runs and their mean

    assert page.evaluate(TITLES) == ["tokens", "validation loss (nats per token)", "linear"]
    for button, titles in [
        ("steps", ["steps", "validation loss (nats per token)", "linear"]),
        ("time", ["training time (s)", "validation loss (nats per token)", "linear"]),
        ("training", ["training time (s)", "training loss (nats per token)", "linear"]),
        ("log", ["training time (s)", "training loss (nats per token)", "log"]),
        ("FLOPs", ["FLOPs", "training loss (nats per token)", "log"]),
    ]:
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_function(f"JSON.stringify(({TITLES})()) === '{json.dumps(titles, separators=(',', ':'))}'")
        assert page.evaluate(VISIBLE) == 8
    assert page.evaluate("line => document.getElementById('losses').data[line].x.at(-1)", line) == 6000

    # On a telephone only tables are wider than the screen, each within its own box.
    narrow = browser.new_page(viewport={"width": 420, "height": 800})
    narrow.goto(path.as_uri())
    narrow.wait_for_selector("#losses .legend .traces")
    assert narrow.evaluate("document.documentElement.scrollWidth") == 420
    verdicts = narrow.locator(".forest em")
    assert verdicts.all_inner_texts() == ["worse", "better"]
    for box in [verdict.bounding_box() for verdict in verdicts.all()]:
        assert 0 < box["x"] < box["x"] + box["width"] <= 420

    assert said == []
    assert asked == [path.as_uri()]
