"""Every file of prepared data, damaged in every way: refused by name, or made again with the same bytes."""

import hashlib
import os
import random
import re
import shutil
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

import data.preparation
import data.verified
from data import pieces
from data.preparation import prepare
from data.shards import JOURNAL
from data.sources import jsonl
from data.tokenwriter import LostProgress, TokenWriter
from data.verified import NOTES
from gpt.cli.compose import compose
from gpt.cli.run_checks import check_and_prepare
from gpt.errors import InputError
from gpt.files import lock_or_wait
from gpt.tokens.tokenfile import open_tokens


def flipped(seed: int):
    """A function that flips a few bits of a file in its first 4 kB, where headers are."""

    def flip(path: Path) -> None:
        raw, draws = bytearray(path.read_bytes()), random.Random(seed)
        for _ in range(4):
            raw[draws.randrange(min(len(raw), 4096))] ^= 1 << draws.randrange(8)
        path.write_bytes(raw)

    return flip


def directory_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


DAMAGE = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "garbage": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
    "json": lambda path: path.write_text('{"splits": [1, 2]}'),
    "removed": lambda path: path.unlink(),
    "directory": directory_in_its_place,
    "dangling": link_to_nothing,
    **{f"flipped {seed}": flipped(seed) for seed in range(12)},
}


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> tuple[Path, list[str]]:
    """A directory of prepared data in several shards, and the overrides that it was made with."""
    home = tmp_path_factory.mktemp("sharded")
    for i in range(200):
        (home / f"{i:03}.txt").write_text(f"document {i} " * (i % 7 + 1))
    overrides = ["data=text", f"data.files=['{home}/*.txt']", "data.shard_tokens=5000", f"data.cache_dir={home}/c",
                 "model.seq_len=16"]  # fmt: skip
    train, _ = prepare(compose(overrides).data)
    return Path(train.path).parent, overrides


def everything(directory: Path) -> list[np.ndarray]:
    """Tokens and documents of both splits."""
    files = [open_tokens(directory / f"{split}.h5") for split in ("train", "val")]
    return [values for file in files for values in (np.array(file.reader()(0, file.n_tokens)), file.doc_offsets())]


