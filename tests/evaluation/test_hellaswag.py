"""HellaSwag: its file, its score, and its curve during training."""

import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED

from gpt.cli.compose import compose
from gpt.cli.run_checks import check_run
from gpt.device import Compute
from gpt.errors import InputError
from gpt.evaluation.hellaswag import ACC, ACC_NORM, HellaSwag
from gpt.evaluation.hellaswag_file import Example, read_examples
from gpt.evaluation.likelihood import log_likelihoods
from gpt.evaluation.task import Subject
from gpt.model import GPT, init_weights
from gpt.tokens.tokenizer import get_tokenizer
from gpt.tracker.logs import read_metrics

FILE = SHARED / "data" / "hellaswag_val_1000.jsonl"
CPU = Compute(torch.device("cpu"), nullcontext())
EXAMPLE = {"ind": 24, "ctx": "A cat sits.", "endings": ["It purrs.", "It flies away.", "No."], "label": 1}


def config_for(path, *overrides):
    return compose([f"hellaswag.path={path}", *overrides])


def write(path, *examples):
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return path


def test_the_file_is_read_as_far_as_examples_are_asked_for(tmp_path):
    path = write(tmp_path / "some.jsonl", EXAMPLE, EXAMPLE | {"label": 0}, {})
    read = read_examples(config_for(path, "hellaswag.examples=2"))
    assert read == [Example("A cat sits.", EXAMPLE["endings"], label) for label in (1, 0)]


def test_a_plan_needs_no_examples(tmp_path):
    missing = [f"hellaswag.path={tmp_path}/none.jsonl", "trainer.tasks=[hellaswag]"]
    assert check_run(compose([*missing, "plan=true"]), None).config.trainer.tasks == ["hellaswag"]
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read"):
        check_run(compose(missing), None)


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{", "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
        ("[]", "line 2 is no example"),
        (json.dumps(EXAMPLE | {"label": 3}), "line 2 is no example"),
        (json.dumps(EXAMPLE | {"label": "1"}), "line 2 is no example"),
        (json.dumps(EXAMPLE | {"label": True}), "line 2 is no example"),
        (json.dumps(EXAMPLE | {"endings": ["one"]}), "line 2 is no example"),
        (json.dumps(EXAMPLE | {"endings": ["one", ""]}), "line 2 is no example"),
        (json.dumps(EXAMPLE | {"ctx": ""}), "line 2 is no example"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, problem):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(EXAMPLE) + "\n" + line + "\n")
    with pytest.raises(InputError, match=problem):
        read_examples(config_for(path))


def test_a_file_that_is_no_text_or_empty_or_missing_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, problem in {"empty": "has no examples", "bytes": "cannot be read", "missing": "cannot be read"}.items():
        with pytest.raises(InputError, match=problem):
            read_examples(config_for(tmp_path / name))


def test_the_official_file_is_fetched_or_may_be_put_there(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt.evaluation.hellaswag_file.URL", "http://127.0.0.1:9/hellaswag_val.jsonl")
    config = compose([f"data.cache_dir={tmp_path}"])
    path = tmp_path / "hellaswag" / "hellaswag_val.jsonl"
    with pytest.raises(InputError) as refused:
        read_examples(config)
    assert f"put it at {path}" in refused.value.cure
    path.parent.mkdir()
    write(path, EXAMPLE)
    assert len(read_examples(config)) == 1


@torch.no_grad()
def plain_losses(model, tokenizer, example):
    """Summed and mean losses of the endings, as the lecture's hellaswag.py computes them: one example at a time."""
    context = tokenizer.encode(example["ctx"])
    endings = [tokenizer.encode(" " + ending) for ending in example["endings"]]
    width = len(context) + max(map(len, endings))
    tokens = torch.zeros(len(endings), width, dtype=torch.long)
    mask = torch.zeros(len(endings), width)
    for row, ids in enumerate(endings):
        tokens[row, : len(context) + len(ids)] = torch.tensor(context + ids)
        mask[row, len(context) : len(context) + len(ids)] = 1
    logits = model.logits(model(tokens))[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(endings), -1)
    sums = (losses * mask[:, 1:]).sum(1)
    return sums, sums / mask[:, 1:].sum(1)


def margin(losses):
    """The distance between the lowest and the second lowest."""
    lowest = losses.sort().values
    return (lowest[1] - lowest[0]).item()


@pytest.mark.slow
@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there")
def test_124m_answers_as_one_example_at_a_time(gpt2_vocabulary):
    config = config_for(FILE, "model=gpt2_124m", "data.tokenizer=gpt2", "hellaswag.examples=4")
    tokenizer = get_tokenizer("gpt2")
    model = GPT(config.model, 50_257)
    init_weights(model, 1337)
    model.eval()
    task = HellaSwag.build(Subject(config, tokenizer, None))
    found = log_likelihoods(task.questions, model, CPU, task.batch_tokens)
    right = right_norm = 0
    for line, question, likelihoods in zip(FILE.open(), task.questions, found, strict=False):
        example = json.loads(line)
        sums, means = plain_losses(model, tokenizer, example)
        ours = torch.tensor([-likelihood.log_probability for likelihood in likelihoods])
        ours_norm = ours / torch.tensor([len(ids) for ids in question.continuations])
        assert margin(sums) < 1e-4 or sums.argmin() == ours.argmin()
        assert margin(means) < 1e-4 or means.argmin() == ours_norm.argmin()
        right += int(ours.argmin() == example["label"])
        right_norm += int(ours_norm.argmin() == example["label"])
    assert task.measure(model, 0, CPU).metrics == {ACC_NORM: right_norm / 4, ACC: right / 4}


def test_it_is_measured_as_often_as_asked_beside_the_validation(trainer, tmp_path):
    path = write(tmp_path / "some.jsonl", EXAMPLE, EXAMPLE)
    tasks = ["trainer.tasks=[hellaswag]", "trainer.tasks_every=1024", f"hellaswag.path={path}"]
    run = trainer("trainer.max_steps=6", "trainer.eval_every=512", "sample.tokens=0", *tasks)
    result = run.fit()
    rows = read_metrics(run.run_dir)
    assert [row["step"] for row in rows if "val/loss" in row] == [2, 4, 6]
    measured = [row for row in rows if ACC_NORM in row]
    assert [row["step"] for row in measured] == [4, 6]
    assert result["hellaswag_acc_norm"] == measured[-1][ACC_NORM] in (0.0, 1.0)
