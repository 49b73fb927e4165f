"""What a comparison shows first: its question, its answer as a forest plot, panels that tell different things."""

import json
import re

import pytest
from made_up import make_run
from test_compare import sweep  # noqa: F401  (a fixture)
from test_provenance import START, start, with_starts

from gpt.compare import compare, report
from gpt.compare.arms import find_arms
from gpt.compare.forest import _signed, _step, forest
from gpt.compare.plot import _telling_axes
from gpt.compare.runs import TRAIN, VAL, find
from gpt.compare.series import Series, all_series, loss_range, main_key
from gpt.compare.statistics import Difference
from gpt.errors import InputError
from gpt.files import write_json
from gpt.sweep.question import read_question

ABOUT = {"question": "Does <padding> matter?", "expected": "No.", "command": "python train.py sweeps=padding"}

# --- the question


def test_the_comment_of_a_sweep_is_its_question():
    text = """# @package _global_
# Does dropout help when the text
# is seen many times?
#
# Expected  Yes, from the second
#           epoch on.
# Source    Srivastava et al. 2014.
hydra:
  mode: MULTIRUN  # Expected  nothing
"""
    assert read_question(text) == {
        "question": "Does dropout help when the text is seen many times?",
        "expected": "Yes, from the second epoch on.",
        "source": "Srivastava et al. 2014.",
    }
    assert read_question("hydra:\n  mode: MULTIRUN\n") == {}


def test_question_answer_command_commit_and_date_lead_the_page(sweep):  # noqa: F811
    index = json.loads((sweep / "sweep.json").read_text())
    write_json(sweep / "sweep.json", index | {"about": ABOUT})
    for path in sweep.glob("*_seed-*"):
        day = path.name[-1]
        with_starts(path, start(git={"commit": "a" * 40}) | {"date": f"2026-11-0{day}"})
    found = report([sweep])
    assert found.about == ABOUT | {"commit": "aaaaaaa", "date": "2026-11-01 to 2026-11-03"}
    assert json.loads(found.files["data"].read_text())["about"] == found.about

    page = found.files["page"].read_text()
    assert "<title>Does &lt;padding&gt; matter?</title>" in page
    order = ['<h1>Does &lt;padding&gt;', 'class="forest"', "<dt>expected</dt>", "<code>python train.py", "<dt>date</dt>",
             'class="notes', "<table>"]  # fmt: skip
    assert sorted(order, key=page.index) == order


@pytest.mark.slow
def test_a_comparison_of_ones_own_shows_its_command_and_says_what_it_replaced(sweep):  # noqa: F811
    assert not report([sweep]).replaced
    again = report([sweep], command="python -m gpt.compare sweep baseline='<b>'")
    assert again.replaced
    page = again.files["page"].read_text()
    assert "<dt>compared by</dt><dd><code>python -m gpt.compare sweep baseline=&#x27;&lt;b&gt;" in page


def test_all_points_of_short_curves_are_shown():
    def line(losses):
        points = {"values": losses}
        return Series(name="", arm=0, is_main=True, is_counted=True, curves={VAL: points})

    assert loss_range([line([5.0, 3.0])], VAL)[1] > 5.0
    assert loss_range([line([9.0, *[3.0] * 19])], VAL)[1] < 4.0  # the steep beginning of a long one is above


def test_what_is_not_known_is_left_out(tmp_path):
    made = with_starts(make_run(tmp_path / "a"), START | {"git": None})
    assert compare([made], None, None).about == {}


# --- the answer


