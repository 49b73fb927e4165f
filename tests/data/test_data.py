"""From text to token files, and from token files to batches."""

import functools
import hashlib
import http.server
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from conftest import ROOT, environment

from data.preparation import describe_tokenizer, prepare
from data.sources.text import library
from gpt.cli.compose import compose
from gpt.cli.run_checks import check_and_prepare
from gpt.errors import InputError
from gpt.tokens.loader import OrderedSampler, TokenDataset, micro_batches
from gpt.tokens.order import SampleOrder
from gpt.tokens.tokenizer import encode, end_of_text, get_tokenizer
from gpt.tokens.windows import open_windows


def prepared(cache, *overrides):
    return prepare(compose([f"data.cache_dir={cache}", *overrides]).data)


def text_of(file):
    tokenizer = get_tokenizer(file.tokenizer, file.chars)
    ids = file.reader()(0, file.n_tokens)
    return tokenizer.decode(ids[ids != end_of_text(tokenizer)].tolist())


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_few_documents_are_split_by_position(cache, text_file, tokenizer):
    text = text_file.read_text()
    train, val = prepared(cache, "data=text", f"data.files=[{text_file}]", f"data.tokenizer={tokenizer}")
    assert text_of(train) + text_of(val) == text
    assert text_of(train) == text[: int(len(text) * 0.9)]


def test_before_text_is_prepared_the_size_of_the_vocabulary_is_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("ab" * 999)
    text = ["data=text", f"data.files={tmp_path}/a.txt", f"data.cache_dir={tmp_path}/cache", "model.n_embd=8"]
    bytes_, gpt2 = "257 tokens, 2,056 parameters of tiny", "50,257 tokens, 402,056 parameters of tiny"
    lines = {
        "bytes": f"tokenizer   bytes: {bytes_}; data.tokenizer=gpt2: {gpt2}",
        "gpt2": f"tokenizer   gpt2: {gpt2}; data.tokenizer=bytes: {bytes_}",
        "chars": "tokenizer   chars: a token for each character of the text; "
        f"data.tokenizer=bytes: {bytes_}; data.tokenizer=gpt2: {gpt2}",
    }
    for tokenizer, line in lines.items():
        assert describe_tokenizer(compose([*text, f"data.tokenizer={tokenizer}"])) == line

    # Once: what is prepared, or has no text, leaves no choice.
    for expected in (1, 0):
        check_and_prepare(compose(text), None)
        assert capsys.readouterr().out.count(lines["bytes"]) == expected
    assert describe_tokenizer(compose(["data=addition", f"data.cache_dir={tmp_path}/cache"])) is None


def test_gpt2_ids_are_tiktokens_own(cache, text_file, gpt2_vocabulary):
    train, val = prepared(cache, "data=text", f"data.files=[{text_file}]", "data.tokenizer=gpt2")
    text = text_file.read_text()
    head = text[: int(len(text) * 0.9)]
    expected = [50256, *tiktoken.get_encoding("gpt2").encode_ordinary(head)]
    assert train.reader()(0, train.n_tokens).tolist() == expected
    assert text_of(train) + text_of(val) == text
    assert (train.vocab_size, train.dtype) == (50257, "<u2")


def test_a_document_cut_by_position_has_one_end_of_text(cache, tmp_path):
    for name, letter in [("a", "x"), ("b", "y")]:
        (tmp_path / f"{name}.txt").write_text(letter * 50)
    train, val = prepared(cache, "data=text", f"data.files=['{tmp_path}/*.txt']", "data.val_fraction=0.3")
    assert train.reader()(0, train.n_tokens).tolist() == [256] + [120] * 50 + [256] + [121] * 20
    assert val.reader()(0, val.n_tokens).tolist() == [121] * 30


def test_many_documents_are_split_by_their_hash(cache, tmp_path):
    texts = [f"document {i}\r\nwith line ends of its own ✓\n" for i in range(300)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:03}.txt").write_bytes(text.encode())
    train, val = prepared(cache, "data=text", f"data.files=['{tmp_path}/*.txt']", "data.val_fraction=0.2")
    parts = [set(text_of(file).replace("\ndocument", "\n\0document").split("\0")) for file in (train, val)]
    assert parts[0] | parts[1] == set(texts)
    assert not parts[0] & parts[1]
    assert 30 < len(parts[1]) < 90


def test_stdlib_is_real_text_without_tests():
    files = library()
    assert len(files) > 300
    assert any(path.name == "argparse.py" for path in files)
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-4:]) for path in files)


