"""The frame of every command."""

import os
import subprocess
import sys

import pytest

from gpt.cli.command import _config_dirs
from gpt.cli.compose import compose
from gpt.cli.help import help_text
from gpt.cli.plan import _in_words
from gpt.cli.run_checks import CheckedRun
from gpt.files import ROOT
from train import train

DRY_RUN = ["cluster=slurm", "cluster.gpus=0", "cluster.nproc=1", "cluster.dry_run=true"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--help"],
        ["eval.py", "--help"],
        ["-m", "gpt.compare", "--help"],
        ["train.py", "--cfg", "job"],
        ["train.py", *DRY_RUN],
        ["-m", "gpt.runs", "tests/fixtures", "format=json"],
    ],
)
def test_output_that_nobody_reads_ends_quietly(command):
    """As behind ``| head``, which closes its end of the pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.parametrize(
    "hours, words",
    [
        (0.9 / 3600, "< 1 second"),
        (2 / 3600, "2.0 seconds"),
        (2 / 60, "2.0 minutes"),
        (40, "40.0 hours"),
        (24 * 700, "700.0 days"),
        (46 * 8766, "46.0 years"),
    ],
)
def test_durations_are_told_in_a_unit_that_reads_well(hours, words):
    assert _in_words(hours) == words


def test_help_lists_options_of_ones_own(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# A model of my own\nn_layer: 2\n")
    for argument in (f"--config-dir={tmp_path}", f"-cd={tmp_path}"):
        assert "model=mine                       A model of my own" in help_text(_config_dirs([argument]))
    assert "model=mine" in help_text(_config_dirs(["--config-dir", str(tmp_path)]))
    assert "model=mine" not in help_text([])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
    ],
)
def test_threads_of_every_command_sleep_while_they_wait_unless_the_user_says_otherwise(given, expected):
    """The variable is there before torch, and is inherited by ranks and by the jobs of a sweep."""
    code = """
import sys
from gpt.cli import command

def say():
    import os
    print(os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)

sys.exit(command.script(say, ""))
"""
    waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in waiting} | given
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.stdout == f"{expected} False\n", said.stderr


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_the_ranks_of_torchrun_the_first_prints_the_plan(rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("gpt.cli.plan.plan", lambda *arguments: print("a plan"))
    train(CheckedRun(compose(["plan=true"])))
    assert capsys.readouterr().out == ("a plan\n" if rank == "0" else "")


def test_nothing_is_searched_for_garbage_when_a_command_has_ended():
    """The interpreter's last collection took a second in a process with torch."""
    code = """
import atexit, gc, sys
from gpt.cli import command

atexit.register(lambda: print(len(gc.get_objects())))
sys.exit(command.script(lambda: None, ""))
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert int(said.stdout) < 100, said.stderr