def test_the_forest_places_every_arm_on_one_axis():
    found = forest(
        {
            "less": Difference(3, -0.10, -0.15, -0.05, verdict="better"),
            "<b>": Difference(3, 0.05, -0.05, 0.15, verdict="undecided"),
            "two seeds": Difference(2, 0.0, -9.0, 9.0, verdict="undecided"),
            "one seed": Difference(1, 0.01, verdict="undecided"),
            "not begun": Difference(0),
        },
        "base",
    )
    rows = re.findall(r'<div class="row .*', found)
    assert [row.count('class="interval"') for row in rows] == [1, 1, 1, 0, 0]
    assert [row.count('class="point"') for row in rows] == [1, 1, 1, 1, 0]
    assert "<b>&lt;b&gt;</b>" in found
    assert "-0.1000 [-0.1500, -0.0500]" in found

    # The axis is that of the arms with three seeds, with a margin of 6 % of 0.3; the wide interval is cut off.
    places = re.findall(r'class="(zero|interval|point)" style="left:([\d.]+)%', found)
    assert ("zero", "50.00") in places
    left = [float(place) for kind, place in places if kind == "interval"]
    assert left == pytest.approx([100 * 0.018 / 0.336, 100 * 0.118 / 0.336, 0], abs=0.01)
    assert re.findall(r'left:[\d.]+%">([^<]*)</span>', found) == ["-0.1", "0", "+0.1"]


def test_a_forest_needs_a_difference():
    assert forest({}, "") == ""
    assert forest({"not begun": Difference(0)}, "base") == ""
    assert 'class="point"' in forest({"equal": Difference(3, 0.0, verdict="equal")}, "base")


@pytest.mark.parametrize(
    "extent, step, shown", [(0.34, 0.1, "+0.1"), (0.02, 0.005, "+0.005"), (9, 2, "+2"), (300, 50, "+50")]
)
def test_ticks_are_round_numbers(extent, step, shown):
    assert _step(extent) == pytest.approx(step)
    assert _signed(step, step) == shown


# --- curves


def lines_of(*paths):
    return all_series(find_arms(find(list(paths)).runs))


def test_panels_that_repeat_a_curve_are_left_out(tmp_path):
    one = make_run(tmp_path / "one")
    alike = make_run(tmp_path / "alike", "model.vocab_multiple=1")
    assert _telling_axes(lines_of(one, alike), VAL) == ["tokens", "time"]  # the first step is slow
    ramp = make_run(tmp_path / "ramp", "batch=ramp", n=20)
    assert _telling_axes(lines_of(one, ramp), VAL) == ["tokens", "steps", "time"]
    large = make_run(tmp_path / "large", "model.n_embd=256", flops_per_token=12)
    assert _telling_axes(lines_of(one, ramp, large), VAL) == ["tokens", "steps", "time", "FLOPs"]


def test_one_evaluation_is_no_curve(tmp_path):
    """So that of training is shown."""
    short = make_run(tmp_path / "short", n=3)
    assert main_key(lines_of(short)) == TRAIN
    assert main_key(lines_of(short, make_run(tmp_path / "longer", n=4))) == VAL
    found = report([short], out=tmp_path / "out", formats=["svg"])
    page = found.files["page"].read_text()
    assert f'measure: "{TRAIN}"' in page
    assert f'value="{TRAIN}" aria-pressed="true"' in page
    assert f'value="{VAL}" aria-pressed="false"' in page


@pytest.mark.slow
def test_plots_in_other_formats_on_request(tmp_path):
    path = make_run(tmp_path / "one")
    first = report([path], out=tmp_path / "a", formats=["svg", "pdf"]).files
    again = report([path], out=tmp_path / "b", formats=["svg", "pdf"]).files
    assert list(first) == ["page", "plot", "text", "data", "pdf", "svg"]
    assert first["pdf"].read_bytes().startswith(b"%PDF")
    assert b"<svg" in first["svg"].read_bytes()
    for name in ("plot", "pdf", "svg"):
        assert first[name].read_bytes() == again[name].read_bytes()
    with pytest.raises(InputError, match=r"formats=jpeg is not known\n  allowed: png, pdf, svg"):
        report([path], out=tmp_path / "c", formats=["jpeg"])
    assert not (tmp_path / "c").exists()
