"""The list of runs and sweeps below a directory."""

import json
import os
import shutil

import pytest
from conftest import ROOT

from gpt.cli import command
from gpt.cli.resume import with_resume
from gpt.config.layouts import ADDED
from gpt.errors import InputError
from gpt.files import locked, write_json
from gpt.rundir import write_result
from gpt.runs import __main__ as runs
from gpt.runs.listing import newest_unfinished

CONFIG = (ROOT / "tests" / "fixtures" / "configs" / "tiny" / "config.yaml").read_text()


def make_run(path, seed, when, loss=None, status="done"):
    path.mkdir(parents=True)
    config = CONFIG.replace("\nseed: 1337", f"\nseed: {seed}").replace("\ntags: []", f"\ntags: [t{seed}]")
    (path / "config.yaml").write_text(config)
    code = {"commit": "0123456789abcdef", "changed": True}
    write_json(path / "about.json", {"layout": 1, "parameters": 445_952, "starts": [{"step": 0, "git": code}]})
    if status:
        write_result(path, {"status": status, "step": 1, "tokens": 1_000_000 * seed, "val_loss": loss})
    for file in path.iterdir():
        os.utime(file, (when, when))


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Two single runs, a sweep with one of two jobs done, and a damaged run."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs/2026-11-20/10-00-00-tiny", 1, 1_000_000, 2.5)
    make_run(tmp_path / "outputs/2026-11-21/10-00-00-tiny", 2, 2_000_000, None, "failed")
    make_run(tmp_path / "outputs/sweeps/seeds/seed-3", 3, 1_500_000, 1.5)
    make_run(tmp_path / "outputs/sweeps/seeds/seed-4", 4, 3_000_000, None, None)
    write_json(tmp_path / "outputs/sweeps/seeds/sweep.json", {"layout": 1, "jobs": {"seed-3": {"overrides": []}, "seed-4": {"overrides": []}}})  # fmt: skip
    (tmp_path / "outputs/2026-11-22/broken/.hydra").mkdir(parents=True)
    (tmp_path / "outputs/2026-11-22/broken/config.yaml").write_text("model: [")
    return tmp_path / "outputs"


@pytest.fixture
def shown(outputs, monkeypatch, capsys):
    """A function from arguments to the exit code and what is printed, or refused."""

    def show(*arguments):
        monkeypatch.setattr("sys.argv", ["gpt.runs", *arguments])
        code = command.script(runs.main, runs.__doc__)
        printed = capsys.readouterr()
        return code, printed.out or printed.err

    return show


def seeds(text):
    """The runs of a list in JSON, by their seeds, which their tokens tell; 4 has none."""
    return [(run["tokens"] or 4_000_000) // 1_000_000 for run in json.loads(text)["runs"]]


def test_all_runs_and_sweeps_are_listed(shown):
    code, text = shown()
    assert code == 0
    lines = [line.split() for line in text.splitlines() if line]
    assert lines[:2] == [["4", "runs"], ["run", "state", "model", "data", "size", "tokens", "loss", "when", "commit"]]
    assert lines[2][:7] == [
        "outputs/2026-11-20/10-00-00-tiny",
        "done",
        "tiny",
        "stdlib",
        "445,952",
        "1,000,000",
        "2.5000",
    ]
    assert lines[2][-1] == "01234567+"
    assert lines[5][:7] == ["outputs/sweeps/seeds/seed-4", "unfinished", "tiny", "stdlib", "445,952", "–", "–"]
    assert lines[8][:5] == ["outputs/sweeps/seeds", "1", "of", "2", "1.5000"]
    assert text.splitlines()[-1].startswith("skipped  outputs/2026-11-22/broken/config.yaml is damaged")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], [1, 3, 2, 4]),
        (["sort=loss"], [3, 1, 2, 4]),
        (["sort=-tokens"], [3, 2, 1, 4]),
        (["seed=1,4"], [1, 4]),
        (["name='tiny','other'", "seed=1"], [1]),
        (["tags=t3"], [3]),
        (["state=failed"], [2]),
        (["model=tiny", "seed=3"], [3]),
        (["model.name=char_cpu"], []),
        (["trainer.max_tokens=1.572864M", "optimizer.lr=2e-3", "schedule.decay_until=null", "sort=-when"], [4, 2, 3, 1]),
        (["outputs/sweeps", "sort=run"], [3, 4]),
    ],
)  # fmt: skip
def test_runs_are_sorted_and_filtered(shown, arguments, expected):
    code, text = shown("format=json", *arguments)
    assert (code, seeds(text)) == (0, expected)
    document = json.loads(text)
    if not arguments:
        assert document["sweeps"][0] | {"when": None} == {"sweep": "outputs/sweeps/seeds", "done": 1, "jobs": 2, "loss": 1.5, "when": None}  # fmt: skip
        assert "broken/config.yaml is damaged" in document["skipped"][0]


