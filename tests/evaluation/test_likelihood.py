"""Log-likelihoods in batches with shared contexts, against one text at a time."""

import math
from contextlib import nullcontext

import pytest
import torch

from gpt.cli.compose import compose
from gpt.device import Compute
from gpt.evaluation.likelihood import Question, log_likelihoods
from gpt.model import GPT, init_weights
from gpt.parallelize import compile_blocks
from gpt.signals import Stopped

CPU = Compute(torch.device("cpu"), nullcontext())
SEQ_LEN = 16
VOCAB = 60


@pytest.fixture
def model():
    overrides = ["model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.init_std=0.3", "model.dropout=0.1"]
    model = GPT(compose([*overrides, f"model.seq_len={SEQ_LEN}"]).model, VOCAB)
    init_weights(model, 1)
    return model


def questions():
    """Questions of many lengths; the last have contexts or continuations that do not fit."""
    generator = torch.Generator().manual_seed(1)

    def ids(n):
        return torch.randint(VOCAB, (n,), generator=generator).tolist()

    made = [
        Question(ids(c), [ids(n) for n in ns]) for c, ns in [(3, (2, 5, 1)), (1, (4,)), (8, (1, 9)), (5, (3, 3, 3))]
    ]
    return [
        *made,
        Question(ids(16), [ids(1)]),
        Question(ids(20), [ids(2), ids(16)]),
        Question(ids(4), [ids(3), ids(45)]),
    ]


@torch.no_grad()
def one_token_at_a_time(model, context, continuation):
    """Predict each token alone, in the window that :func:`log_likelihoods` describes."""
    model.eval()
    size = len(continuation) if len(context) + len(continuation) <= SEQ_LEN + 1 else None
    if size is None:
        size = len(continuation) if len(continuation) <= SEQ_LEN else SEQ_LEN // 2
    total = 0.0
    greedy = True
    for begin in range(0, len(continuation), size):
        part = continuation[begin : begin + size]
        before = (context + continuation[:begin])[-(SEQ_LEN + 1 - len(part)) :]
        for i, token in enumerate(part):
            read = torch.tensor([before + part[:i]])
            log_p = model.logits(model(read)[0, -1]).log_softmax(0)
            total += log_p[token].item()
            greedy = greedy and log_p.argmax().item() == token
    return total, greedy


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_shared_contexts_change_nothing(model, batch_tokens):
    asked = questions()
    answers = log_likelihoods(asked, model, CPU, batch_tokens)
    assert model.training  # as it was
    for question, found in zip(asked, answers, strict=True):
        for continuation, likelihood in zip(question.continuations, found, strict=True):
            log_p, greedy = one_token_at_a_time(model, question.context, continuation)
            assert likelihood.log_probability == pytest.approx(log_p, abs=1e-4)
            assert likelihood.is_greedy == greedy


def test_what_greedy_decoding_writes_is_greedy(model):
    model.eval()
    context = [1, 2, 3]
    written = []
    for _ in range(5):
        hidden = model(torch.tensor([context + written]))[0, -1]
        written.append(int(model.logits(hidden).argmax()))
    other = [*written[:-1], (written[-1] + 1) % VOCAB]
    [[right, wrong]] = log_likelihoods([Question(context, [written, other])], model, CPU, 100)
    assert (right.is_greedy, wrong.is_greedy) == (True, False)


def test_a_compiled_model_is_not_compiled_for_each_length(model):
    expected = log_likelihoods(questions(), model, CPU, 64)
    compile_blocks(model)
    torch._dynamo.utils.counters.clear()
    assert log_likelihoods(questions(), model, CPU, 64) == expected
    assert not torch._dynamo.utils.counters["stats"]


def test_a_stop_ends_it(model):
    with pytest.raises(Stopped):
        log_likelihoods(questions(), model, Compute(torch.device("cpu"), nullcontext(), stop=lambda: True), 64)
    assert math.isfinite(log_likelihoods(questions()[:1], model, CPU, 64)[0][0].log_probability)
