"""The loss in bits per byte of text."""

import gzip
import hashlib
import json

import h5py
import pytest

from data.preparation import prepare
from gpt.cli.compose import compose
from gpt.evaluation.task import Measurement
from gpt.evaluation.validation import BPB, LOSS, Validation
from gpt.tokens.tokenfile import open_tokens
from gpt.tokens.tokenizer import get_tokenizer
from gpt.tokens.windows import open_windows

# In a text, the name of end-of-text is plain text.
TEXTS = [f"{n} bottles: {n * n} <|endoftext|> crème brûlée" for n in range(200)]


def is_for_validation(text: str, fraction: float) -> bool:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def validation_of(file, documents: str) -> Validation:
    tokenizer = get_tokenizer(file.tokenizer, file.chars)
    return Validation(open_windows(file, 64, documents, "mmap"), tokenizer, None, 4, 1)


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_end_of_text_has_a_loss_and_no_bytes(tmp_path, tokenizer):
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    overrides = ["data=jsonl", f"data.files=[{rows}]", "data.val_fraction=0.5", f"data.tokenizer={tokenizer}"]
    _, file = prepare(compose([*overrides, f"data.cache_dir={tmp_path}"]).data)

    texts = [text for text in TEXTS if is_for_validation(text, 0.5)]
    assert 70 < len(texts) < 130
    for documents in ("packed", "separate", "masked"):
        validation = validation_of(file, documents)
        evaluated = texts
        if tokenizer == "chars":  # without end-of-text, a first character is no target: of all, or of each document
            evaluated = [text[1:] for text in texts] if documents != "packed" else [texts[0][1:], *texts[1:]]
        text = "".join(evaluated).encode()
        if tokenizer == "bytes":
            assert validation.n_targets == len(text) + len(texts) - 1
        assert validation.n_bytes == len(text)
        gzip_bpb = len(gzip.compress(text, 9)) * 8 / len(text)
        figures = validation.figures(Measurement({LOSS: 2.0, BPB: 3.0}))
        assert (figures["bpb"], figures["gzip_bpb"]) == (3.0, gzip_bpb)
        line = f"validation loss 2.0000 nats per token, 3.0000 bits per byte (zlib level 9 on the same bytes: {gzip_bpb:.4f})"
        assert validation.closing({LOSS: 2.0, BPB: 3.0}) == ({"gzip_bpb": gzip_bpb}, line)


def test_zlib_is_no_mark_on_scattered_windows(tmp_path, monkeypatch):
    """They hold less that repeats: on all of the text it does better."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} times {number} is {number**2}\n" for number in range(9_000)))
    overrides = ["data=text", f"data.files=[{text}]", "data.tokenizer=bytes", f"data.cache_dir={tmp_path}"]
    _, file = prepare(compose(overrides).data)
    whole, part = validation_of(file, "packed"), validation_of(file, "packed")
    part.max_tokens = 256
    measured = Measurement({LOSS: 2.0, BPB: 3.0})
    assert part.gzip_bpb() > 1.2 * whole.figures(measured)["gzip_bpb"]
    assert "gzip_bpb" not in part.figures(measured)
    assert part.closing(measured.metrics) == ({}, "validation loss 2.0000 nats per token, 3.0000 bits per byte")
    monkeypatch.setattr("gpt.evaluation.validation.ENOUGH_BYTES", 200)
    assert part.figures(measured)["gzip_bpb"] == part.gzip_bpb()


def test_where_there_is_no_text_there_are_no_bits_per_byte(tmp_path):
    with h5py.File(tmp_path / "val.h5", "w") as made:
        made.create_dataset("tokens", data=[256, 256, 256])
        made.attrs.update({"tokenizer": "bytes", "vocab_size": 257})
    validation = validation_of(open_tokens(tmp_path / "val.h5"), "packed")
    assert validation.n_targets == 2
    assert validation.n_bytes == 0
    assert validation.closing({LOSS: 2.0}) == ({}, "validation loss 2.0000 nats per token")
