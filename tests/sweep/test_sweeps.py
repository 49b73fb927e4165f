"""Sweeps without running them: arms, names, slots, what is in their directories, plans."""

import json
from types import SimpleNamespace

import pytest
from conftest import call
from omegaconf import OmegaConf

from data.preparation import prepare
from gpt.cli.arguments import as_rank
from gpt.cli.compose import compose
from gpt.config.budget import linear_stages, run_length, whole_batches
from gpt.config.groups import options
from gpt.config.load import _scaled, save
from gpt.errors import InputError
from gpt.files import ROOT, write_json
from gpt.rundir import write_result
from gpt.sweep.arms import over_arms, param_overrides
from gpt.sweep.board import Board, _last_row
from gpt.sweep.index import _check_sweep_dir
from gpt.sweep.jobs import Job, State, determine_state
from gpt.sweep.names import job_names, known_names, swept_keys
from gpt.sweep.slots import Slot, _cpu_cores, share_out
from gpt.sweep.sweep import Sweep
from gpt.tokens.tokenfile import data_fingerprint

ARMS = {"plain": ["precision=fp32", "compile=false"], "half": ["precision=bf16"], "fast": ["compile=true"]}


def test_jobs_are_run_for_every_arm():
    found = over_arms([["seed=1"], ["seed=2"]], {"a": ["batch=ramp"], "b": []}, ladder=False)
    assert found == [
        ["batch=ramp", "sweep.arm=a", "seed=1"],
        ["sweep.arm=b", "seed=1"],
        ["batch=ramp", "sweep.arm=a", "seed=2"],
        ["sweep.arm=b", "seed=2"],
    ]
    assert over_arms([["seed=1"]], {}, ladder=False) == [["seed=1"]]


def test_a_list_of_params_is_choices_unless_the_key_takes_lists():
    params = {"seed": [1, 2], "optimizer": ["adamw", "muon"], "schedule.decay_until": [None, 5], "model.dropout": "0.1,0.2",
              "optimizer.betas": [0.9, 0.95]}  # fmt: skip
    assert param_overrides(OmegaConf.create(params)) == [
        "seed=1,2",
        "optimizer=adamw,muon",
        "schedule.decay_until=null,5",
        "model.dropout=0.1,0.2",
        "optimizer.betas=[0.9, 0.95]",
    ]


MISTAKES = [
    ("# Q?\nhydra:\n  mode: MULTIRUN\n", "its file does not say that its keys are of the whole config", "# @package _global_"),
    ("# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: [1,2\n      name: a\n", "wrong.yaml, line 6: ", "correct the YAML"),
]  # fmt: skip


@pytest.mark.parametrize("text, problem, cure", MISTAKES)
def test_a_wrong_file_of_a_sweep_is_named(text, problem, cure, tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "wrong.yaml").write_text(text)
    refused = call("--config-dir", str(tmp_path), "sweeps=wrong", cwd=tmp_path)
    assert refused.returncode == 2 and problem in refused.stderr and cure in refused.stderr


def test_rungs_add_to_those_before():
    found = over_arms([[]], ARMS, ladder=True)
    assert found == [
        ["precision=fp32", "compile=false", "sweep.arm=plain"],
        ["precision=bf16", "compile=false", "sweep.arm=half"],
        ["precision=bf16", "compile=true", "sweep.arm=fast"],
    ]


def test_arms_can_be_chosen():
    jobs = [["sweep.arm=fast", "seed=1"], ["sweep.arm=half", "seed=1"]]
    assert [job[-2] for job in over_arms(jobs, ARMS, ladder=True)] == ["sweep.arm=fast", "sweep.arm=half"]
    with pytest.raises(
        InputError, match=r"sweep.arm=fest is not known\n  allowed: plain, half, fast; did you mean fast"
    ):
        over_arms([["sweep.arm=fest"]], ARMS, ladder=True)


