"""Wrong input of sweeps, eval.py, the comparison and the mirrors; and a sample of all as real commands."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, call, command, environment

import eval as evaluation
from gpt.cli import command as cli
from gpt.compare import __main__ as compare
from gpt.mirrors import tensorboard as tensorboard_mirror
from gpt.mirrors import wandb as wandb_mirror
from gpt.mirrors import workspace as wandb_workspace
from train import train

COMMANDS = {
    "train.py": lambda: cli.run(train),
    "eval.py": lambda: cli.script(evaluation.main, evaluation.__doc__),
    "gpt.compare": lambda: cli.script(compare.main, compare.__doc__),
    "gpt.mirrors.tensorboard": lambda: cli.script(tensorboard_mirror.main, tensorboard_mirror.__doc__),
    "gpt.mirrors.wandb": lambda: cli.script(wandb_mirror.main, wandb_mirror.__doc__),
    "gpt.mirrors.workspace": lambda: cli.script(wandb_workspace.main, wandb_workspace.__doc__),
}
SECONDS = 10  # of processor time, in which any of these commands has said what is wrong
MANY = ["--multirun", *(f"+x{i}=1,2" for i in range(40))]

RUNS = [
    (["plan=true", "model.n_layer=100000"], "model.n_layer=100000 is too much", "up to 1,000"),
    (["data=text", "data.files=[text.txt]", "data.cache_dir=../cache", "model.n_embd=100000"], "GB of memory at least", "n_embd"),
    (["-m", "seed=1,2", "data=text", "data.files=[text.txt]", "data.cache_dir=../cache", "hydra.sweep.dir=/dev/null/x"], "the sweep's directory cannot be made", "hydra.sweep.dir=DIR"),
]  # fmt: skip
SWEEPS = [
    (["--multirun"], "--multirun without several values", "seed=1,2; for one run leave --multirun out"),
    (["--multirun", "seed=3"], "--multirun without several values", "seed=1,2; for one run leave --multirun out"),
    (["hydra.mode=MULTIRUN", "seed=3"], "--multirun without several values", "seed=1,2"),
    (["-m", "seed=range(1000000)"], "this sweep has 1,000,000 jobs", "allowed: up to 1,000"),
    (["-m", "seed=range(1000)", "data.seed=range(1000)"], "this sweep has 1,000,000 jobs", "allowed: up to 1,000"),
    (["-m", "optimizer.lr=range(0,1,0.0000001)"], "this sweep has 10,000,001 jobs", "allowed: up to 1,000"),
    (MANY, "this sweep has 1,099,511,627,776 jobs", "allowed: up to 1,000"),
    (["sweeps=speed_ladder", "seed=range(143)"], "this sweep has 1,001 jobs", "allowed: up to 1,000"),
    (["-m", "seed=range(1,0)"], "seed=range(1,0) has no values", "KEY=1,2,3"),
    (["-m", "model=glob(nope*)"], "model=glob(nope*) has no values", "KEY=1,2,3"),
    (["-m", "seed=range(0,inf)"], "seed=range(0,inf) has no end", "range(1,4)"),
    (["-m", "seed=range(0,1,0)"], "seed=range(0,1,0) has no end", "range(1,4)"),
    (["-m", "seed=interval(0,1)"], "seed=interval(0,1) has no values that can be listed", "KEY=0.1,0.2"),
    (["-m", "seed=1,2,"], "cannot read 'seed=1,2,'", "KEY=VALUE"),
    (["-m", "seed=1,2", "sweep.arm=a"], "sweep.arm=a: this sweep has no arms", "leave sweep.arm out"),
    (["-m", "+sweep.arm=a,b"], "+sweep.arm=a,b: this sweep has no arms", "leave sweep.arm out"),
    (["sweeps=seeds", "sweep.arm=a"], "sweep.arm=a: this sweep has no arms", "leave sweep.arm out"),
    (["sweeps=a,b"], "sweeps=a,b names several sweeps", "sweeps=lr"),
    (["-m", "sweeps=glob(*)"], "sweeps=glob(*) names several sweeps", "sweeps=lr"),
    (["sweeps=[seeds,lr]"], "sweeps=[seeds,lr]: a group takes the name of one", "allowed: batch_ramp"),
    (["sweeps=../model/tiny"], "sweeps=../model/tiny is not known", "allowed: batch_ramp"),
    (["-m", "seed=1,2", "hydra.mode=RUN"], "--multirun starts many runs, and hydra.mode=RUN one", "one of them"),
    (["-m", "seed=1,2", "hydra.run.dir=x"], "every job has a directory of its own", "hydra.sweep.dir=DIR"),
    (["-m", "seed=1,2", "hydra.sweep.dir="], "hydra.sweep.dir= names no directory", "leave hydra.sweep.dir out"),
    (["-m", "seed=1,2", "hydra.sweep.dir=short.txt"], "short.txt is there already", "hydra.sweep.dir=DIR"),
    (["-m", "seed=1,2", "hydra.sweep.dir=${nope}"], "Interpolation key 'nope' not found", "${…} holds the name of a key"),
    (["-m", "seed=1,2", "hydra.sweeper.params=3"], "hydra.sweeper.params=3 is no table", "+hydra.sweeper.params.NAME=…"),
    (["-m", "seed=1,2", "hydra.sweeper.arms=[a]"], "hydra.sweeper.arms=[a] is no table", "+hydra.sweeper.arms.NAME=…"),
    (["-m", "seed=1,2", "+hydra.sweeper.arms.x=3"], "hydra.sweeper.arms.x=3 is no arm", "a list of overrides"),
    (["-m", "seed=1,2", "+hydra.sweeper.arms.x=[3]"], "hydra.sweeper.arms.x=[3] is no arm", "a list of overrides"),
    (["-m", "seed=1,2", "+hydra.sweeper.arms.x=[foo]"], "job 1 of 2 (sweep.arm=x seed=1): cannot read 'foo'", "KEY=VALUE"),
    (["-m", "seed=1,2", "hydra.sweeper.ladder=maybe"], "hydra.sweeper.ladder=maybe is not known", "true, false"),
]  # fmt: skip
EVALUATIONS = [
    ([], "no checkpoint is given", "checkpoint=DIR"),
    (["checkpoint="], "no checkpoint is given", "checkpoint=DIR"),
    (["checkpoint=run", "checkpoint=nowhere"], "checkpoint=nowhere: checkpoint is given once", "or checkpoint=DIR"),
    (["+checkpoint=run"], "+checkpoint=run: checkpoint is given once", "or checkpoint=DIR"),
    (["checkpoint=nowhere"], "nowhere: nothing is there", "the output directory of a run"),
    (["checkpoint=short.txt"], "short.txt holds no weights that can be read", "the output directory of a run"),
    (["checkpoint=[run]"], "nothing is there", "the output directory of a run"),
    (["checkpoint=" + "x" * 300], "cannot be a path here: File name too long", "correct the path"),
    (["checkpoint=run", "--tasks"], "cannot read '--tasks'", "KEY=VALUE"),
    (["checkpoint=run", "tasks=[]"], "tasks=[] is not known", "a list of val, exact_match, sample"),
    (["checkpoint=run", "tasks=[hellaswg]"], "tasks=['hellaswg'] is not known", "a list of val, exact_match, sample"),
    (["checkpoint=run", "tasks=[val,val]"], "tasks=['val', 'val'] is not known", "a list of val, exact_match, sample"),
    (["checkpoint=run", "tasks=[[val]]"], "tasks=[['val']] is not known", "a list of val, exact_match, sample"),
    (["checkpoint=run", "tasks=val,sample"], "tasks=val,sample: tasks is given once", "tasks=[val]"),
    (["checkpoint=run", "model.n_layer=3"], "model.n_layer belongs to the run in", "allowed: data"),
    (["checkpoint=run", "+mine=1"], "mine belongs to the run in", "allowed: data"),
    (["checkpoint=run", "hydra.run.dir=x"], "hydra.run.dir belongs to the run in", "allowed: data"),
    (["checkpoint=run", "sample.mine=1"], "unknown key sample.mine", "keys of sample: tokens"),
    (["checkpoint=run", "sample.tokens=1" + "0" * 9], "sample.tokens=1000000000 is too much", "up to 100,000"),
    (["checkpoint=run", "seed=1" + "0" * 30], "does not fit into 64 bits", "allowed: up to"),
    (["checkpoint=run", "seed=" + "[" * 2000 + "]" * 2000], "it is nested too deeply", "a few brackets"),
    (["checkpoint=run", "cluster.threads=100000"], "cluster.threads=100000 is too much", "up to 1,024"),
    (["checkpoint=run", "device=gpu"], "device=gpu is not known", "allowed: auto, cpu"),
    (["checkpoint=run", "data=[text]"], "data=[text]: a group takes the name of one", "allowed: addition"),
]  # fmt: skip
DIRECTORIES = [
    ("gpt.compare", [], "no directory is given", "usage: python -m gpt.compare"),
    ("gpt.compare", ["nowhere"], "nowhere: no such directory", "output directories"),
    ("gpt.compare", ["short.txt"], "short.txt: no such directory", "output directories"),
    ("gpt.compare", ["empty"], "empty is empty", "output directories"),
    ("gpt.compare", [""], "an empty argument names nothing", "usage: python -m gpt.compare"),
    ("gpt.compare", ["x" * 300], "cannot be a path here: File name too long", "correct the path"),
    ("gpt.compare", ["a\0b"], "cannot be a path here", "correct the path"),
    ("gpt.compare", ["run", "./run/"], "./run/ is there twice", "give every directory once"),
    ("gpt.compare", ["run", "--out=x"], "--out=x: no such argument", "did you mean out?"),
    ("gpt.compare", ["run", "basline=x"], "basline=x: no such argument", "did you mean baseline?"),
    ("gpt.compare", ["run", "baseline="], "baseline= names nothing", "usage: python -m gpt.compare"),
    ("gpt.compare", ["run", "baseline=nope"], "baseline=nope is none of the arms", "arms: tiny"),
    ("gpt.compare", ["run", "baseline=a", "baseline=b"], "baseline=a and baseline=b: two values", "give one"),
    ("gpt.compare", ["run", "out=short.txt"], "short.txt", "out=DIR"),
    ("gpt.compare", ["run", "out=/dev/null/x"], "/dev/null/x", "out=DIR"),
    ("gpt.compare", ["run", "out=a\0"], "out: ", "correct the path"),
    ("gpt.mirrors.tensorboard", ["nowhere"], "nowhere: no such directory", "output directories"),
    ("gpt.mirrors.tensorboard", ["run", "to=x"], "to=x: no such argument", "usage: python -m gpt.mirrors.tensorboard"),
    ("gpt.mirrors.tensorboard", ["--beside"], "--beside: no such argument", "usage: python -m gpt.mirrors.tensorboard"),
    ("gpt.mirrors.tensorboard", ["--beside", "nowhere"], "--beside: no such argument", "usage: python -m gpt"),
    ("gpt.mirrors.wandb", [], "no directory is given", "usage: python -m gpt.mirrors.wandb"),
    ("gpt.mirrors.wandb", ["--beside"], "--beside: no such argument", "usage: python -m gpt.mirrors.wandb"),
    ("gpt.mirrors.wandb", ["run", "project=a/b"], "project='a/b' is no name in W&B", "1 to 128 characters"),
    ("gpt.mirrors.wandb", ["run", "artifacts=some"], "artifacts=some is not known", "none, last, best, all"),
    ("gpt.mirrors.workspace", ["run"], "run is one run", "the output directory of a sweep"),
    ("gpt.mirrors.workspace", ["run", "empty"], "a view is of one sweep", "usage: python -m gpt.mirrors.workspace"),
    ("gpt.mirrors.workspace", ["run", "artifacts=all"], "artifacts=all: no such argument", "usage: python -m"),
]  # fmt: skip
CASES = [
    *(("train.py", *case) for case in RUNS),
    *(("train.py", *case) for case in SWEEPS),
    *(("eval.py", *case) for case in EVALUATIONS),
    *DIRECTORIES,
]
REAL = [
    ("train.py", ["--precision=bf16"], "unrecognized arguments", "KEY=VALUE"),
    ("train.py", [os.fsdecode(b"name=\xff")], r"cannot read 'name=\udcff'", "KEY='VALUE'"),
    ("train.py", ["tags=" + "[" * 2000 + "]" * 2000], "it is nested too deeply", "a few brackets"),
    ("train.py", ["++resume=run"], "resume is there already", "leave the plus out"),
    ("train.py", ["plan=true", "hydra.run.dir=run"], "run already holds a run (done)", "take another directory"),
    ("train.py", MANY, "this sweep has 1,099,511,627,776 jobs", "up to 1,000"),
    ("eval.py", ["checkpoint=run", "tasks=[[val]]"], "is not known", "a list of val, exact_match, sample"),
    ("gpt.compare", ["run", "run"], "run is there twice", "give every directory once"),
    ("gpt.mirrors.wandb", ["run", "project=a/b"], "is no name in W&B", "1 to 128 characters"),
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory) -> Path:
    """A run that is done."""
    directory = tmp_path_factory.mktemp("finished")
    done = call(*small, "trainer.max_steps=2", "hydra.run.dir=run", cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / "run"


@pytest.fixture
def workplace(finished, text_file, tmp_path, monkeypatch) -> Path:
    """A user's working directory, with that run in it."""
    place = tmp_path / "place"
    shutil.copytree(finished, place / "run", symlinks=True)
    shutil.copy(text_file, place / "text.txt")
    (place / "short.txt").write_text("some words")
    (place / "empty").mkdir()
    monkeypatch.chdir(place)
    return place


