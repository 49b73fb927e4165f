"""Tokens from elsewhere and to elsewhere: nanoGPT's, build-nanogpt's and llm.c's files, HDF5 of a user's own."""

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import call

from data.preparation import prepare
from data.sources import tokenbin
from gpt.cli.compose import compose
from gpt.errors import InputError
from gpt.tokens.tokenfile import open_tokens

EOT = 50256


def module(name: str, *arguments: str, cwd: Path, vocabulary: Path) -> subprocess.CompletedProcess:
    return call(*arguments, cwd=cwd, script=name, env={"TIKTOKEN_CACHE_DIR": str(vocabulary)})


def drawn(n: int, seed: int) -> np.ndarray:
    """Ids of documents of some 40 tokens, end-of-text first."""
    draws = np.random.default_rng(seed)
    ids = draws.integers(0, EOT, n).astype("<u2")
    ids[draws.random(n) < 0.025] = EOT
    ids[:2] = EOT, 1
    return ids


def llmc(ids: np.ndarray) -> bytes:
    """As llm.c's write_datafile does: a header of 256 int32, then the tokens."""
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, len(ids)
    return header.tobytes() + ids.astype(np.uint16).tobytes()


def prepared(tmp_path, *overrides):
    return prepare(compose(["data=bin", f"data.cache_dir={tmp_path}/c", *overrides]).data)


def test_nanogpt_bin_to_hdf5_and_back_is_the_same_bytes(tmp_path, gpt2_vocabulary):
    source = tmp_path / "openwebtext"
    source.mkdir()
    streams = {"train": np.roll(drawn(30_000, 1), -1), "val": np.roll(drawn(3_000, 2), -1)}  # end-of-text last
    for split, ids in streams.items():
        ids.tofile(source / f"{split}.bin")
    overrides = [
        "data=bin",
        f"data.files=['{source}/*.bin']",
        "data.shard_tokens=7_001",
        f"data.cache_dir={tmp_path}/c",
    ]
    done = module(
        "data.export", *overrides, "format=nanogpt", f"to={tmp_path}/out", cwd=tmp_path, vocabulary=gpt2_vocabulary
    )
    assert done.returncode == 0, done.stderr
    files = f"[{tmp_path}/out/train.bin,{tmp_path}/out/val.bin]"
    assert done.stdout.endswith(f"python train.py data=bin 'data.files={files}' data.tokenizer=gpt2\n")
    assert "warning" not in done.stdout
    for split in streams:
        assert (tmp_path / "out" / f"{split}.bin").read_bytes() == (source / f"{split}.bin").read_bytes()
    train, val = prepared(tmp_path, *overrides)
    assert len(train.shards) == 5
    for file, split in ((train, "train"), (val, "val")):
        ids = streams[split]
        after = np.flatnonzero(ids[:-1] == EOT) + 1
        assert np.array_equal(file.doc_offsets(), np.concatenate([[0], after]))


@pytest.mark.parametrize("tokenizer", ["gpt2", "bytes"])
def test_ids_that_may_be_bytes_are_not_read_as_gpt2_in_silence(tokenizer, tmp_path, gpt2_vocabulary, capsys):
    for split in ("train", "val"):
        np.frombuffer(b"text " * 99, np.uint8).astype("<u2").tofile(tmp_path / f"{split}.bin")
    prepared(tmp_path, f"data.files=['{tmp_path}/*.bin']", f"data.tokenizer={tokenizer}")
    assert ("if they are bytes, give data.tokenizer=bytes" in capsys.readouterr().out) == (tokenizer == "gpt2")


def test_llmc_bin_to_hdf5_and_back_is_the_same_bytes(tmp_path, gpt2_vocabulary):
    source = tmp_path / "fineweb10B"
    source.mkdir()
    shards = {"val_000000": drawn(1_000, 0), "train_000001": drawn(1_000, 1), "train_000002": drawn(1_000, 2),
              "train_000003": drawn(321, 3)}  # fmt: skip
    for name, ids in shards.items():
        (source / f"fineweb_{name}.bin").write_bytes(llmc(ids))
    overrides = ["data=bin", "data.name=fineweb", f"data.files=['{source}/*.bin']", "data.shard_tokens=1_000"]
    done = module("data.export", *overrides, f"data.cache_dir={tmp_path}/c", "format=llmc", f"to={tmp_path}/out",
                  cwd=tmp_path, vocabulary=gpt2_vocabulary)  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written == {
        f"fineweb_{split}_{number:06}.bin": (source / f"fineweb_{name}.bin").read_bytes()
        for (split, number), name in zip([("val", 0), ("train", 0), ("train", 1), ("train", 2)], shards, strict=True)
    }
    train, _ = prepared(tmp_path, *overrides)
    ids = np.concatenate([shards[f"train_00000{i}"] for i in (1, 2, 3)])
    assert np.array_equal(train.doc_offsets(), np.flatnonzero(ids == EOT))


def test_build_nanogpts_npy_shards_are_read(tmp_path, gpt2_vocabulary):
    shards = {"val_000000": drawn(500, 0), "train_000001": drawn(500, 1), "train_000002": drawn(77, 2)}
    for name, ids in shards.items():
        np.save(tmp_path / f"edufineweb_{name}.npy", ids.astype(np.uint16))
    train, val = prepared(tmp_path, f"data.files=['{tmp_path}/*.npy']")
    assert np.array_equal(val.reader()(0, 500), shards["val_000000"])
    expected = np.concatenate([shards["train_000001"], shards["train_000002"]])
    assert np.array_equal(train.reader()(0, 577), expected)


