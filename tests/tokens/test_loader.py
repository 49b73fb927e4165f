"""The loader yields whole optimizer steps."""

import h5py
import numpy as np
import pytest
import torch

from gpt.errors import InputError
from gpt.tokens.loader import OrderedSampler, TokenDataset, micro_batches, step_batches
from gpt.tokens.order import SampleOrder
from gpt.tokens.tokenfile import TokenFile, open_tokens
from gpt.tokens.windows import KINDS, open_windows

T = 8
STAGES = [(0, 4 * T), (8 * T, 8 * T)]  # two steps of 4 samples, then steps of 8


@pytest.fixture
def tokens(tmp_path) -> TokenFile:
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["tokens"] = (np.arange(3000) * 7919 % 251).astype("u2")
        file.attrs.update({"tokenizer": "bytes", "vocab_size": 257})
    return open_tokens(tmp_path / "own.h5")


@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_every_step_has_its_size_and_its_micro_batches(tokens, rank, world_size):
    def sampler() -> OrderedSampler:
        dataset = TokenDataset(SampleOrder(1, open_windows(tokens, T, "packed", "mmap")))
        return OrderedSampler(
            dataset, consumed=4, steps=3, stages=STAGES, micro_batch_size=2, rank=rank, world_size=world_size
        )

    expected = list(micro_batches(sampler(), 0, pin_memory=False))
    read, sizes = [], []
    for step in step_batches(sampler(), 0, pin_memory=False):
        batches = list(step.micro_batches)
        assert len(batches) == step.n_micro_batches == step.n_samples // (2 * world_size)
        sizes.append(step.n_samples)
        read += batches
    assert sizes == [4, 8, 8]
    assert torch.equal(torch.stack(read), torch.stack(expected))


def test_a_file_that_knows_no_documents_has_packed_windows_alone(tokens):
    for documents in KINDS:
        windows = open_windows(tokens, T, documents, "mmap")
        if documents == "packed":
            windows.check_documents()
        else:
            with pytest.raises(InputError, match=f"data.documents={documents}, and .* does not say where"):
                windows.check_documents()
