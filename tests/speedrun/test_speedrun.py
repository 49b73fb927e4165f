"""What counts in a speedrun: the target, seeds and p, the data, and the recipes that ship."""

import json
import math

import pytest
import yaml
from conftest import ROOT, call
from made_up import make_run
from scipy import stats

from gpt.cli.compose import compose
from gpt.errors import InputError
from gpt.files import write_json
from gpt.speedrun import __main__ as speedrun
from gpt.speedrun.records import RECORDS, read
from gpt.speedrun.standings import DATA, TARGETS
from gpt.sweep.arms import over_arms

LOSSES = [1.85, 1.88, 1.86, 1.87, 1.84]
OF_NANOGPT = [1.906, 1.897, 1.911]


def make_speedrun(directory, losses, name="speedrun", **result):
    """A finished speedrun whose arm ``small`` has these losses, by seed from 1 on, in a fifth of nanoGPT's tokens."""
    known = {"data_fingerprint": DATA, "val_targets": TARGETS, **result}
    jobs = {}
    for arm, of_arm, tokens in (("nanogpt", OF_NANOGPT, 5000), ("small", losses, 1000)):
        for seed, loss in enumerate(of_arm, 1):
            job = f"{arm}_seed-{seed}"
            make_run(directory / job, f"sweep.arm={arm}", seed=seed, loss=loss, tokens=tokens, **known)
            jobs[job] = {"overrides": ["model.n_layer=3", f"sweep.arm={arm}", f"seed={seed}", "data.files=[a.txt]"]}
    write_json(directory / "sweep.json", {"layout": 1, "name": name, "baseline": "nanogpt", "jobs": jobs})
    return directory


@pytest.fixture
def judged(tmp_path, monkeypatch, capsys):
    """Runs the command; returns the line of the arm ``small`` in a file of records, and what is printed."""

    def judge(*arguments):
        path = tmp_path / "new" / "records.jsonl"
        monkeypatch.setattr("sys.argv", ["speedrun", *map(str, arguments), f"records={path}"])
        speedrun.main()
        return read(path)[-1], capsys.readouterr().out

    return judge


def test_a_record_has_five_seeds_and_a_mean_that_is_below_the_target(judged, tmp_path):
    record, said = judged(make_speedrun(tmp_path / "s", LOSSES))
    t = (1.86 - 1.898) / stats.sem(LOSSES)
    assert record["p"] == pytest.approx(stats.t.cdf(t, 4)) and record["p"] < 0.01
    assert record["is_record"] and record["arm"] == "small" and record["track"] == "speedrun"
    assert record["val_loss"]["mean"] == pytest.approx(1.86)
    assert record["losses"] == {str(seed): loss for seed, loss in enumerate(LOSSES, 1)}
    assert record["overrides"] == ["model.n_layer=3"]
    # A tenth of the run at 10 tokens a second, the rest at 100.
    assert record["seconds"] == pytest.approx({"mean": 19.0, "min": 19.0, "max": 19.0})
    assert (record["seconds_ratio"], record["tokens_ratio"]) == pytest.approx((0.2, 0.2))
    assert "small: below 1.898 after 19.0 s of training, in 20.0% of the time of nanoGPT's recipe" in said
    assert "counts as a record" in said


@pytest.mark.parametrize(
    "losses, words",
    [
        (LOSSES[:4], "a record needs 5 seeds: make speedrun SEEDS=1,2,3,4,5\n"),
        (LOSSES[:1], "a record needs 5 seeds"),
        ([1.80, 1.96, 1.85, 1.90, 1.88], "a record needs p < 0.01"),
        ([1.91, 1.92, 1.90, 1.91, 1.90], "small: 1.9080 is not below 1.898 after 19.0 s"),
    ],
)
def test_what_is_no_record_says_why(losses, words, judged, tmp_path):
    record, said = judged(make_speedrun(tmp_path / "s", losses))
    assert not record["is_record"]
    assert words in said and "counts as" not in said


def test_the_seeds_that_a_record_lacks_come_from_the_sweep_at_hand(judged, tmp_path):
    record, said = judged(make_speedrun(tmp_path / "s", [1.4, 1.41], name="speedrun_gpu"))
    assert record["track"] == "speedrun_gpu"
    assert "a record needs 5 seeds: python train.py sweeps=speedrun_gpu\n" in said


def test_records_are_added_to_those_before(judged, tmp_path):
    directory = make_speedrun(tmp_path / "s", LOSSES)
    judged(directory)
    judged(directory)
    lines = (tmp_path / "new" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["arm"] for line in lines] == ["nanogpt", "small"] * 2


@pytest.mark.parametrize(
    "how, problem",
    [
        ({"data_fingerprint": "aa-bb"}, "its data is not Tiny Shakespeare by character"),
        ({"val_targets": 65_536}, "its loss is over 65,536 characters"),
        ({"name": "modern"}, "is no speedrun"),
    ],
)
def test_other_data_and_other_sweeps_are_refused(how, problem, judged, tmp_path):
    directory = make_speedrun(tmp_path / "s", LOSSES, **how)
    with pytest.raises(InputError) as refused:
        judged(directory)
    assert problem in refused.value.problem
    assert not (tmp_path / "new").exists()


