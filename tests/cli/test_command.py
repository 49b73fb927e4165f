"""The frame of every command."""

import os
import subprocess
import sys

import pytest

from gpt.cli.command import _config_dirs
from gpt.cli.help import help_text
from gpt.cli.plan import _in_words
from gpt.files import ROOT

DRY_RUN = ["cluster=slurm", "cluster.gpus=0", "cluster.nproc=1", "cluster.dry_run=true"]


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
