"""Where text comes from: files of every kind, the hub; interruptions and what is wrong with them."""

import contextlib
import errno
import gzip
import hashlib
import json
import os
import random
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken
import zstandard
from conftest import ROOT, SHARED, call, imported
from local_hub import COMMIT, hub

import data.preparation
from data import pieces, progress
from data.pieces import split_of
from data.preparation import prepare
from data.sources.text import library
from gpt.cli.compose import compose
from gpt.errors import InputError, TrainingError


def prepared(cache, *overrides):
    return prepare(compose([f"data.cache_dir={cache}", *overrides]).data)


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def real_documents() -> list[str]:
    """Tiny Shakespeare by scene, WikiText-2 by line, the standard library by file, as far as they are here."""
    texts = [path.read_text() for path in library()[:60]]
    for name, separator in [("tinyshakespeare.txt", "\n\n"), ("wikitext2_valid.txt", "\n")]:
        if (path := SHARED / "data" / name).exists():
            texts += path.read_text().split(separator)
    return texts


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> tuple[Path, list[str]]:
    """Real documents, one of them of some MB, and a directory that holds them in every format."""
    directory, texts = tmp_path_factory.mktemp("documents"), real_documents()
    texts.insert(500, "\n".join(path.read_text() for path in library())[:3_000_000])
    raw = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()
    (directory / "a.jsonl").write_bytes(raw)
    (directory / "a.jsonl.gz").write_bytes(gzip.compress(raw, 1))
    compress = zstandard.ZstdCompressor().compress
    (directory / "a.jsonl.zst").write_bytes(compress(raw[: len(raw) // 2]) + compress(raw[len(raw) // 2 :]))
    n = len(texts)
    columns = {"id": [f"<urn:uuid:{i}>" for i in range(n)], "dump": ["CC-MAIN-2024-10"] * n, "language": ["en"] * n,
               "language_score": [0.9] * n, "token_count": list(map(len, texts)), "score": [3.1] * n, "int_score": [3] * n}  # fmt: skip
    table = pa.table({"text": texts} | columns)
    pq.write_table(table, directory / "a.parquet", row_group_size=1000)
    pq.write_table(table[: n // 3], directory / "b_0.parquet")
    pq.write_table(table[n // 3 :], directory / "b_1.parquet", row_group_size=100)
    return directory, texts


KINDS = {
    "jsonl": ["data=jsonl", "data.files=[DIR/a.jsonl]"],
    "gz": ["data=jsonl", "data.files=[DIR/a.jsonl.gz]"],
    "zst": ["data=jsonl", "data.files=[DIR/a.jsonl.zst]"],
    "parquet": ["data=parquet", "data.files=['DIR/b_*.parquet']"],
    "fineweb": ["data=fineweb_edu_10bt", "data.files=[DIR/a.parquet]"],
    "fineweb jsonl": ["data=fineweb_edu_10bt", "data.files=[DIR/a.jsonl]"],
}


def of(kind: str, directory: Path) -> list[str]:
    return [override.replace("DIR", str(directory)) for override in KINDS[kind]] + ["data.val_fraction=0.1"]


def expected_ids(texts: list[str]) -> dict[str, list[int]]:
    """What tiktoken makes of each document by itself, by the split that its hash says."""
    ids = {"train": [], "val": []}
    for text in texts:
        split = split_of(hashlib.sha256(text.encode()).digest(), 0.1)
        ids[split] += [50256, *tiktoken.get_encoding("gpt2").encode_ordinary(text)]
    return ids


@pytest.fixture(scope="module")
def expected(documents) -> dict[str, list[int]]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_tiktokens_document_by_document(kind, documents, expected, cache, gpt2_vocabulary):
    directory, texts = documents
    if not expected:
        expected |= expected_ids(texts)
    for file, split in zip(prepared(cache, *of(kind, directory)), ("train", "val"), strict=True):
        assert file.reader()(0, file.n_tokens).tolist() == expected[split]
        assert np.array_equal(file.doc_offsets(), np.flatnonzero(np.array(expected[split]) == 50256))


@pytest.mark.slow
def test_the_hub_gives_what_a_local_copy_gives(documents, tmp_path, cache, gpt2_vocabulary, capfd):
    directory, _ = documents
    local, _ = prepared(cache, *of("parquet", directory))
    command = ["data=hf", "data.path=own/corpus", f"data.cache_dir={tmp_path}/c"]
    files = {f"data/train-{i}.parquet": directory / f"b_{i}.parquet" for i in range(2)}
    with hub(files) as server, contextlib.ExitStack() as stack:
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": f"{tmp_path}/home",
                    "TIKTOKEN_CACHE_DIR": str(gpt2_vocabulary), "HF_HUB_OFFLINE": "0"}  # fmt: skip

        no_pause = {"datasets.config.STREAMING_READ_RETRY_INTERVAL": 0.1}
        there = stack.enter_context(imported("datasets", "data.sources.hub", env=settings, constants=no_pause))

        def run(*overrides):
            return there(*command, *overrides, cwd=ROOT, script="data.prepare")

        streamed = run()
        assert streamed.returncode == 0, streamed.stderr
        (made,) = (tmp_path / "c").glob("*/manifest.json")
        manifest = json.loads(made.read_text())
        assert (manifest["revision"], manifest["splits"]["train"]["sha256"]) == (COMMIT, local.sha256)
        read = sum(end - begin for begin, end in server.ranges)
        assert read < 2 * sum(len(raw) for raw in server.files.values())  # each file once, and its footer
        whole = hashes(made.parent)
        shutil.rmtree(made.parent)
        server.drops = 1
        dropped = run()
        assert dropped.returncode == 0, dropped.stderr
        assert server.drops == 0
        assert hashes(made.parent) == whole
        downloaded = run("data.streaming=false", "data.shard_tokens=1_000_000")
        assert downloaded.returncode == 0, downloaded.stderr
        for overrides, problem, cure in [
            (["data.config=x"], "BuilderConfig 'x' not found. Available: ['default']", "see data.config"),
            (["data.split=x"], "Bad split: x. Available splits: ['train']", "data.split"),
            (["data.path=own/nothing"], "own/nothing is not on the hub", "correct data.path"),
            (["data.column=txt"], "no column txt", "there: text, id, dump"),
        ]:
            wrong = run(*overrides)
            assert wrong.returncode == 2, wrong.stderr
            assert problem in wrong.stderr
            assert cure in wrong.stderr
            assert len(list((tmp_path / "c").glob("[!.]*"))) == 2
        is_set = settings | {"HF_HUB_OFFLINE": "1"}
        offline = call(*command, "data.revision=main", cwd=ROOT, script="data.prepare", env=is_set)
        assert offline.returncode == 2
        assert "HF_HUB_OFFLINE is set" in offline.stderr
        server.shutdown()
        server.server_close()
        unreachable = run("data.revision=main")
    assert unreachable.returncode == 1
    assert "trying again in 2 s" in unreachable.stdout
    assert "the hub cannot be reached" in unreachable.stderr
    assert "data.files=['DIR/*.parquet']" in unreachable.stderr


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "zst", "parquet"])
def test_an_interrupted_preparation_goes_on_and_gives_the_same_bytes(kind, documents, tmp_path, monkeypatch):
    overrides = [*of(kind, documents[0]), "data.tokenizer=bytes", "data.shard_tokens=1_000_000", "data.processes=1"]
    monkeypatch.setattr(data.preparation, "COMMIT_TOKENS", 100_000)
    monkeypatch.setattr(pieces, "BATCH_CHARS", 50_000)
    monkeypatch.setattr(pieces, "BLOCK", 100_000)
    whole = hashes(Path(prepared(tmp_path / "whole", *overrides)[0].path).parent)
    write, draws, kills = data.preparation.write_journal, random.Random(1), 0

    def interrupted(*arguments):
        write(*arguments)
        if draws.random() < 0.2:
            raise Killed

    monkeypatch.setattr(data.preparation, "write_journal", interrupted)
    while True:
        try:
            train, _ = prepared(tmp_path / "killed", *overrides)
            break
        except Killed:
            kills += 1
    assert kills > 8
    assert hashes(Path(train.path).parent) == whole


def text_of(*files) -> str:
    """The text of files made by the bytes tokenizer, with a bar before every document."""
    ids = np.concatenate([file.reader()(0, file.n_tokens) for file in files])
    return bytes(np.where(ids == 256, ord("|"), ids).astype(np.uint8)).decode()


def test_rows_that_are_lines_become_documents(tmp_path):
    lines = ["before\n", " = One = \n", "\n", " = = A part = = \n", "text \n", " = Two = \n", "more \n"]
    pq.write_table(pa.table({"text": lines * 40}), tmp_path / "wiki.parquet", row_group_size=3)
    files = prepared(tmp_path / "c", "data=wikitext", f"data.files=[{tmp_path}/wiki.parquet]", "data.tokenizer=bytes",
                     "data.val_fraction=0.5", "data.document_start=' = [^=]| *before'")  # fmt: skip
    assert set(text_of(*files).split("|")) == {"", "before\n", "".join(lines[1:5]), "".join(lines[5:])}
    assert sum(len(file.doc_offsets()) for file in files) == 120


BAD = {
    "txt": b"naive \xff\xfe and more. " * 20,
    "jsonl": b"".join(b'{"text": "naive \xff\xfe %d"}\n' % i for i in range(50)),
    "surrogate.jsonl": b"".join(b'{"text": "naive \\ud83d\\ud83d %d"}\n' % i for i in range(50)),
    "parquet": [b"naive \xff\xfe %d" % i for i in range(50)],
}


@pytest.mark.parametrize("suffix", BAD)
def test_bytes_that_are_not_utf8_are_refused_or_replaced(suffix, tmp_path):
    path, bad = tmp_path / f"a.{suffix}", BAD[suffix]
    if suffix == "parquet":
        pq.write_table(pa.table({"text": pa.array(bad, pa.binary())}), path)
    else:
        path.write_bytes(bad)
    kind = {"txt": "text", "parquet": "parquet"}.get(suffix, "jsonl")
    overrides = [f"data={kind}", f"data.files=[{path}]", "data.tokenizer=bytes", "data.val_fraction=0.3"]
    with pytest.raises(InputError, match=r"is not UTF-8|half a character") as caught:
        prepared(tmp_path / "c", *overrides)
    assert "data.invalid_utf8=replace" in caught.value.cure
    assert not list((tmp_path / "c").iterdir())
    text = text_of(*prepared(tmp_path / "c", *overrides, "data.invalid_utf8=replace"))
    assert text.count("naive \ufffd\ufffd ") == len(bad) if kind == "parquet" else bad.count(b"naive")


def test_a_text_cut_for_validation_goes_on_though_it_is_not_utf8(tmp_path, monkeypatch):
    """The cut falls inside a block with bytes that are no characters, and so does the interruption."""
    (tmp_path / "a.txt").write_bytes(b"\xffab \xc3" * 100_000)
    overrides = ["data=text", f"data.files=[{tmp_path}/a.txt]", "data.tokenizer=bytes", "data.invalid_utf8=replace"]
    whole = prepared(tmp_path / "whole", *overrides)
    assert text_of(*whole) == "|" + "\ufffdab \ufffd" * 100_000


WRONG = [
    ("data=jsonl", "{DIR}/a.jsonl", b'{"text": "a"}\n{"txt": "b", "id": 1}\n', "a.jsonl, line 2: no column text", "there: txt, id"),
    ("data=jsonl", "{DIR}/a.jsonl", b'{"text": 5}\n', "line 1: column text holds no text: 5", "data.column"),
    ("data=jsonl", "{DIR}/a.jsonl", b'{"text": "a"\n', "line 1: not JSON", "one JSON object"),
    ("data=jsonl", "{DIR}/a.jsonl", b"", "would be empty", "give more text"),
    ("data=jsonl", "{DIR}/a.jsonl.gz", b"no gzip", "is no whole .gz file", "fetch it again"),
    ("data=jsonl", "{DIR}/a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999)[:-30], "is no whole .gz file", "fetch it again"),
    ("data=text", "{DIR}/a.txt.zst", b"no zstandard", "is no whole .zst file", "fetch it again"),
    ("data=parquet", "{DIR}/a.parquet", b"no parquet", "is no whole parquet file", "fetch it again"),
    ("data=parquet", None, b"", "data=parquet has nothing to read", "data.files=['*.parquet']"),
    ("data=hf", None, b"", "data=hf names no dataset", "data.path=OWNER/NAME"),
]  # fmt: skip


@pytest.mark.parametrize("option, name, content, problem, cure", WRONG, ids=[f"{w[0]} {w[3]}" for w in WRONG])
def test_wrong_sources_are_refused(option, name, content, problem, cure, tmp_path):
    overrides = [option, "data.tokenizer=bytes"]
    if name:
        path = Path(name.format(DIR=tmp_path))
        path.write_bytes(content)
        overrides.append(f"data.files=[{path}]")
    with pytest.raises(InputError) as caught:
        prepared(tmp_path / "c", *overrides)
    assert problem in caught.value.problem
    assert cure in caught.value.cure
    assert not (tmp_path / "c").exists() or not list((tmp_path / "c").iterdir())


def test_what_the_disk_will_not_hold_is_refused(documents, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(progress.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 8_000_000))
    monkeypatch.setattr(data.preparation, "COMMIT_TOKENS", 500_000)
    overrides = [*of("jsonl", documents[0]), "data.tokenizer=bytes"]
    with pytest.raises(InputError, match=r"has 0.01 GB free, and .* tokens or so need 0.03") as caught:
        prepared(tmp_path, *overrides)
    assert "data.cache_dir=DIR" in caught.value.cure
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_ends_a_preparation_that_then_goes_on(documents, tmp_path, monkeypatch):
    overrides = [*of("jsonl", documents[0]), "data.tokenizer=bytes", "data.shard_tokens=1_000_000", "data.processes=1"]
    whole = hashes(Path(prepared(tmp_path / "whole", *overrides)[0].path).parent)
    monkeypatch.setattr(data.preparation, "COMMIT_TOKENS", 100_000)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limit[1]))  # no file beyond, as if the disk were full
    try:
        with pytest.raises(TrainingError, match=os.strerror(errno.EFBIG)) as caught:
            prepared(tmp_path / "full", *overrides)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "it goes on where it was" in str(caught.value)
    (directory,) = (tmp_path / "full").glob("[!.]*")
    assert (directory / ".progress.json").exists()
    train, _ = prepared(tmp_path / "full", *overrides)
    assert hashes(Path(train.path).parent) == whole