def test_preparing_again_takes_what_is_there_until_the_text_changes(cache, tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("some text " * 50)
    overrides = ["data=text", f"data.files=[{path}]"]
    first, _ = prepared(cache, *overrides)
    assert "preparing" in capsys.readouterr().out
    assert prepared(cache, *overrides)[0] == first
    assert capsys.readouterr().out == ""
    path.write_text("other text " * 50)
    assert prepared(cache, *overrides)[0].sha256 != first.sha256


def test_a_failed_preparation_leaves_no_half_file(cache, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine so far \xff\xfe not any more")
    own_cache = tmp_path / "cache"
    with pytest.raises(InputError, match=r"a.txt is not UTF-8: .* at byte 12"):
        prepared(own_cache, "data=text", f"data.files=[{tmp_path}/a.txt]")
    assert not list(own_cache.iterdir())


def test_a_deleted_token_file_is_made_again(cache, tmp_path):
    (tmp_path / "a.txt").write_text("some words " * 60)
    overrides = ["data=text", f"data.files=[{tmp_path}/a.txt]"]
    first, val = prepared(cache, *overrides)
    Path(val.path).unlink()
    assert prepared(cache, *overrides) == (first, val)


@pytest.fixture
def server(tmp_path):
    """A web server on this machine with the text at /input.txt."""
    (tmp_path / "input.txt").write_text("text from afar " * 40)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_a_text_is_fetched_once_and_checked(server, tmp_path, capsys):
    sha256 = hashlib.sha256((tmp_path / "input.txt").read_bytes()).hexdigest()
    overrides = ["data=shakespeare_char", f"data.url={server}/input.txt"]
    own_cache = tmp_path / "cache"
    with pytest.raises(InputError, match="is not the text it was"):
        prepared(own_cache, *overrides)
    assert not own_cache.exists()
    train, _ = prepared(own_cache, *overrides, f"data.sha256={sha256}")
    assert text_of(train).startswith("text from afar")
    assert "fetching" in capsys.readouterr().out
    prepared(own_cache, *overrides, f"data.sha256={sha256}")
    assert "fetching" not in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot be reached: HTTP Error 404"):
        prepared(own_cache, "data=text", f"data.url={server}/nothing.txt")


@pytest.mark.parametrize("name", ["bytes", "chars", "gpt2"])
def test_tokenizers_are_tiktoken_encodings_and_round_trip(name, request):
    if name == "gpt2":
        request.getfixturevalue("gpt2_vocabulary")
    text = "def naïve(x):\n    return '✓' * x  # <|endoftext|>\n" * 3
    tokenizer = get_tokenizer(name, "".join(sorted(set(text))) if name == "chars" else None)
    assert isinstance(tokenizer, tiktoken.Encoding)
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids.tolist()) == text
    assert ids.max() < tokenizer.n_vocab
    assert len(ids) == {"bytes": len(text.encode()), "chars": len(text)}.get(name, len(ids))


def test_a_character_outside_the_alphabet_is_named():
    with pytest.raises(InputError, match="character 'z' is not in the alphabet"):
        encode(get_tokenizer("chars", "abc"), "abz")


@pytest.fixture
def dataset(cache, text_file):
    train, _ = prepared(cache, "data=text", f"data.files=[{text_file}]")
    return TokenDataset(SampleOrder(7, open_windows(train, 32, "packed", "mmap")))


def test_a_sample_is_the_window_that_the_order_says(dataset):
    ids = dataset.windows.file.reader()(0, dataset.windows.file.n_tokens)
    for sample in (0, 5, len(dataset) + 3):
        start = dataset.order.starts(sample, 1)[0]
        assert np.array_equal(dataset[sample].numpy(), ids[start : start + 33])


@pytest.mark.parametrize("world_size, micro", [(1, 4), (2, 2), (4, 1)])
def test_ranks_together_see_the_global_batches(dataset, world_size, micro):
    loaders = []
    for rank in range(world_size):
        sampler = OrderedSampler(
            dataset,
            consumed=16,
            steps=3,
            stages=[(0, 8 * dataset.order.seq_len)],
            micro_batch_size=micro,
            rank=rank,
            world_size=world_size,
        )
        loaders.append(list(micro_batches(sampler, num_workers=0, pin_memory=False)))
    seen = torch.cat([batch for batches in zip(*loaders, strict=True) for batch in batches])
    assert torch.equal(seen, torch.stack([dataset[i] for i in range(16, 40)]))


def test_workers_change_nothing(dataset):
    def batches(num_workers):
        sampler = OrderedSampler(
            dataset,
            consumed=5,
            steps=6,
            stages=[(0, 8 * dataset.order.seq_len)],
            micro_batch_size=4,
            rank=0,
            world_size=1,
        )
        return torch.cat(list(micro_batches(sampler, num_workers, pin_memory=False)))

    assert torch.equal(batches(0), batches(2))


FAILING = """
import sys
from gpt.tokens.loader import OrderedSampler, TokenDataset, micro_batches
from gpt.tokens.order import SampleOrder
from gpt.tokens.tokenfile import open_tokens
from gpt.tokens.windows import open_windows
file = open_tokens(sys.argv[1])
dataset = TokenDataset(SampleOrder(7, open_windows(file, 32, "packed", "mmap")))
sampler = OrderedSampler(dataset, consumed=0, steps=99, stages=[(0, 128)], micro_batch_size=4, rank=0, world_size=1)
batches = micro_batches(sampler, num_workers=2, pin_memory=False)
next(batches)
raise ValueError("an error that nobody expects")
"""


@pytest.mark.slow
def test_an_unexpected_error_does_not_wait_for_workers(dataset):
    command = [sys.executable, "-c", FAILING, dataset.windows.file.path]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "an error that nobody expects" in done.stderr


def test_a_dataset_is_sent_without_its_tokens(dataset):
    dataset[0]
    assert len(pickle.dumps(dataset)) < 100_000