FILES = ["manifest.json", "train.h5", "val.h5", "train_00000.h5", "train_00001.h5"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_name_or_made_again(name, sharded, tmp_path):
    directory, overrides = sharded
    config, sound, expected = compose(overrides), hashes(directory), everything(directory)
    copy = tmp_path / "sound"
    shutil.copytree(directory, copy)
    refused = set()
    for kind, damage in DAMAGE.items():
        damage(directory / name)
        before = sorted(directory.iterdir())
        try:
            check_and_prepare(config, None)
        except InputError as error:
            refused.add(kind)
            assert name in error.problem, kind
            assert "delete it" in error.cure, kind
            assert sorted(directory.iterdir()) == before, kind
            with pytest.raises(InputError, match=name):
                data.preparation.open_prepared(config.data, directory)  # as data.show does
        else:  # it was made again, or what was damaged does not matter
            assert all(map(np.array_equal, everything(directory), expected)), kind
            assert kind.startswith("flipped") or set(hashes(directory)) == set(sound), kind
        shutil.rmtree(directory)
        shutil.copytree(copy, directory)
    assert refused >= {"emptied", "cut", "zeros", "garbage", "directory"}
    assert len(refused) > 6
    check_and_prepare(config, None)


def own(directory: Path, ids: np.ndarray | None = None, **beside) -> Path:
    """A directory of token files of a user's own, with these attributes, or datasets where they are arrays."""
    directory.mkdir()
    for split in ("train", "val"):
        with h5py.File(directory / f"{split}.h5", "w") as file:
            file["tokens"] = np.arange(5000, dtype="u2") % 257 if ids is None else ids
            for name, value in ({"tokenizer": "bytes", "vocab_size": 257} | beside).items():
                if name in ("loss_mask", "doc_offsets", "chars"):
                    file[name] = value
                elif value is not None:
                    file.attrs[name] = value
    return directory


OWN = {
    "no vocab_size": ({"vocab_size": None}, "no attribute vocab_size"),
    "vocab_size is text": ({"vocab_size": "many"}, "attribute vocab_size is 'many'"),
    "vocab_size is a row": ({"vocab_size": [257, 257]}, "attribute vocab_size is array"),
    "vocab_size below 0": ({"vocab_size": -5}, "attribute vocab_size is"),
    "vocab_size is huge": ({"vocab_size": 10**15}, "its tokenizer bytes has 257"),
    "vocab_size too small": ({"vocab_size": 256, "ids": np.arange(5000) % 9}, "its tokenizer bytes has 257"),
    "tokenizer is a number": ({"tokenizer": 5}, "attribute tokenizer is"),
    "tokenizer is not UTF-8": ({"tokenizer": b"\xff\xfe"}, "attribute tokenizer is"),
    "tokenizer is unknown": ({"tokenizer": "llama"}, "tokenizer 'llama' is not known"),
    "layout is text": ({"layout": "x"}, "attribute layout is 'x'"),
    "sha256 is a number": ({"sha256": 5, "max_id": 256}, "attribute sha256 is"),
    "sha256 is another": ({"sha256": "0" * 64, "max_id": 256}, "not those that were written"),
    "max_id is text": ({"sha256": "0" * 64, "max_id": "x"}, "attribute max_id is 'x'"),
    "max_id lies": ({"max_id": 3, "ids": np.arange(5000) % 300}, "token id 299"),
    "ids below 0": ({"ids": np.arange(5000) % 9 - 3}, "token id -3"),
    "no tokens": ({"ids": np.zeros(0, "u2")}, "holds no tokens"),
    "tokens are a table": ({"ids": np.zeros((50, 50), "u2")}, "no one-dimensional integer dataset tokens"),
    "mask too short": ({"loss_mask": np.ones(7, "u1")}, "dataset loss_mask is not"),
    "mask of floats": ({"loss_mask": np.ones(5000)}, "dataset loss_mask is not"),
    "mask is another": ({"loss_mask": np.ones(5000, "u1"), "mask_sha256": "0" * 64}, "its loss_mask is not what"),
    "documents descend": ({"doc_offsets": np.array([0, 900, 10])}, "its doc_offsets do not ascend"),
    "documents below 0": ({"doc_offsets": np.array([-7, 900])}, "its doc_offsets do not ascend"),
    "documents beyond the end": ({"doc_offsets": np.array([0, 90_000])}, "its doc_offsets do not ascend"),
    "documents of floats": ({"doc_offsets": np.array([0.5])}, "dataset doc_offsets is not"),
    "alphabet is not UTF-8": ({"tokenizer": "chars", "chars": np.full(257, 255, "u1")}, "chars is no alphabet"),
    "alphabet is too small": ({"tokenizer": "chars", "chars": np.full(2, 97, "u1")}, "chars is no alphabet"),
    "alphabet is twice the same": ({"tokenizer": "chars", "chars": np.full(257, 97, "u1")}, "chars is no alphabet"),
}


@pytest.mark.parametrize("kind", OWN)
def test_a_wrong_file_of_ones_own_is_refused(kind, tmp_path):
    beside, problem = OWN[kind]
    directory = own(tmp_path / "own", **beside)
    config = compose([f"data.dir={directory}", f"data.cache_dir={tmp_path}/c", "model.seq_len=16"])
    with pytest.raises(InputError, match=f"(?s){re.escape(str(directory))}.*{re.escape(problem)}|{problem}"):
        check_and_prepare(config, None)


def test_shards_of_another_kind_are_refused(tmp_path, sharded):
    directory, overrides = sharded
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    n_tokens = open_tokens(copy / "train_00001.h5").n_tokens
    config = compose([*overrides, f"data.dir={copy}"])
    for dtype, problem in [("u4", "is no shard of"), ("u2", "not those that manifest.json says")]:
        with h5py.File(copy / "train_00001.h5", "w") as file:
            file["tokens"] = np.zeros(n_tokens, dtype)
            file["doc_offsets"] = np.zeros(1, np.int64)
            file.attrs.update(tokenizer="bytes", vocab_size=257)
        with pytest.raises(InputError, match=rf"train_00001.h5 .*{problem}"):
            check_and_prepare(config, None)
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"train.h5 is damaged: its tokens are not those that were written"):
        check_and_prepare(config, None)


def test_tokens_are_read_once_and_again_where_they_have_changed(tmp_path, monkeypatch):
    directory = own(tmp_path / "own")
    config = compose([f"data.dir={directory}", f"data.cache_dir={tmp_path}/c", "model.seq_len=16"])
    read, calls = data.verified.read_shards, []
    monkeypatch.setattr(data.verified, "read_shards", lambda *given: calls.append(given) or read(*given))
    first = prepare(config.data)
    assert len(calls) == 2
    assert prepare(config.data) == first
    assert len(calls) == 2
    with h5py.File(directory / "val.h5", "a") as file:
        file["tokens"][7] = 99
    assert prepare(config.data)[1].sha256 != first[1].sha256
    assert len(calls) == 3
    for damage in ("emptied", "garbage", "json", "removed", "directory"):
        for note in (tmp_path / "c" / NOTES).iterdir():
            DAMAGE[damage](note)
        calls.clear()
        assert prepare(config.data)[0] == first[0]
        assert len(calls) == 2, damage
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").write_text("")  # nothing can be remembered there
    assert prepare(config.data)[0] == first[0]


