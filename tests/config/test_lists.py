"""Keys that take a list of text take a single text too, as a list of one."""

import pytest
from omegaconf import OmegaConf

from gpt.cli.compose import compose
from gpt.config.load import load
from gpt.errors import InputError


def test_a_text_is_a_list_of_one():
    config = compose(["data=text", "data.files='books/*.txt'", "tags=first", "cluster=slurm", "cluster.gpus=1",
                      "cluster.setup='module load cuda'"])  # fmt: skip
    assert config.data.files == ["books/*.txt"]
    assert config.tags == ["first"]
    assert config.cluster.setup == ["module load cuda"]
    assert compose(["data=text", "data.files=${tags}", "tags=[a,b]"]).data.files == ["a", "b"]


@pytest.mark.parametrize("value", ["3", "null", "{a: 1}"])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(InputError, match=r"data\.files takes a list"):
        compose(["data=text", f"data.files={value}"])


def test_a_saved_config_takes_a_text_too():
    saved = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(compose(["data=text", "data.files=[b]"]))))
    OmegaConf.update(saved, "data.files", "a.txt", merge=False)
    assert load(saved).data.files == ["a.txt"]