def test_a_speedrun_without_nanogpt_has_no_measure(judged, tmp_path):
    directory = make_speedrun(tmp_path / "s", LOSSES)
    for run in directory.glob("nanogpt_*"):
        (run / "result.json").unlink()
    with pytest.raises(InputError, match="no finished run of nanogpt") as refused:
        judged(directory)
    assert "sweep.arm=nanogpt,ARM" in refused.value.cure


def test_nanogpts_recipe_may_be_alone(judged, tmp_path):
    directory = make_speedrun(tmp_path / "s", [])
    record, said = judged(directory)
    assert (record["arm"], len(record["losses"]), record["seconds_ratio"]) == ("nanogpt", 3, 1)
    assert "nanogpt: 1.9047 is not below 1.898" in said


def test_an_arm_is_one_recipe(judged, tmp_path):
    directory = make_speedrun(tmp_path / "s", LOSSES)
    known = {"data_fingerprint": DATA, "val_targets": TARGETS}
    make_run(directory / "other", "sweep.arm=small", "optimizer.weight_decay=0.3", seed=9, **known)
    with pytest.raises(InputError) as refused:
        judged(directory)
    assert refused.value.problem.endswith("several recipes of small, which differ in optimizer.weight_decay")


def test_weights_from_elsewhere_are_refused(judged, tmp_path):
    directory = make_speedrun(tmp_path / "s", [])
    known = {"data_fingerprint": DATA, "val_targets": TARGETS}
    make_run(directory / "small_seed-1", "sweep.arm=small", "init_from=outputs/mine", **known)
    with pytest.raises(InputError, match="small_seed-1: it starts from the weights of outputs/mine"):
        judged(directory)


def test_a_run_by_itself_is_refused_by_name(judged, tmp_path):
    directory = make_speedrun(tmp_path / "s", LOSSES)
    with pytest.raises(InputError, match="small_seed-1 is no speedrun"):
        judged(directory / "small_seed-1")


def test_runs_that_are_not_finished_are_named(judged, tmp_path):
    directory = make_speedrun(tmp_path / "s", LOSSES)
    (directory / "small_seed-5" / "result.json").unlink()
    record, said = judged(directory)
    assert "not finished, and not counted: small_seed-5" in said
    assert not record["is_record"]


def test_one_sweep_at_a_time(judged, tmp_path):
    directories = [make_speedrun(tmp_path / name, LOSSES) for name in ("a", "b")]
    with pytest.raises(InputError, match="several directories"):
        judged(*directories)


def values(config):
    """What decides what a run computes, without its name and when it is measured."""
    config.name = config.model.name = ""
    config.model.peak_lr = math.nan  # of which nothing is left where optimizer.lr and adamw_lr are given
    config.trainer.eval_every = 0
    return str(config)


def test_the_last_rung_of_the_ladder_is_the_recipe():
    sweeper = yaml.safe_load((ROOT / "sweeps" / "speedrun.yaml").read_text())["hydra"]["sweeper"]
    *_, last = over_arms([[]], sweeper["arms"], sweeper["ladder"])
    by_ladder = compose([override for override in last if not override.startswith("sweep.")])
    assert values(by_ladder) == values(compose(["experiment=speedrun"]))


def test_the_records_that_ship_are_records():
    """Every rung of the ladder but nanoGPT's own has one."""
    records = [record for record in read(RECORDS) if record["track"] == "speedrun"]
    sweeper = yaml.safe_load((ROOT / "sweeps" / "speedrun.yaml").read_text())["hydra"]["sweeper"]
    assert {record["arm"] for record in records if record["is_record"]} == set(sweeper["arms"]) - {"nanogpt"}
    for record in records:
        losses = list(record["losses"].values())
        enough = len(losses) >= 5
        assert record["is_record"] == (enough and stats.ttest_1samp(losses, 1.898, alternative="less").pvalue < 0.01)


@pytest.mark.slow
def test_a_speedrun_from_its_sweep_to_its_record(shakespeare, tmp_path):
    """A few steps of both recipes, on the real data."""
    short = ["trainer.max_tokens=1_536", "trainer.max_steps=null", "schedule.warmup_tokens=768", "cluster.threads=1"]
    swept = call("sweeps=speedrun", "sweep.arm=nanogpt,small", "seed=1", f"data.files=[{shakespeare}]", *short, f"data.cache_dir={tmp_path}/cache", "hydra.sweep.dir=s", cwd=tmp_path)  # fmt: skip
    assert swept.returncode == 0, swept.stdout + swept.stderr
    done = call("s", "records=records.jsonl", script="gpt.speedrun", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not below 1.898" in done.stdout
    records = read(tmp_path / "records.jsonl")
    assert [record["arm"] for record in records] == ["nanogpt", "small"]
    assert all(2 < record["val_loss"]["mean"] < 4.5 and record["tokens"] == 1_536 for record in records)
    assert {"processors", "numbers of threads"} <= records[0]["facts"].keys()