def test_a_flipped_bit_anywhere_in_tokens_mask_and_documents_is_found(tmp_path):
    overrides = ["data=addition", "data.digits=1", "data.problems=50", "data.val_problems=20", "model.seq_len=16"]
    config = compose([*overrides, f"data.cache_dir={tmp_path}"])
    train, _ = prepare(config.data)
    path, draws = Path(train.path), random.Random(1)
    whole = path.read_bytes()
    with h5py.File(path) as file:
        places = [(file[name].id.get_offset(), file[name].nbytes) for name in ("tokens", "loss_mask", "doc_offsets")]
    for offset, size in places:
        for _ in range(5):
            raw = bytearray(whole)
            raw[offset + draws.randrange(size)] ^= 1 << draws.randrange(8)
            path.write_bytes(raw)
            with pytest.raises(InputError, match=r"train.h5 (is damaged: its|holds token id)"):
                check_and_prepare(config, None)
    path.write_bytes(whole)
    check_and_prepare(config, None)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, list[str], dict[str, str]]:
    """A preparation that was killed after some shards, its overrides, and what it would have written."""
    home = tmp_path_factory.mktemp("interrupted")
    (home / "a.jsonl").write_text("".join(f'{{"text": "document {i} of some words"}}\n' * 9 for i in range(400)))
    overrides = ["data=jsonl", f"data.files=[{home}/a.jsonl]", "data.tokenizer=bytes", "data.shard_tokens=20_000"]
    whole = hashes(Path(prepare(compose([*overrides, f"data.cache_dir={home}/whole"]).data)[0].path).parent)
    write, written = data.preparation.write_journal, []

    def kill(*arguments):
        write(*arguments)
        written.append(arguments)
        if len(written) == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.preparation, "write_journal", kill)
        patch.setattr(data.preparation, "COMMIT_TOKENS", 12_000)
        patch.setattr(pieces, "BATCH_CHARS", 6_000)
        with pytest.raises(Killed):
            prepare(compose([*overrides, f"data.cache_dir={home}/killed"]).data)
    (directory,) = (home / "killed").glob("[!.]*")
    return directory, overrides, whole


SPOOL = ".train_00001.h5.tokens"
LEFT = [JOURNAL, SPOOL, ".val_00000.h5.doc_offsets", "train_00000.h5"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("kind", ["emptied", "cut", "garbage", "removed", "directory", "sound"])
def test_a_preparation_that_was_damaged_begins_anew(name, kind, interrupted, tmp_path, capsys):
    killed, overrides, whole = interrupted
    directory = tmp_path / killed.name
    shutil.copytree(killed, directory)
    if kind != "sound":
        DAMAGE[kind](directory / name)
    prepare(compose([*overrides, f"data.cache_dir={tmp_path}"]).data)
    assert {**hashes(directory), "manifest.json": ""} == {
        **whole,
        "manifest.json": "",
    }  # whose cursors depend on batches
    begins_anew = "the preparation begins anew" in capsys.readouterr().out
    assert begins_anew == (kind != "sound" and (name, kind) != (JOURNAL, "removed"))


def test_raw_files_are_not_filled_up(tmp_path):
    about = {"tokenizer": "bytes", "vocab_size": 257, "chars": None, "source": "test", "split": "train"}
    writer = TokenWriter(tmp_path / "a.h5", **about)
    writer.add_document(np.arange(50))
    held = writer.sync()
    spool = tmp_path / ".a.h5.tokens"
    spool.write_bytes(spool.read_bytes()[:-2])
    with pytest.raises(LostProgress, match=r"a.h5.tokens is not what was written"):
        TokenWriter(tmp_path / "a.h5", **about, state=held)


@pytest.mark.parametrize("revision", [None, "abc"])
def test_what_came_from_a_hub_outlives_a_refusal(revision, interrupted, tmp_path, monkeypatch):
    """Such as one for want of a login; of files here, which are other files once they are mended, nothing is kept."""
    killed, overrides, _ = interrupted
    directory = tmp_path / killed.name
    shutil.copytree(killed, directory)

    def refuse(*arguments):
        raise InputError("no login", "log in")

    monkeypatch.setattr(jsonl.JsonLines, "resolve", lambda source: setattr(source, "revision", revision))
    monkeypatch.setattr(jsonl.JsonLines, "rows", refuse)
    with pytest.raises(InputError, match="no login"):
        prepare(compose([*overrides, f"data.cache_dir={tmp_path}"]).data)
    assert directory.exists() == (revision is not None)
    assert revision is None or hashes(directory).keys() == hashes(killed).keys()


def test_who_waits_for_another_command_says_so(tmp_path, capsys):
    """And waits for nobody who verifies other data."""
    holder, other, same = (os.open(tmp_path / name, os.O_RDONLY | os.O_CREAT) for name in ("a", "b", "a"))
    lock_or_wait(holder, "nobody")
    lock_or_wait(other, "nobody")
    freed = threading.Timer(0.2, os.close, [holder])
    freed.start()
    lock_or_wait(same, "another command verifies a")
    assert capsys.readouterr().out == "waiting: another command verifies a\n"