@pytest.mark.parametrize(
    "jobs, keys, names",
    [
        (
            [["seed=1", "model.vocab_multiple=64", "compile=true"]],
            ["model.vocab_multiple", "seed"],
            ["vocab_multiple-64_seed-1"],
        ),
        ([["optimizer=muon", "sweep.arm=third"]], ["sweep.arm", "optimizer"], ["third_optimizer-muon"]),
        ([["batch.ramp.stages=[[1000,64]]"], ["batch.ramp.stages=[[1000,128]]"]], ["batch.ramp.stages"], ["stages-1000-64", "stages-1000-128"]),
        ([["optimizer.lr=1e-3"], ["optimizer.lr=1e+3"]], ["optimizer.lr"], ["lr-1e-3", "lr-1e+3"]),
        ([["data.seed=1", "seed=2"]], ["data.seed", "seed"], ["data.seed-1_seed-2"]),
        ([["model.tie_head=True"]], ["model.tie_head"], ["tie_head-true"]),
        ([["seed=1"]], [], ["tiny"]),
    ],
)  # fmt: skip
def test_directories_are_named_after_what_is_swept(jobs, keys, names):
    assert job_names(jobs, keys, "tiny") == names


class Command:
    """What a sweeper knows of its command."""

    def __init__(self, *task, params=None):
        self.hydra = OmegaConf.create({"overrides": {"task": list(task)}, "sweeper": {"params": params}})


@pytest.mark.parametrize(
    "task, params, keys",
    [
        (["seed=1"], None, ["seed"]),
        (["seed=1", "model=tiny", "optimizer.lr=1e-3"], None, ["model", "optimizer.lr", "seed"]),
        (["seed=1", "cluster=ddp", "cluster.nproc=2", "data.cache_dir=x", "tags=[a]"], None, ["seed"]),
        (["seed=1,2", "model=tiny"], None, ["seed"]),
        (["experiment=ablation_toy", "seed=1"], {"seed": "1,2", "model.vocab_multiple": "1"}, ["model.vocab_multiple", "seed"]),
        (["cluster=ddp"], None, []),
    ],
)  # fmt: skip
def test_jobs_are_named_by_what_is_swept_or_else_by_what_is_given(task, params, keys):
    job = [override.replace(",2", "") for override in task] + [f"{key}=1" for key in params or {} if key != "seed"]
    assert swept_keys(Command(*task, params=params), [job]) == keys


def test_a_job_keeps_the_name_that_an_earlier_command_gave_it():
    """One seed of one model, then two seeds of it, then two models."""
    index = {"jobs": {"model-tiny_seed-1": {"overrides": ["seed=1", "model=tiny"]}, "old": {}}}
    seeds = [["model=tiny", "seed=1"], ["model=tiny", "seed=2"]]
    assert known_names(["seed-1", "seed-2"], seeds, index) == ["model-tiny_seed-1", "seed-2"]
    index["jobs"]["seed-1"] = {"overrides": ["seed=1", "model=char_cpu"]}
    assert known_names(["seed-1", "seed-2"], seeds, index) == ["seed-1", "seed-2"]  # and is then refused
    assert known_names(["tiny"], [[]], index) == ["tiny"]


def test_names_differ_where_values_do():
    a, b = job_names([["sample.prompt='a b'"], ["sample.prompt='a:b'"]], ["sample.prompt"], "tiny")
    assert a != b and not {"=", ",", " ", "'"} & set(a + b)
    long = job_names([["data.files=[" + "x" * 300 + "]"]], ["data.files"], "tiny")[0]
    assert len(long) < 120


@pytest.mark.parametrize(
    "value, factor, expected",
    [(100, 0.29, 29), (0.002, 0.5, 0.001), (6e-4, 4, 2.4e-3), (64, 0.25, 16), (64, 2, 128), (None, 2, None)],
)
def test_a_key_can_be_a_multiple_of_another(value, factor, expected):
    assert _scaled(value, factor) == expected and type(_scaled(value, factor)) is type(expected)