def test_a_list_of_none_says_what_there_is(shown):
    assert "no run has model.name=gpt2; there are tiny" in shown("model=gpt2")[1]
    assert "no run has state=running; there are done, failed, unfinished" in shown("state=running")[1]


def test_losses_on_different_texts_are_not_ranked_in_silence(shown, outputs):
    assert "rank nothing" not in shown("sort=loss")[1]
    other = outputs / "sweeps/seeds/seed-3/config.yaml"
    other.write_text(other.read_text().replace("\n  files: []", "\n  files: [texts/book.txt, more.txt]"))
    code, text = shown("sort=loss")
    assert code == 0 and "book.txt …" in text and "rank nothing" in text
    assert "rank nothing" not in shown("sort=when")[1]


def test_a_config_alone_is_no_run(shown, outputs):
    (outputs / "conf").mkdir()
    (outputs / "conf" / "config.yaml").write_text(CONFIG)
    assert seeds(shown("format=json")[1]) == [1, 3, 2, 4]


def test_a_run_that_is_locked_is_running(shown, outputs):
    with locked(outputs / "sweeps/seeds/seed-4"):
        assert "running" in shown("seed=4")[1]


@pytest.mark.parametrize(
    "argument, problem, cure",
    [
        ("lr=3", "unknown key lr", "did you mean optimizer.lr?"),
        ("status=done", "unknown key status", "did you mean state?"),
        ("modl=tiny", "unknown key modl", "did you mean model?"),
        ("experiment=addition", "experiment is no key of a run", "name=…"),
        ("state=runing", "state=runing is not known", "did you mean running?"),
        ("seed=range(1,4)", "seed=range(1,4) is no filter", "KEY=A,B"),
        ("~model=tiny", "~model=tiny is no filter", "KEY=VALUE"),
        ("sort=los", "sort=los is not known", "did you mean loss?"),
        ("format=xml", "format=xml is not known", "text, json"),
        ("nowhere", "nowhere: no such directory", "usage: python -m gpt.runs"),
        ("--sort", "--sort: no such argument", "did you mean sort?"),
    ],
)
def test_wrong_arguments_are_refused(shown, argument, problem, cure):
    code, text = shown(argument)
    assert code == 2 and text.startswith(f"error: {problem}") and cure in text


def test_the_last_run_is_the_newest_that_can_go_on(outputs):
    """No job of a sweep, no run in use, and none that is done, unless it is made longer."""
    shutil.rmtree(outputs / "2026-11-22")
    make_run(outputs / "sweeps/seeds/replaced/seed-4-1", 4, 4_000_000, None, "interrupted")
    resumed = newest_unfinished(outputs, or_done=False)
    assert resumed == outputs / "2026-11-21/10-00-00-tiny"
    with locked(resumed):
        assert newest_unfinished(outputs, or_done=False) is None
        assert newest_unfinished(outputs, or_done=True) == outputs / "2026-11-20/10-00-00-tiny"

    # A loss that was not finite before anything was saved comes again; from a checkpoint one may change something.
    write_result(resumed, {"status": "failed", "cause": "not finite"})
    assert newest_unfinished(outputs, or_done=False) is None
    (resumed / "checkpoints" / "step_00000001").mkdir(parents=True)
    assert newest_unfinished(outputs, or_done=False) == resumed


def test_resume_last_names_that_run(outputs, capsys):
    shutil.rmtree(outputs / "2026-11-22")
    run = outputs / "2026-11-21/10-00-00-tiny"
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text("- seed=2\n")
    arguments = with_resume(["resume=last", "trainer.log_every=1"])
    older = arguments[: arguments.index("seed=2")]
    assert {override.partition("=")[0] for override in older} <= set(ADDED)  # keys that are newer than some runs
    assert arguments[len(older) :] == [
        "seed=2",
        "trainer.log_every=1",
        f"resume='{run}'",
        f"hydra.run.dir='{run}'",
        "hydra.mode=RUN",
    ]
    assert capsys.readouterr().out == "resume=last is outputs/2026-11-21/10-00-00-tiny\n"

    # Ranks cannot look for themselves, and a run that is done needs another length.
    with pytest.raises(InputError, match="name the run: resume=DIR"):
        with_resume(["resume=last", "cluster.node_rank=1"])
    shutil.rmtree(run)
    with pytest.raises(InputError, match="no run in outputs/ can go on"):
        with_resume(["resume=last"])
