"""The strided loss of text files, and bits per byte of runs with different tokenizers."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from gpt.cli.compose import compose
from gpt.device import Compute
from gpt.errors import InputError
from gpt.evaluation import perplexity_files
from gpt.evaluation.perplexity import BPB, LOSS, Perplexity
from gpt.evaluation.task import Subject
from gpt.model import GPT, init_weights
from gpt.tokens.tokenizer import get_tokenizer

CPU = Compute(torch.device("cpu"), nullcontext())
MODEL = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.seq_len=8", "model.init_std=0.3"]


def perplexity_of(*overrides, tokenizer="bytes", chars=None):
    config = compose([*MODEL, *overrides])
    return Perplexity.build(Subject(config, get_tokenizer(tokenizer, chars), None))


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("micro", [1, 4])
def test_each_token_is_predicted_once_after_a_context_of_at_least_seq_len_less_stride(tmp_path, stride, micro):
    texts = ["To be, or not to be: that is", "é", "12345678"]
    files = []
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
        files.append(str(tmp_path / f"{number}.txt"))
    keys = [f"perplexity.files=[{','.join(files)}]", f"perplexity.stride={stride}", f"batch.micro_batch_size={micro}"]
    task = perplexity_of(*keys)
    model = GPT(compose(MODEL).model, 257)
    init_weights(model, 1)

    total = 0.0
    n = 0
    for text in texts:
        ids = torch.tensor([256, *text.encode()])
        for i in range(1, len(ids)):
            # The first window predicts 8 tokens; each later one `stride` more.
            window = max(0, math.ceil((i - 8) / stride)) * stride
            with torch.no_grad():
                logits = model.logits(model(ids[None, window:i])[0, -1])
            total += F.cross_entropy(logits, ids[i]).item()
            n += 1
    found = task.measure(model, 0, CPU).metrics
    assert found[LOSS] == pytest.approx(total / n, rel=1e-5)
    n_bytes = sum(len(text.encode()) for text in texts)
    assert found[BPB] == pytest.approx(total / n_bytes / math.log(2), rel=1e-5)
    assert (task.n_targets, task.n_bytes) == (n, n_bytes)
    assert sum(len(rows) for rows in task.batches(0, 2)) + sum(len(rows) for rows in task.batches(1, 2)) >= len(texts)


def test_a_vocabulary_without_end_of_text_does_not_predict_the_first_character(tmp_path):
    (tmp_path / "a.txt").write_text("éab")
    task = perplexity_of(f"perplexity.files={tmp_path}/a.txt", tokenizer="chars", chars="abé")
    assert (task.n_targets, task.n_bytes) == (2, 2)


@pytest.mark.parametrize(
    "content, keys, problem",
    [
        (b"text", ["perplexity.files=[]"], "has no text"),
        (b"text", ["perplexity.files=[missing.txt]"], "missing.txt cannot be read"),
        (b"\xff", [], "cannot be read"),
        (b"", [], "is empty"),
        (b"text", ["perplexity.stride=9"], "perplexity.stride=9 would leave tokens out"),
    ],
)
def test_what_it_cannot_read_is_refused(tmp_path, content, keys, problem):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        perplexity_files.check(compose([*MODEL, f"perplexity.files=[{path}]", *keys]))


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "gpt2"])
def test_bits_per_byte_are_the_loss_over_the_bytes_of_the_text(trainer, text_file, tokenizer, gpt2_vocabulary):
    changes = ["data.val_fraction=0.02", "trainer.max_steps=2", "trainer.eval_tokens=null", "sample.tokens=0"]
    run = trainer(f"data.tokenizer={tokenizer}", *changes)
    result = run.fit()

    # From the text itself: its last fiftieth, of which the first token is no target.
    text = text_file.read_text()
    text = text[int(len(text) * 0.98) :]
    encoding = get_tokenizer(tokenizer, "".join(sorted(set(text_file.read_text()))))
    ids = torch.tensor(encoding.encode_ordinary(text))
    n_bytes = len(text.encode()) - len(encoding.decode_bytes([ids[0].item()]))
    total = 0.0
    with torch.no_grad():
        for window, targets in zip(ids[:-1].split(32), ids[1:].split(32), strict=True):
            logits = run.state.model.logits(run.state.model(window[None])[0])
            total += F.cross_entropy(logits, targets, reduction="sum").item()
    assert result["bpb"] == pytest.approx(total / math.log(2) / n_bytes, rel=1e-6)