@pytest.mark.parametrize("start, full, over", [(64, 1024, 5242), (256, 1024, 5000), (32, 512, 1)])
def test_a_ramp_ends_on_whole_batches(start, full, over):
    ramp = linear_stages(start, full, over, start)
    whole = whole_batches(ramp)
    assert whole[-1] == (whole[-1][0], full) and whole[-1][0] % full == 0
    assert 0 <= whole[-1][0] - over < full + full
    assert [size for _, size in whole] == sorted({size for _, size in whole})
    for tokens in (64 * full, 99 * full):
        assert run_length(whole, None, tokens)[1] == tokens


def test_slots_have_devices_of_their_own():
    assert share_out(1, None, None, ["0", "1"], 2) == [Slot()]
    gpus = ["4", "5", "6", "7"]
    two = share_out(2, None, 1, gpus, 2) if len(_cpu_cores()) > 1 else None
    if two:
        assert [slot.gpus for slot in two] == [("4", "5"), ("6", "7")]
        assert not set(two[0].cores) & set(two[1].cores)
    assert len(share_out(None, 2, None, gpus[:2], 1)) == 1
    with pytest.raises(InputError, match=r"slots=3 with 2 GPUs per job needs 6 GPUs, and 4 are there\n.*slots up to 2"):
        share_out(3, None, None, gpus, 2)
    with pytest.raises(InputError, match=f"needs 1000 cores, and {len(_cpu_cores())} are there"):
        share_out(1000, None, None, [], 1)


@pytest.fixture
def job(tmp_path):
    def build(*overrides: str, on_change: str = "refuse") -> Job:
        config = compose(["device=cpu", f"sweep.on_change={on_change}", *overrides])
        return Job("a", list(overrides), None, config, tmp_path / "a")

    (tmp_path / "a").mkdir()
    return build


def test_what_is_in_a_directory_says_how_a_job_stands(job, tmp_path):
    determine_state(fresh := job())
    assert (fresh.state, fresh.config.resume) == ("waiting", None)
    save(fresh.config, tmp_path / "a" / "config.yaml")
    (tmp_path / "a" / ".result.json").write_text('{"status": "do')  # killed while writing it
    determine_state(begun := job("cluster.threads=3"))
    assert (begun.state, begun.config.resume) == ("waiting", str(tmp_path / "a"))
    write_result(tmp_path / "a", {"status": "failed"})
    determine_state(failed := job())
    assert (failed.state, failed.config.resume) == ("waiting", str(tmp_path / "a"))
    write_result(tmp_path / "a", {"status": "done", "val_loss": 1.5})
    determine_state(done := job())
    assert (done.state, done.result["val_loss"]) == ("kept", 1.5)


def test_a_changed_config_is_refused_by_key(job, tmp_path):
    save(job("trainer.max_tokens=4096").config, tmp_path / "a" / "config.yaml")
    with pytest.raises(InputError, match=r"another config: optimizer.lr 0.002 -> 0.1, trainer.max_tokens 4096 -> 8192"):
        determine_state(job("optimizer.lr=0.1", "trainer.max_tokens=8192"))
    determine_state(again := job("optimizer.lr=0.1", on_change="rerun"))
    assert (again.state, again.note, again.config.resume) == ("waiting", "replaced", None)


def test_a_job_that_is_done_is_kept_for_the_same_data_alone(job, tmp_path):
    texts = {name: tmp_path / name for name in ("a.txt", "moved.txt", "b.txt")}
    for name, path in texts.items():
        path.write_text(("other" if name == "b.txt" else "the same") * 500)

    def reading(name):
        return job("data=text", f"data.files={texts[name]}", f"data.cache_dir={tmp_path / 'cache'}")

    config = reading("a.txt").config
    save(config, tmp_path / "a" / "config.yaml")
    fingerprint = data_fingerprint(*prepare(config.data))
    write_result(tmp_path / "a", {"status": "done", "val_loss": 1.5, "data_fingerprint": fingerprint})
    determine_state(moved := reading("moved.txt"))
    assert moved.state == "kept"
    with pytest.raises(InputError, match=r"another config: data.files \['.*a.txt'\] -> \['.*b.txt'\]"):
        determine_state(reading("b.txt"))


