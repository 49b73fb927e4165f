"""Wrong commands about data: each is refused by the command itself, in words, and leaves nothing behind."""

import gzip
import json
import os

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import data.export
import data.preparation
import data.prepare
import data.show
from data import pieces, shards
from data.preparation import prepare
from data.sources import files, jsonl
from data.sources.text import TextFiles
from gpt.cli import command as cli
from gpt.cli.compose import compose
from gpt.errors import InputError
from train import train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with files of every kind, most of them wrong."""
    place = tmp_path_factory.mktemp("place")
    words = "some words here and there\n" * 400
    texts = [f"document {i} with words " * 20 for i in range(300)]
    lines = "".join(json.dumps({"text": text, "n": 5}) + "\n" for text in texts).encode()
    contents = {
        "text.txt": words.encode(),
        "empty.txt": b"",
        "one.txt": b"x",
        "empty.txt.gz": b"",
        "garbage.txt.gz": b"garbage" * 99,
        "trailing.txt.gz": gzip.compress(words.encode()) + b"trailing",
        "cut.txt.gz": gzip.compress(words.encode())[:-9],
        "garbage.txt.zst": b"garbage" * 99,
        "cut.txt.zst": zstandard.ZstdCompressor().compress(lines)[:-9],
        "trailing.txt.zst": zstandard.ZstdCompressor().compress(lines) + b"trailing",
        "ok.jsonl": lines,
        "deep.jsonl": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "big.jsonl": b'{"text": "a", "n": ' + b"9" * 10_000 + b"}\n",
        "nan.jsonl": b'{"text": NaN}\n',
        "row.jsonl": b"[1, 2]\n",
        "number.jsonl": b'{"text": 5}\n',
        "null.jsonl": b'{"text": null}\n' * 99,
        "bom.jsonl": b'\xef\xbb\xbf{"text": "a"}\n',
        "long.jsonl": json.dumps({"text": "word " * 20_000}).encode() + b"\n",
        "empty.parquet": b"",
        "odd.bin": b"abc",
        "empty.bin": b"",
        "train.bin": np.arange(3000, dtype="<u2").tobytes(),
        "val.bin": (np.arange(3000, dtype="<u2") % 250).tobytes(),
        "length.bin": np.array([20240520, 1, -5, *[0] * 253], "<i4").tobytes(),
        "garbage.npy": b"garbage",
        "empty.npy": b"",
    }
    for name, content in contents.items():
        (place / name).write_bytes(content)
    for name, array in {
        "below.npy": np.array([-1, 5] * 99),
        "words.npy": np.array(["a"]),
        "floats.npy": np.ones(5),
    }.items():
        np.save(place / name, array)
    pq.write_table(pa.table({"text": texts}), place / "ok.parquet")
    raw = (place / "ok.parquet").read_bytes()
    (place / "cut.parquet").write_bytes(raw[:-9])
    (place / "flipped.parquet").write_bytes(raw[:40] + b"\xff" * 60 + raw[100:])
    pq.write_table(pa.table({"text": [1, 2]}), place / "numbers.parquet")
    pq.write_table(pa.table({"text": [["a"]]}), place / "lists.parquet")
    pq.write_table(pa.table({"other": ["a"]}), place / "other.parquet")
    (place / "directory.txt").mkdir()
    (place / "dangling.txt").symlink_to("nothing")
    (place / "loop.txt").symlink_to("loop.txt")
    for name, splits in {"own": ("train", "val"), "noval": ("train",)}.items():
        (place / name).mkdir()
        for split in splits:
            with h5py.File(place / name / f"{split}.h5", "w") as file:
                file["tokens"] = np.arange(5000, dtype="u2") % 250
                file.attrs.update(tokenizer="bytes", vocab_size=257)
    (place / "exported").mkdir()
    (place / "exported" / "val.bin").write_text("mine")
    return place


TEXT = ["data=text", "data.files=[text.txt]"]
JSON = ["data=jsonl", "data.files=[ok.jsonl]"]
# Wrong input: command, arguments, and what the message must say of problem and cure.
WRONG = [
    ("train", [*TEXT, "data.cache_dir=text.txt"], "data.cache_dir cannot be made", "data.cache_dir=DIR"),
    ("prepare", [*TEXT, "data.cache_dir=text.txt/below"], "data.cache_dir cannot be made", "data.cache_dir=DIR"),
    ("prepare", [*TEXT, "data.cache_dir=/proc/none"], "data.cache_dir cannot be made", "data.cache_dir=DIR"),
    ("prepare", [*TEXT, f"data.cache_dir=/{'x' * 300}"], "data.cache_dir cannot be made", "data.cache_dir=DIR"),
    ("prepare", [*TEXT, "data.cache_dir=''"], "data.cache_dir is empty", "give a directory"),
    ("prepare", ["data.dir=''"], "data.dir is empty", "give a directory"),
    ("train", ["data=text", "data.files=[[a]]"], "data.files=[['a']]: lists in a list", "a list: [a,b]"),
    ("prepare", ["data=text", "data.files=[]"], "no text to read", "data.files=["),
    ("prepare", ["data=text", "data.files=['']"], "no file matches", "correct the path"),
    ("prepare", ["data=text", "data.files=[null]"], "data.files=[null]", "takes text"),
    ("prepare", ["data=text", "data.files=[directory.txt]"], "directory.txt is a directory", "data.files='directory.txt/*.txt'"),
    ("prepare", ["data=text", "data.files=[dangling.txt]"], "no file matches dangling.txt", "correct the path"),
    ("prepare", ["data=text", "data.files=[loop.txt]"], "no file matches loop.txt", "correct the path"),
    ("prepare", ["data=text", "data.files=[/dev/zero]"], "no file matches /dev/zero", "correct the path"),
    ("prepare", ["data=text", "data.files=[empty.txt]"], "would be empty", "more text"),
    ("prepare", ["data=text", "data.files=[one.txt]"], "would be empty", "more text"),
    ("prepare", ["data=text", "data.files=[empty.txt.gz]"], "would be empty", "more text"),
    ("prepare", ["data=text", "data.files=[garbage.txt.gz]"], "garbage.txt.gz is no whole .gz file", "fetch it"),
    ("prepare", ["data=text", "data.files=[trailing.txt.gz]"], "trailing.txt.gz is no whole .gz file", "fetch it"),
    ("prepare", ["data=text", "data.files=[cut.txt.gz]"], "cut.txt.gz is no whole .gz file", "fetch it"),
    ("prepare", ["data=text", "data.files=[garbage.txt.zst]"], "garbage.txt.zst is no whole .zst file", "fetch it"),
    ("prepare", ["data=text", "data.files=[trailing.txt.zst]"], "trailing.txt.zst is no whole .zst file", "fetch it"),
    ("prepare", ["data=text", "data.files=[cut.txt.zst]"], "cut.txt.zst is no whole .zst file", "fetch it"),
    ("prepare", [*TEXT, "data.tokenizer=gpt4"], "data.tokenizer=gpt4", "did you mean gpt2?"),
    ("prepare", [*TEXT, "data.name=../../x"], "data.name='../../x' cannot name a directory", "letters, digits"),
    ("prepare", [*TEXT, "data.source=web"], "data.source=web is not known", "stdlib, text"),
    ("train", [*TEXT, "data.shard_tokens=1"], "data.shard_tokens=1 makes no sense", "between 100 and"),
    ("prepare", [*TEXT, "data.shard_tokens=1000000000000000000"], "makes no sense", "between 100 and"),
    ("prepare", [*TEXT, "data.processes=100000"], "data.processes=100000 makes no sense", "between 1 and 1,024"),
    ("prepare", [*TEXT, "data.processes=0"], "data.processes=0 makes no sense", "between 1 and 1,024"),
    ("prepare", [*TEXT, "data.val_fraction=1e-300"], "data.val_fraction=1e-300", "at least 1e-09"),
    ("train", [*TEXT, "data.val_fraction=nan"], "data.val_fraction=nan", "more than 0, up to 1"),
    ("prepare", [*TEXT, "data.val_fraction=null"], "data.val_fraction", "a number"),
    ("prepare", ["data=text", "data.url=file:///etc/passwd"], "data.url=file:///etc/passwd is no address", "https://"),
    ("prepare", ["data=text", "data.url=ftp://x/y"], "data.url=ftp://x/y is no address", "https://"),
    ("prepare", ["data=text", "data.url=nonsense"], "data.url=nonsense is no address", "https://"),
    ("prepare", ["data=text", "data.url='http://['"], "cannot be reached", "data.files=["),
    ("prepare", ["data=text", "data.url='http://127.0.0.1:99999/'"], "cannot be reached", "data.files=["),
    ("prepare", ["data=jsonl", "data.files=[deep.jsonl]"], "deep.jsonl, line 1: nested too deeply", "JSON object"),
    ("prepare", ["data=jsonl", "data.files=[big.jsonl]"], "big.jsonl, line 1: not JSON", "JSON object"),
    ("prepare", ["data=jsonl", "data.files=[bom.jsonl]"], "bom.jsonl, line 1: not JSON", "JSON object"),
    ("prepare", ["data=jsonl", "data.files=[text.txt]"], "text.txt, line 1: not JSON", "JSON object"),
    ("prepare", ["data=jsonl", "data.files=[nan.jsonl]"], "column text holds no text: nan", "data.column"),
    ("prepare", ["data=jsonl", "data.files=[row.jsonl]"], "no column text", "no object"),
    ("prepare", ["data=jsonl", "data.files=[number.jsonl]"], "column text holds no text: 5", "data.column"),
    ("prepare", ["data=jsonl", "data.files=[null.jsonl]"], "would be empty", "more text"),
    ("prepare", [*JSON, "data.column=null"], "data.column", "takes text"),
    ("prepare", [*JSON, "data.column=n"], "column n holds no text", "data.column"),
    ("prepare", [*JSON, "data.document_start='('"], "data.document_start=( is no regular expression", "Python's re"),
    ("prepare", [*JSON, "data.document_start='*'"], "data.document_start=* is no regular expression", "Python's re"),
    ("prepare", ["data=parquet", "data.files=[empty.parquet]"], "empty.parquet is no whole parquet file", "fetch it"),
    ("prepare", ["data=parquet", "data.files=[cut.parquet]"], "cut.parquet is no whole parquet file", "fetch it"),
    ("prepare", ["data=parquet", "data.files=[flipped.parquet]"], "cannot be read", "parquet"),
    ("prepare", ["data=parquet", "data.files=[text.txt]"], "cannot be read", "a whole parquet file"),
    ("prepare", ["data=parquet", "data.files=[numbers.parquet]"], "column text holds int64", "data.column"),
    ("prepare", ["data=parquet", "data.files=[lists.parquet]"], "column text holds list", "data.column"),
    ("prepare", ["data=parquet", "data.files=[other.parquet]"], "no column text", "there: other"),
    ("prepare", ["data=bin", "data.files=[train.bin,val.bin]"], "token id 2999", "tokenizer"),
    ("prepare", ["data=bin", "data.files=[below.npy,val.bin]"], "token id -1", "tokenizer"),
    ("prepare", ["data=bin", "data.files=[train.bin,val.bin]", "data.tokenizer=chars"], "nothing of the characters", "data=text"),
    ("prepare", ["data=bin", "data.files=[val.bin]"], "1 file, of which 1 for validation", "both"),
    *[
        ("prepare", ["data=bin", f"data.files=[{name},val.bin]"], name, "")
        for name in ("odd.bin", "empty.bin", "length.bin", "garbage.npy", "empty.npy", "words.npy", "floats.npy")
    ],
    ("train", ["data.dir=noval"], "no token file at noval/val.h5", "prepare the data"),
    ("prepare", ["data.dir=text.txt"], "no token file at text.txt/train.h5", "prepare the data"),
    ("show", ["data.dir=noval"], "no token file at noval/val.h5", "prepare the data"),
    ("show", ["data.dir=noval", "verify=true"], "no token file at noval/val.h5", "prepare the data"),
    ("show", ["data.dir=own", "verify=5"], "verify=5 makes no sense", "true or false"),
    ("export", ["data.dir=noval", "format=llmc", "to=x"], "no token file at noval/val.h5", "prepare the data"),
    ("show", ["data.dir=own", "documents=-1"], "documents=-1 makes no sense", "a whole number"),
    ("show", ["data.dir=own", "documents=true"], "documents=True makes no sense", "a whole number"),
    ("show", ["data.dir=own", "png=a.xyz"], "png=a.xyz is no PNG file", "png=FILE.png"),
    ("show", ["data.dir=own", "png=''"], "png= is no PNG file", "png=FILE.png"),
    ("show", ["data.dir=own", "png=text.txt/a.png"], "text.txt/a.png cannot be written", "png=FILE"),
    ("show", ["data.dir=own", "nonsense"], "cannot read 'nonsense'", "KEY=VALUE"),
    ("export", ["data.dir=own"], "format=None is not known", "nanogpt"),
    ("export", ["data.dir=own", "format=[a]", "to=x"], "format=['a'] is not known", "nanogpt"),
    ("export", ["data.dir=own", "format=nanogpt"], "no directory", "to=DIR"),
    ("export", ["data.dir=own", "format=nanogpt", "to=[a]"], "no directory", "to=DIR"),
    ("export", ["data.dir=own", "format=nanogpt", "to=text.txt"], "text.txt cannot be written", "to=DIR"),
    ("export", ["data.dir=own", "format=nanogpt", "to=text.txt/x"], "text.txt/x cannot be written", "to=DIR"),
    ("export", ["data.dir=own", "format=llmc", "to=/proc/none"], "/proc/none cannot be written", "to=DIR"),
    ("export", ["data.dir=own", "format=nanogpt", "to=exported"], "exported/val.bin is there already", "to=DIR"),
]  # fmt: skip


def said(command: str, arguments: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """The exit code of a command, run in this process, and what it said on stderr."""
    monkeypatch.setattr("sys.argv", [command, *arguments])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if command == "train":
        return cli.run(train), capsys.readouterr().err
    module = getattr(data, command)
    return cli.script(module.main, module.__doc__), capsys.readouterr().err


@pytest.mark.parametrize(
    "command, arguments, problem, cure", WRONG, ids=[f"{w[0]} {' '.join(w[1])[:80]}" for w in WRONG]
)
def test_a_wrong_command_is_refused(command, arguments, problem, cure, place, cache, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setattr(data.preparation, "ROOT", place)
    place_of_run = [f"hydra.run.dir={tmp_path}/run"] if command == "train" else []
    arguments = [f"data.cache_dir={tmp_path}", "data.tokenizer=bytes", *place_of_run, *arguments]
    before = sorted(place.rglob("*"))
    code, words = said(command, arguments, monkeypatch, capsys)
    first, _, rest = words.partition("\n")
    assert code == 2, words
    assert problem in first
    assert cure in rest
    assert len(words.strip().splitlines()) <= 4, words
    assert sorted(place.rglob("*")) == before
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != ".verified"}
    assert left <= {"train.h5", "val.h5", "manifest.json"}, left  # whole data that does not fit the run may stay
    assert not (tmp_path / "run").exists()


def test_text_with_nul_bytes_is_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\0def\n" * 99)
    train, _ = prepare(compose(["data=text", f"data.files=[{tmp_path}/a.txt]", f"data.cache_dir={tmp_path}/c"]).data)
    assert train.reader()(0, 9).tolist() == [256, *b"abc\0def\n"]


def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some words")
    path.chmod(0)
    user = os.geteuid()
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    try:
        if user == 0:  # who may read everything
            os.seteuid(65534)
        with pytest.raises(InputError, match=r"a.txt may not be read"):
            files.match_files([str(path)])
    finally:
        os.seteuid(user)


def test_a_line_and_a_document_that_memory_may_not_hold_are_refused(place, tmp_path, monkeypatch):
    overrides = ["data=jsonl", "data.tokenizer=bytes", f"data.cache_dir={tmp_path}"]
    monkeypatch.setattr(jsonl, "MAX_DOCUMENT", 50_000)
    monkeypatch.setattr(pieces, "MAX_DOCUMENT", 50_000)
    with pytest.raises(InputError, match=r"long.jsonl, line 1 is longer than 50,000 bytes"):
        prepare(compose([*overrides, f"data.files=[{place}/long.jsonl]"]).data)
    with pytest.raises(InputError, match=r"data.document_start=never begins no document in"):
        prepare(compose([*overrides, f"data.files=[{place}/ok.jsonl]", "data.document_start=never"]).data)


def test_a_small_compressed_file_may_be_large(tmp_path):
    """A bomb: 200 MB of zeros in some kilobytes come in pieces."""
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(200_000_000)))
    assert path.stat().st_size < 50_000
    with files.open_file(path) as file:
        assert len(file.read(1000)) == 1000
        assert len(file.raw.content) < 70_000_000
        assert 1000 + sum(len(raw) for raw in iter(lambda: file.read(1 << 20), b"")) == 200_000_000


def test_too_many_shards_are_refused_and_taken_away(place, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARDS", 20)
    overrides = [*TEXT[:1], f"data.files=[{place}/text.txt]", "data.shard_tokens=100", f"data.cache_dir={tmp_path}"]
    with pytest.raises(InputError, match=r"data.shard_tokens=100 makes more than 20 files of train"):
        prepare(compose(overrides).data)
    assert not list(tmp_path.iterdir())


def test_a_fetched_text_is_that_of_its_url_and_hash(tmp_path):
    text = "text from afar " * 40
    config = compose(["data=text", "data.url=http://127.0.0.1:9/a", f"data.cache_dir={tmp_path}"])
    source = TextFiles(config.data, tmp_path)
    source.fetched.write_text(text)
    assert source.paths == [source.fetched]
    other = compose(["data=text", "data.url=http://127.0.0.1:9/b", f"data.cache_dir={tmp_path}"])
    with pytest.raises(InputError, match="cannot be reached"):
        prepare(other.data)
    config.data.sha256 = "0" * 64
    with pytest.raises(InputError, match=rf"{source.fetched.name} is not the text that was fetched"):
        prepare(config.data)
