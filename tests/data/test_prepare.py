"""Preparing at scale: pieces, shards, processes, interruptions."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiktoken
from conftest import ROOT, Started, call, environment, processes_in, until

from data import pieces
from data.preparation import prepare
from data.sources.text import library
from data.tokenize import encode_all
from gpt.cli.compose import compose
from gpt.errors import InputError
from gpt.tokens.order import SampleOrder
from gpt.tokens.tokenizer import get_tokenizer
from gpt.tokens.windows import open_windows


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def prepared(cache, *overrides):
    return prepare(compose([f"data.cache_dir={cache}", *overrides]).data)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Some 36 MB of real text in 150 files: the standard library, three times, with a salt."""
    directory = tmp_path_factory.mktemp("corpus")
    source = b"".join(path.read_bytes() for path in library())
    salted = b"".join(b"# %d\n" % i + source for i in range(3))
    size = len(salted) // 150
    for i in range(150):
        part = salted[i * size : (i + 1) * size].decode(errors="ignore")
        (directory / f"{i:03}.txt").write_bytes(part.encode())
    return directory


def test_shards_are_one_sequence_of_tokens(text_file, tmp_path):
    overrides = ["data=text", f"data.files=[{text_file}]"]
    whole, _ = prepared(tmp_path / "a", *overrides)
    train, _ = prepared(tmp_path / "b", *overrides, "data.shard_tokens=10_007")
    assert len(train.shards) == -(-whole.n_tokens // 10_007) > 20
    assert {shard.n_tokens for shard in train.shards[:-1]} == {10_007}
    assert (train.n_tokens, train.sha256, train.vocabulary) == (whole.n_tokens, whole.sha256, whole.vocabulary)
    ids = whole.reader()(0, whole.n_tokens)
    with h5py.File(train.path) as index:
        assert np.array_equal(index["tokens"][()], ids)
    starts = SampleOrder(1, open_windows(train, 512, "packed", "mmap")).starts(0, 500)
    for read in ("mmap", "pread"):
        across = train.reader(read)
        assert np.array_equal(across(0, train.n_tokens), ids)
        for start in starts.tolist():
            assert np.array_equal(across(start, start + 513), ids[start : start + 513])
    manifest = json.loads((Path(train.path).parent / "manifest.json").read_text())["splits"]
    assert manifest["train"]["sha256"] == whole.sha256
    assert [shard["tokens"] for shard in manifest["train"]["shards"]] == [shard.n_tokens for shard in train.shards]


@pytest.mark.slow
def test_documents_start_where_they_start_whatever_the_shards(tmp_path):
    for i in range(200):
        (tmp_path / f"{i:03}.txt").write_text(f"document {i} " * (i % 7))
    overrides = ["data=text", f"data.files=['{tmp_path}/*.txt']"]
    whole, _ = prepared(tmp_path / "a", *overrides)
    train, _ = prepared(tmp_path / "b", *overrides, "data.shard_tokens=100")
    assert len(train.shards) > 50
    assert np.array_equal(train.doc_offsets(), whole.doc_offsets())
    assert np.array_equal(whole.doc_offsets(), np.flatnonzero(whole.reader()(0, whole.n_tokens) == 256))


def test_a_lost_shard_is_refused_by_name_and_its_directory_can_be_prepared_again(tmp_path):
    for i in range(200):
        (tmp_path / f"{i:03}.txt").write_text(f"document {i} " * (i % 7))
    overrides = ["data=text", f"data.files=['{tmp_path}/*.txt']", "data.shard_tokens=500"]
    train, _ = prepared(tmp_path / "a", *overrides)
    directory, before = Path(train.path).parent, hashes(Path(train.path).parent)
    (directory / "train_00007.h5").unlink()
    left = hashes(directory)
    with pytest.raises(InputError, match=r"train_00007.h5 is gone") as caught:
        prepared(tmp_path / "a", *overrides)
    assert "delete its directory and give the command again" in caught.value.cure
    assert hashes(directory) == left
    shutil.rmtree(directory)
    assert prepared(tmp_path / "a", *overrides)[0].sha256 == train.sha256
    assert hashes(directory) == before


@pytest.mark.slow
def test_verify_names_what_was_altered(tmp_path, text_file):
    overrides = ["data=text", f"data.files=[{text_file}]", "data.shard_tokens=50_000", f"data.cache_dir={tmp_path}"]
    missing = call(*overrides, "verify=true", cwd=ROOT, script="data.show")
    assert missing.returncode == 2
    assert "prepare the data" in missing.stderr
    train, _ = prepare(compose(overrides).data)
    assert call(*overrides, "verify=true", cwd=ROOT, script="data.show").returncode == 0
    with h5py.File(train.shards[1].path, "a") as file:
        file["tokens"][7] += 1
    altered = call(*overrides, "verify=true", cwd=ROOT, script="data.show")
    assert altered.returncode == 2
    assert "error: altered since it was written: train_00001.h5\n" in altered.stderr
    shutil.rmtree(Path(train.path).parent)
    prepare(compose(overrides).data)
    assert call(*overrides, "verify=true", cwd=ROOT, script="data.show").returncode == 0


LONG = {
    "code": lambda source: source,
    "spaces": lambda source: "word" + " " * 3_000 + source[:1_500_000],
    "no spaces": lambda source: "一二三四五六七八九十。\u3000" * 200_000,
    "no cuts": lambda source: "ab1" * 500_000 + source[:1_500_000],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_pieces_of_a_long_document_have_the_tokens_of_the_whole(kind, gpt2_vocabulary):
    source = "".join(path.read_text() for path in library())[:3_000_000]
    document = LONG[kind](source)
    parts = [part for part, *_ in pieces.blocks(io.BytesIO(document.encode()), "refuse", "")]
    assert "".join(parts) == document
    assert len(parts) > 1 or kind == "no spaces"
    tokenizer = get_tokenizer("gpt2")
    expected = tiktoken.get_encoding("gpt2").encode_ordinary(document)
    assert np.concatenate(encode_all(tokenizer, parts)).tolist() == expected


@pytest.mark.slow
def test_ids_equal_tiktokens_for_every_character(gpt2_vocabulary):
    tokenizer, draws = get_tokenizer("gpt2"), random.Random(1)
    parts = ["a", "Z", " ", "  ", "\n", "\t", "'s", "'ll", "1", "é", "中", "\u3000", "\xa0", "\u2028", "🙂", "-", "'",
             "<|endoftext|>", "\x1c", "\u0301", "²", "\r\n", "\x85", "\u200b", "\x00"]  # fmt: skip
    texts = ["".join(draws.choices(parts, k=draws.randrange(40))) for _ in range(2000)]
    code_points = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    texts += ["".join(f"{chr(c)}中" for c in code_points[i : i + 500]) for i in range(0, len(code_points), 500)]
    for ids, one in zip(encode_all(tokenizer, texts), texts, strict=True):
        assert ids.tolist() == tokenizer.encode_ordinary(one), one


def sharded(corpus: Path) -> list[str]:
    """Overrides that prepare the corpus in a dozen shards."""
    return ["data=text", f"data.files=['{corpus}/*.txt']", "data.shard_tokens=3_000_000"]


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> Path:
    """The directory of the corpus, prepared by one process that nobody killed."""
    train, _ = prepared(tmp_path_factory.mktemp("undisturbed"), *sharded(corpus), "data.processes=1")
    return Path(train.path).parent


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(corpus, undisturbed, tmp_path):
    written = []
    for processes in (2, 4):
        train, _ = prepared(tmp_path / str(processes), *sharded(corpus), f"data.processes={processes}")
        written.append(hashes(Path(train.path).parent))
    assert len(written[0]) > 12
    assert written[0] == written[1] == hashes(undisturbed)  # of one process


def written_below(cache: Path) -> int:
    """Bytes of shards there, raw or finished."""
    sizes: dict[str, int] = {}
    for path in cache.glob("*/*"):
        with suppress(FileNotFoundError):  # renamed meanwhile
            shard = path.name.lstrip(".").partition(".h5")[0]
            sizes[shard] = max(sizes.get(shard, 0), path.stat().st_size)
    return sum(sizes.values())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_preparation_killed_ten_times_writes_the_same_bytes(corpus, undisturbed, tmp_path, processes):
    arguments = [*sharded(corpus), f"data.processes={processes}", f"data.cache_dir={tmp_path}/killed"]
    whole = sum(path.stat().st_size for path in undisturbed.iterdir())
    for moment in sorted(random.Random(processes).uniform(0, 0.9) for _ in range(10)):
        process = Started(*arguments, cwd=tmp_path, script="data.prepare")
        while written_below(tmp_path / "killed") < moment * whole:
            assert process.poll() is None, "it was done before it was to be killed"
            time.sleep(0.001)
        process.kill()
        process.wait()
    done = call(*arguments, cwd=ROOT, script="data.prepare")
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "killed").glob("[!.]*")
    assert hashes(directory) == hashes(undisturbed)
    until(lambda: not processes_in(tmp_path), 10)  # none outlives who started it


def preparing(corpus: Path, tmp_path: Path) -> tuple[subprocess.Popen, list[int]]:
    """A preparation in a session of its own, and its workers as soon as there are two."""
    command = [sys.executable, "-m", "data.prepare", "data=text", f"data.files=['{corpus}/*.txt']", "data.processes=2",
               f"data.cache_dir={tmp_path}/c"]  # fmt: skip
    env = environment() | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while True:
        assert process.poll() is None
        found = processes_in(tmp_path)
        workers = [pid for pid, line in found.items() if b"spawn_main" in line]
        if len(workers) == 2:
            return process, workers
        time.sleep(0.001)


@pytest.mark.slow
def test_workers_leave_ctrl_c_to_who_started_them(corpus, tmp_path):
    process, _ = preparing(corpus, tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # while workers are still importing
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert "Traceback" not in said
    assert said.strip().count("\n") == 0
    assert not processes_in(tmp_path)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_preparation_in_words(corpus, tmp_path):
    process, workers = preparing(corpus, tmp_path)
    # concurrent.futures waits for ever where one is killed while another is being started: until it imports our code.
    until(lambda: all("numpy" in Path(f"/proc/{pid}/maps").read_text() for pid in workers), 30)
    os.kill(workers[0], signal.SIGKILL)  # as a kernel without memory does
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "error: a process that tokenizes was killed" in said
    assert "data.processes" in said
    assert not processes_in(tmp_path)


@pytest.mark.slow
def test_of_two_preparations_at_once_one_waits_for_the_other(corpus, tmp_path):
    arguments = ["data=text", f"data.files=['{corpus}/*.txt']", "data.processes=1", f"data.cache_dir={tmp_path}"]
    both = [Started(*arguments, cwd=ROOT, script="data.prepare") for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("preparing") for text in said) == 1
    assert sum("training tokens, " in text for text in said) == 1
    assert said[0].splitlines()[-2:] == said[1].splitlines()[-2:]