def test_foreign_directories_are_refused(job, tmp_path):
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match=r"without config.yaml"):
        determine_state(job())
    _check_sweep_dir(tmp_path / "none")
    with pytest.raises(InputError, match="holds no sweep"):
        _check_sweep_dir(tmp_path / "a")
    (tmp_path / "sweep.json").write_text('{"layout": 99}')
    with pytest.raises(InputError, match="layout 99, and this version of gptlab reads layout 1"):
        _check_sweep_dir(tmp_path)
    (tmp_path / "sweep.json").write_text('{"lay')
    with pytest.raises(InputError, match="none of ours"):
        _check_sweep_dir(tmp_path)
    write_json(tmp_path / "sweep.json", {"layout": 1, "jobs": {}})
    _check_sweep_dir(tmp_path)


def test_a_table_shows_the_jobs(job, tmp_path):
    going, done, waiting = job(), job(), job()
    going.state, done.state = "running", "done"
    done.result, done.seconds = {"val_loss": 1.25, "best_val_loss": 1.2, "step": 8, "tokens": 8192}, 20.0
    rows = [{"step": 384, "tokens": 393216, "train/loss": 2.5, "perf/tokens_per_sec": 39321.6}]
    (tmp_path / "a" / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n" + '{"step": 3')
    assert _last_row(tmp_path / "a") == rows[0]  # half a row is none
    board = Board("lr", [going, done, waiting], [Slot()], tmp_path)
    with board.console.capture() as shown:
        board.console.print(board.progress())
        board.conclude(None)
        board.announce_comparison()
        board.console.print(board.progress())
    text = shown.get()
    for words in (
        "384/1,536      2.5000  30.0 s",
        "val 1.2500",
        "1 running, 1 done, 1 waiting; about 30.0 s left",
        "8,192",
        "1 running, 1 done, 1 waiting; comparing the runs …",
    ):
        assert words in text, text


@pytest.mark.parametrize(
    ("state", "signaled", "expected"),
    [
        ("done", False, ["table", "comparing", "compared", "no table", "concluded"]),
        ("done", True, ["table", "no table", "concluded"]),
        ("interrupted", True, ["table", "no table"]),
    ],
)
def test_the_table_stays_until_the_runs_are_compared(job, tmp_path, monkeypatch, state, signaled, expected):
    """An interrupted sweep compares nothing, and lists its jobs only where one has a result."""
    said = []

    class Board:
        def __init__(self, *arguments):
            pass

        def __enter__(self):
            said.append("table")
            return self

        def __exit__(self, *error):
            said.append("no table")

        def announce_comparison(self):
            said.append("comparing")

        def conclude(self, comparison):
            said.append("concluded")

    class Scheduler:
        def __init__(self, *arguments):
            pass

        def run(self, interrupt):
            interrupt.stop.value = int(signaled)

    monkeypatch.setattr("gpt.sweep.sweep.Board", Board)
    monkeypatch.setattr("gpt.sweep.sweep.Scheduler", Scheduler)
    monkeypatch.setattr("gpt.sweep.sweep._compare", lambda *arguments: said.append("compared"))
    ended = job()
    ended.state = State(state)
    sweep = SimpleNamespace(title="lr", jobs=[ended], slots=[], dir=tmp_path, start=None)
    sweep.config = SimpleNamespace(sweep=SimpleNamespace(on_failure="continue"), tracker=SimpleNamespace(name="local"))
    sweep._write_index = sweep._raise_early_end = lambda *arguments: None
    Sweep.run(sweep)
    assert said == expected


@pytest.mark.parametrize("argument", ["-m", "--multirun", "hydra.mode=MULTIRUN", "sweeps=lr"])
def test_torchrun_starts_no_sweep(argument, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(InputError, match="a sweep is many runs"):
        as_rank(["seed=1", argument])


@pytest.mark.parametrize("name", options("sweeps"))
def test_every_sweep_says_what_it_asks(name):
    lines = (ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines()
    assert lines[1].startswith("# ") and lines[1].endswith("?")
    assert any(line.startswith("# Expected  ") for line in lines) and any(
        line.startswith("# Source    ") for line in lines
    )


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["ablation_toy", "gpt2_124m"])
def test_sweeps_are_planned_job_by_job(experiment, tmp_path):
    done = call("sweeps=batch_ramp", f"experiment={experiment}", "plan=true", "seed=1,2", "cluster.threads=1", f"data.cache_dir={tmp_path}/none", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert {name.rpartition("_")[0] for name in rows if "_seed-" in name} == {"constant", "gpt3", "steps", "third"}
    assert len({row[3] for name, row in rows.items() if "_seed-" in name}) == 1  # equal tokens
    assert rows["8"][1] == "jobs"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["init", "weight_tying"])
def test_a_baseline_of_true_and_false_is_an_arm(name, tmp_path):
    done = call(f"sweeps={name}", "plan=true", f"data.cache_dir={tmp_path}/none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


WRONG = [
    (["--multirun", "model.vocab_multiple=1,none"], "job 2 of 2 (model.vocab_multiple=none)", "a whole number"),
    (["--multirun", "model.n_embd=32,33,34"], "job 2 of 3 (model.n_embd=33): model.n_embd=33 is not divisible", "32 or 34"),
    (["--multirun", "optimizer=adamw,moun"], "job 2 of 2 (optimizer=moun): optimizer=moun: no such option", "did you mean muon?"),
    (["sweeps=lr", "device=cuda"], "job 1 of 15 (lr-0.0005_seed-1): device=cuda is not on this machine", "allowed here"),
    (["sweeps=vocab_pading"], "sweeps=vocab_pading: no such option", "did you mean vocab_padding?"),
    (["sweeps=speed_ladder", "sweep.arm=tf23"], "sweep.arm=tf23 is not known", "did you mean tf32?"),
    (["sweeps=lr", "sweep.on_failure=halt"], "job 1 of 15", "continue, stop"),
    (["--multirun", "seed=1,2", "hydra.launcher.slots=99"], "hydra.launcher.slots=99", "allowed: hydra.launcher.slots up to"),
    (["--multirun", "seed=1,2", "cluster=multinode", "cluster.nproc=1"], "cluster=multinode is started by hand", "cluster=slurm"),
    (["--multirun", "seed=1,2", "hydra.launcher.slots=0"], "hydra.launcher.slots=0 makes no sense", "at least 1, or null"),
    (["--multirun", "seed=1,2", "hydra.launcher.slot=2"], "unknown key hydra.launcher.slot", "did you mean slots?"),
    (["--multirun", "model.dropout=0.0,0.1", "sweep.baseline='dropout=0'"], "sweep.baseline=dropout=0 is none of the arms", "arms: dropout=0.0, dropout=0.1"),
    (["--multirun", "seed=1,2,1"], "the same job is there twice", "give every value once"),
    (["--multirun", "seed=1,2", "hydra.sweep.dir=."], "holds no sweep", "hydra.sweep.dir=DIR"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, problem, cure", WRONG)
def test_a_wrong_sweep_is_refused_before_its_first_job(small, tmp_path, arguments, problem, cure):
    (tmp_path / "mine.txt").write_text("")
    refused = call(*small, *arguments, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert refused.stderr.startswith("error: ") and problem in refused.stderr and cure in refused.stderr
    assert "Traceback" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
