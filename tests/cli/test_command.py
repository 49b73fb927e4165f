"""The frame of every command."""

import os
import subprocess
import sys

import pytest

from gpt.files import ROOT


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
