"""GPT-3's arithmetic, and a look into a model."""

import re
from contextlib import nullcontext

import pytest
import torch

from gpt.cli.compose import compose
from gpt.device import Compute
from gpt.errors import InputError
from gpt.evaluation.arithmetic import KEY, KINDS, Arithmetic, problems
from gpt.evaluation.inspect import Inspect
from gpt.evaluation.task import Subject
from gpt.model import GPT, init_weights, parameter_count
from gpt.tokens.tokenizer import get_tokenizer

CPU = Compute(torch.device("cpu"), nullcontext())
MODEL = ["model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.seq_len=64"]


def built(*overrides):
    model = GPT(compose([*MODEL, *overrides]).model, 257)
    init_weights(model, 1)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_right_and_numbers_have_their_digits(name):
    signs = {"plus": "+", "minus": "-", "times": "*"}
    made = problems(name, 200)
    assert len(set(made)) > 100
    for question, answer in made:
        words = re.fullmatch(r"Q: What is (.*)\?\nA:", question)[1]
        for word, sign in signs.items():
            words = words.replace(word, sign)
        assert answer == f" {eval(words)}"
        assert all(int(number) < 10 ** KINDS[name].digits for number in re.findall(r"\d+", words))
    assert made[:10] == problems(name, 10)


def test_composed_problems_have_all_pairs_of_operations():
    pairs = {"".join(re.findall(r"[-+*]", question)) for question, _ in problems("1DC", 200)}
    assert pairs == {outer + inner for outer in "+-*" for inner in "+-*"}


def test_the_share_of_exact_answers_is_counted(monkeypatch):
    task = Arithmetic.build(
        Subject(compose([*MODEL, "arithmetic.problems=4", "arithmetic.shots=2"]), get_tokenizer("bytes"), None)
    )
    contexts = bytes(task.questions["2D+"][0].context).decode()
    assert contexts.count("Q:") == 3 and contexts.endswith("A:")
    solved = dict(re.findall(r"(Q: .*\?\nA:)( .*)\n\n", contexts))
    assert solved == dict(problems("2D+", 2))

    # A model whose greedy answer is right wherever it is even.
    from gpt.evaluation import arithmetic
    from gpt.evaluation.likelihood import Likelihood

    def even(questions, *_):
        return [[Likelihood(0.0, question.continuations[0][-1] % 2 == 0)] for question in questions]

    monkeypatch.setattr(arithmetic, "log_likelihoods", even)
    found = task.measure(built(), 0, CPU)
    for name in KINDS:
        answers = [answer for _, answer in problems(name, 6)[2:]]
        assert found.details[name] == sum(int(answer) % 2 == 0 for answer in answers) / 4
    assert found.metrics == {KEY: sum(found.details.values()) / len(KINDS)}


def test_a_model_is_shown_with_all_its_parameters_and_the_neighbors_of_tokens():
    model = built()
    with torch.no_grad():
        model.wte.weight[ord("A")] = 2 * model.wte.weight[ord("(")]
    task = Inspect.build(Subject(compose([*MODEL, "inspect.tokens=['(']"]), get_tokenizer("bytes"), None))
    measured = task.measure(model, 0, CPU)
    counts = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) +[\d.]+%", measured.text)]
    assert sum(counts) == parameter_count(model)
    assert "h.*.attn.c_attn.weight   (48, 16) × 2" in measured.text
    assert re.search(r"'\('  'A' 1\.00", measured.text)
    assert measured.pictures["wpe"].startswith(b"\x89PNG")
    none = Inspect.build(Subject(compose(MODEL), get_tokenizer("chars", "ab7"), None))
    assert none.tokens == [2]  # of the common words, the one in the alphabet
    assert Inspect(get_tokenizer("bytes"), []).measure(built("model.position=none"), 0, CPU).pictures == {}
    with pytest.raises(InputError, match="not in the alphabet"):
        Inspect.build(Subject(compose([*MODEL, "inspect.tokens=[x]"]), get_tokenizer("chars", "ab7"), None))
