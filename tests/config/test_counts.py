"""Numbers of tokens and steps in every form that people write, wherever they are given."""

import pytest

from gpt.cli.compose import compose
from gpt.cli.compose_evaluation import compose_evaluation
from gpt.config.counts import as_count
from gpt.config.load import read, save
from gpt.errors import InputError
from gpt.files import read_yaml
from gpt.sweep.compose import _plain


@pytest.mark.parametrize(
    "given, meant",
    [
        (1e6, 1_000_000),
        (10e9, 10_000_000_000),
        ("1e6", 1_000_000),
        ("300k", 300_000),
        ("1_500K", 1_500_000),
        ("5M", 5_000_000),
        ("1.5M", 1_500_000),
        ("1.1M", 1_100_000),
        ("10B", 10_000_000_000),
        ("15T", 15_000_000_000_000),
        ([[1e3, "16k"]], [[1_000, 16_000]]),
    ],
)
def test_every_form_of_a_count(given, meant):
    assert as_count(given) == meant


@pytest.mark.parametrize(
    "wrong",
    [
        1.5,
        "1.5",
        "0.0001k",
        "5 M",
        "5MB",
        "M",
        "1e-3",
        "1e999999999",
        "5_M",
        "1__0",
        "_1",
        "five",
        float("inf"),
        True,
        None,
        "",
    ],
)
def test_what_is_no_whole_number_stays_as_it_is(wrong):
    assert as_count(wrong) is wrong


def test_keys_that_count_take_them_and_the_saved_config_holds_plain_numbers(tmp_path):
    given = ["model.seq_len=1e2", "batch=ramp_steps", "batch.global_tokens=2k", "batch.ramp.stages=[[1e4,0.2k],[20k,1e3]]",
             "trainer.max_tokens=5M", "trainer.max_steps=1e9", "schedule.warmup_tokens='${scaled:${trainer.max_tokens},0.5}'"]  # fmt: skip
    config = compose(given)
    assert (config.model.seq_len, config.batch.global_tokens) == (100, 2_000)
    assert config.batch.ramp.stages == [[10_000, 200], [20_000, 1_000]]
    assert (config.trainer.max_tokens, config.schedule.warmup_tokens) == (5_000_000, 2_500_000)
    save(config, tmp_path / "config.yaml")
    saved = read_yaml(tmp_path / "config.yaml", dict)
    assert type(saved["trainer"]["max_steps"]) is int and saved["batch"]["ramp"]["stages"][0] == [10_000, 200]
    assert read(tmp_path / "config.yaml") == config
    assert compose_evaluation(tmp_path, ["trainer.eval_tokens=1e3"]).trainer.eval_tokens == 1_000


def test_an_option_of_ones_own_takes_them(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ntrainer:\n  max_tokens: 3M\n  log_every: 1e1\n"
    )
    trainer = compose(["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"]).trainer
    assert (trainer.max_tokens, trainer.log_every) == (3_000_000, 10)


@pytest.mark.parametrize("wrong", ["1.5", "5MB", "fast", "true"])
def test_the_refusal_names_the_forms(wrong):
    with pytest.raises(InputError) as refused:
        compose([f"trainer.max_tokens={wrong}"])
    assert f"trainer.max_tokens={wrong}" in refused.value.problem
    assert refused.value.cure.startswith("trainer.max_tokens takes a whole number of tokens, such as 1000, 1_000, 1e6")


def test_other_keys_do_not_take_them():
    with pytest.raises(InputError, match=r"model.n_layer takes a whole number, such as 1000 or 1_000$"):
        compose(["model.n_layer=1k"])


def test_jobs_of_a_sweep_are_named_by_plain_numbers():
    given = ["trainer.max_tokens=1000000.0", "model.seq_len=1k", "optimizer.lr=1.0", "trainer.max_steps=null"]
    plain = ["trainer.max_tokens=1000000", "model.seq_len=1000", "optimizer.lr=1.0", "trainer.max_steps=null"]
    assert list(map(_plain, given)) == plain