def test_long_files_are_read_block_by_block(tmp_path, gpt2_vocabulary, monkeypatch):
    ids = np.roll(drawn(3_000, 1), -1)
    ids.tofile(tmp_path / "train.bin")
    ids[:100].tofile(tmp_path / "val.bin")
    whole, _ = prepared(tmp_path / "a", f"data.files=['{tmp_path}/*.bin']")
    monkeypatch.setattr(tokenbin, "BLOCK", 17)
    in_blocks, _ = prepared(tmp_path / "b", f"data.files=['{tmp_path}/*.bin']")
    assert Path(whole.path).read_bytes() == Path(in_blocks.path).read_bytes()


WRONG = [
    ({"train.bin": b"\1\0" * 50}, [], "1 file, of which 0 for validation", "val in their name"),
    ({"train.bin": b"\1\0" * 50, "val.bin": b"\1\0\1"}, [], "val.bin has 3 bytes", "two bytes"),
    ({"train.bin": llmc(drawn(50, 1))[:-2], "val.bin": b"\1\0"}, [], "version 1 with 50 tokens, and has 1,122 bytes", "1,124 bytes"),
    ({"train.npy": b"no array", "val.bin": b"\1\0"}, [], "is no array of numpy", "fetch it again"),
    ({"train.bin": b"\xff\xff" * 50, "val.bin": b"\1\0" * 9}, [], "token id 65535 in bin is not in the vocabulary", "tokenizer"),
    ({"train.bin": b"\1\0" * 50, "val.bin": b"\1\0"}, ["data.tokenizer=chars"], "says nothing of the characters", "data=text"),
    ({}, ["data.files=[]"], "data=bin has nothing to read", "data.files=['*.bin']"),
]  # fmt: skip


@pytest.mark.parametrize("contents, overrides, problem, cure", WRONG, ids=[wrong[2] for wrong in WRONG])
def test_wrong_tokens_are_refused(contents, overrides, problem, cure, tmp_path, gpt2_vocabulary):
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, f"data.files=['{tmp_path}/*.*']", *overrides)
    assert problem in caught.value.problem
    assert cure in caught.value.cure


@pytest.mark.parametrize("arguments, problem, cure", [
    (["format=gguf", "to=x"], "format=gguf is not known", "nanogpt, llmc"),
    (["to=x"], "format=None is not known", "nanogpt, llmc"),
    (["format=llmc"], "no directory to write to", "to=DIR"),
])  # fmt: skip
def test_a_wrong_export_is_refused(arguments, problem, cure, tmp_path):
    done = module("data.export", *arguments, cwd=tmp_path, vocabulary=tmp_path)
    assert done.returncode == 2
    assert problem in done.stderr.splitlines()[0]
    assert cure in done.stderr.splitlines()[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_data_is_shown_with_its_provenance_and_a_plot(tmp_path, text_file, gpt2_vocabulary):
    overrides = ["data=text", f"data.files=[{text_file}]", "data.tokenizer=gpt2", f"data.cache_dir={tmp_path}/c"]
    missing = module("data.show", *overrides, cwd=tmp_path, vocabulary=gpt2_vocabulary)
    assert missing.returncode == 2
    assert "no token file at" in missing.stderr
    train, val = prepare(compose(overrides).data)
    done = module("data.show", *overrides, "documents=1", f"png={tmp_path}/plots/show.png", cwd=tmp_path,
                  vocabulary=gpt2_vocabulary)  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((Path(train.path).parent / "manifest.json").read_text())
    for part in (str(Path(train.path).parent), "from text: 1 file", f"gigatoken {manifest['versions']['gigatoken']}",
                 f"{train.n_tokens:,}", f"{val.n_tokens:,}", "document at token 0", "more\n", "of 50,257 tokens"):  # fmt: skip
        assert part in done.stdout, part
    assert (tmp_path / "plots" / "show.png").read_bytes().startswith(b"\x89PNG")
    wrong = module("data.show", *overrides, "documents=-1", cwd=tmp_path, vocabulary=gpt2_vocabulary)
    assert "documents=-1 makes no sense" in wrong.stderr


def test_a_chunked_and_compressed_file_of_ones_own_trains_as_a_contiguous_one(trainer, small, tmp_path):
    reference = trainer("trainer.max_steps=3", "sample.tokens=0")
    own = tmp_path / "own"
    own.mkdir()
    for split, file in (
        ("train", reference.stepper.dataset.windows.file),
        ("val", reference.tasks["val"].windows.file),
    ):
        with h5py.File(own / f"{split}.h5", "w") as made:
            made.create_dataset("tokens", data=file.reader()(0, file.n_tokens), chunks=(1000,), compression="gzip")
            made.attrs.update({"tokenizer": "bytes", "vocab_size": 257})
    assert open_tokens(own / "train.h5").shards[0].offset is None
    run = trainer("trainer.max_steps=3", "sample.tokens=0", f"data.dir={own}")
    assert run.fit()["val_loss"] == reference.fit()["val_loss"]
    assert run.state.progress.order_hash == reference.state.progress.order_hash
    with_workers = trainer("trainer.max_steps=3", "sample.tokens=0", f"data.dir={own}", "data.num_workers=1")
    measurement = reference.tasks["val"].measure(reference.state.model, 3, reference.compute)
    assert with_workers.fit()["val_loss"] == measurement.metrics["val/loss"]