def check_said(code: int, said: str, problem: str, cure: str) -> None:
    """A refusal: the exit code, and a few lines with what is wrong and what helps."""
    assert code == 2, said
    assert "Traceback" not in said
    lines = said.splitlines()
    assert 2 <= len(lines) <= 4, said
    assert max(map(len, lines)) <= cli.LONGEST_LINE + 20
    assert lines[0].startswith("error: ") and problem in lines[0], said
    assert cure in "".join(lines[1:]), said


@pytest.mark.parametrize(
    "script, arguments, problem, cure", CASES, ids=[ascii(f"{c[0]} {' '.join(c[1])}")[1:60] for c in CASES]
)
def test_a_wrong_command_is_refused(script, arguments, problem, cure, workplace, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [script, *arguments])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = sorted(workplace.rglob("*"))
    code = COMMANDS[script]()
    check_said(code, capsys.readouterr().err, problem, cure)
    assert sorted(workplace.rglob("*")) == before


def processor_seconds(script: str, arguments: list[str], cwd: Path) -> tuple[int, str, float]:
    """Exit code, what is said on stderr, and the time that a command takes of the processor."""
    called = (
        command(*arguments, script=script) if script.endswith(".py") else [sys.executable, "-m", script, *arguments]
    )
    settings = environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(called, cwd=cwd, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        said = process.stderr.read().decode()
        timer.cancel()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, said, used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_wrong_commands_of_users_are_refused_at_once(workplace):
    before = sorted(workplace.rglob("*"))
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda case: processor_seconds(case[0], case[1], workplace), REAL))
    for (_, _, problem, cure), (code, said, seconds) in zip(REAL, ended, strict=True):
        check_said(code, said, problem, cure)
        assert seconds < SECONDS, said
    assert sorted(workplace.rglob("*")) == before
