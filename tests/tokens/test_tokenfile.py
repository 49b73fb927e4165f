"""The HDF5 token file: what is written is what is read, and nothing else is accepted."""

import time

import h5py
import numpy as np
import pytest

from data.tokenwriter import TokenWriter
from gpt.errors import InputError
from gpt.tokens.tokenfile import open_tokens


def write(path, documents, vocab_size=300, tokenizer="bytes", chars=None):
    with TokenWriter(
        path, tokenizer=tokenizer, vocab_size=vocab_size, chars=chars, source="test", split="train"
    ) as writer:
        for document in documents:
            writer.add_document(np.array(document))
    return path


DOCUMENTS = [[256, 1, 2, 3], [256, 4], [256, *range(200)]]


@pytest.mark.parametrize("vocab_size, dtype", [(300, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_round_trip(tmp_path, vocab_size, dtype):
    path = write(tmp_path / "a.h5", DOCUMENTS, vocab_size)
    file = open_tokens(path)
    flat = np.concatenate(DOCUMENTS)
    assert (file.dtype, file.n_tokens, file.vocab_size, file.tokenizer) == (dtype, len(flat), vocab_size, "bytes")
    for read in ("mmap", "pread"):
        ids = file.reader(read)
        assert np.array_equal(ids(0, len(flat)), flat)
        assert np.array_equal(ids(3, 9), flat[3:9])
    with h5py.File(path) as held:
        assert held["doc_offsets"][:].tolist() == [0, 4, 6]
        assert held["tokens"].chunks is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_equal_input_gives_equal_bytes(tmp_path):
    first = write(tmp_path / "a.h5", DOCUMENTS).read_bytes()
    time.sleep(1.1)  # HDF5 could store the second in which it was written
    assert write(tmp_path / "b.h5", DOCUMENTS).read_bytes() == first


def test_alphabet_is_kept_whatever_its_size(tmp_path):
    chars = "".join(chr(i) for i in range(0x4E00, 0x4E00 + 30_000))
    path = write(tmp_path / "a.h5", [[1, 2]], vocab_size=30_000, tokenizer="chars", chars=chars)
    assert open_tokens(path).chars == chars


def test_chunked_and_compressed_files_are_read_too(tmp_path):
    path = tmp_path / "own.h5"
    ids = np.arange(5000) % 257
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", data=ids.astype("u2"), chunks=(512,), compression="gzip")
        file.attrs.update(tokenizer="bytes", vocab_size=257)
    file = open_tokens(path)
    assert file.shards[0].offset is None
    assert np.array_equal(file.reader("mmap")(700, 1300), ids[700:1300])
    contiguous = tmp_path / "own2.h5"
    with h5py.File(contiguous, "w") as other:
        other.create_dataset("tokens", data=ids.astype("u2"))
        other.attrs.update(tokenizer="bytes", vocab_size=257)
    assert open_tokens(contiguous).sha256 == file.sha256


def test_an_id_beyond_the_vocabulary_is_refused_when_written(tmp_path):
    with pytest.raises(InputError, match=r"token id 300 .* vocabulary of 300"):
        write(tmp_path / "a.h5", [[1, 300]])
    assert list(tmp_path.iterdir()) == []


def test_an_id_beyond_the_vocabulary_is_refused_when_opened(tmp_path):
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        file["tokens"] = np.array([1, 2, 500], "u2")
        file.attrs.update(tokenizer="bytes", vocab_size=257)
    with pytest.raises(InputError, match=r"token id 500, and its vocabulary ends at 256"):
        open_tokens(path)


def truncated(path):
    whole = write(path, [list(range(200)) * 500]).read_bytes()
    path.write_bytes(whole[:-1000])


def not_hdf5(path):
    path.write_text("no tokens here")


def without_tokens(path):
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)


def of_another_layout(path):
    with h5py.File(write(path, DOCUMENTS), "a") as file:
        file.attrs["layout"] = 99


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: None, "no token file"),
        (truncated, "a.h5"),
        (not_hdf5, "no whole HDF5 file"),
        (without_tokens, "not a token file: no one-dimensional integer dataset tokens, no attribute tokenizer"),
        (of_another_layout, "layout 99"),
    ],
)
def test_missing_truncated_and_foreign_files_are_refused(tmp_path, spoil, said):
    spoil(tmp_path / "a.h5")
    with pytest.raises(InputError, match=said):
        open_tokens(tmp_path / "a.h5")
