"""The command line of eval.py."""

from pathlib import Path

import pytest

from gpt.cli.compose_evaluation import compose_evaluation
from gpt.cli.evaluation import read_arguments
from gpt.errors import InputError


def test_a_directory_by_itself_is_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=3 [best]").mkdir()  # the name of an arm may look like an override
    assert read_arguments(["run", "tasks=[val]", "seed=3"]) == ("run", ["val"], ["seed=3"])
    assert read_arguments(["seed=3", "lr=3 [best]"]) == ("lr=3 [best]", None, ["seed=3"])
    assert read_arguments(["run", "tasks=sample"])[1] == ["sample"]
    for argv in (["a", "b"], ["a", "checkpoint=b"], ["checkpoint=b", "checkpoint=c"]):
        with pytest.raises(InputError, match=r"one checkpoint|given once"):
            read_arguments(argv)


@pytest.mark.parametrize("override", ["sample.prompt=To be, or not", "data.files=a.txt,b.txt", "seed=1,2"])
def test_several_values_are_refused(override):
    with pytest.raises(InputError, match=f"{override}: several values, and an evaluation takes one\n.*quoted twice"):
        compose_evaluation(Path(), [override])
