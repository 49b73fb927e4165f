"""The frame of every command."""

import os
import subprocess
import sys

import pytest

from gpt.cli.compose import compose
from gpt.cli.run_checks import CheckedRun
from gpt.files import ROOT
from train import train


@pytest.mark.parametrize("command", [["train.py"], ["eval.py"], ["-m", "gpt.compare"]])
def test_help_that_nobody_reads_ends_quietly(command):
    """As behind ``| head``, which closes its end of the pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_of_every_command_sleep_while_they_wait_unless_the_user_says_otherwise(given, expected):
    """The variable is there before torch, and is inherited by ranks and by the jobs of a sweep."""
    code = """
import sys
from gpt.cli import command

def say():
    import os
    print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)

sys.exit(command.script(say, ""))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
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
