"""What comparable runs share beside their configs: code, torch, machines, masks."""

import copy
import re
from hashlib import sha256

import h5py
import numpy as np
import pytest
import torch
from made_up import make_run
from test_compare import warned

from data.tokenwriter import TokenWriter
from gpt.files import write_json
from gpt.rundir import read_about
from gpt.tokens.tokenfile import data_fingerprint, data_masks, open_tokens
from gpt.tracker.provenance import DIFF, write_about

START = {
    "step": 0,
    "world_size": 1,
    "git": {"commit": "a" * 40, "changed": False, "diff_sha256": None},
    "versions": {"torch": "2.13.0+cpu"},
    "machine": {"cpu": "AMD EPYC", "gpus": []},
    "torch": {"threads": 2, "deterministic": False},
}
MASKS = {"loss_mask": "a-b", "documents": "c-d"}


def start(**changes):
    """A start as about.json holds it, with other values in its sections."""
    changed = copy.deepcopy(START)
    for key, value in changes.items():
        if isinstance(value, dict):
            changed[key] |= value
        else:
            changed[key] = value
    return changed


def with_starts(path, *starts):
    write_json(path / "about.json", {"layout": 1, "starts": list(starts)})
    return path


@pytest.mark.parametrize(
    "changes, warning",
    [
        ({}, ""),
        ({"git": {"commit": "b" * 40}}, "different code: aaaaaaa (seed 1); bbbbbbb (seed 2)"),
        (
            {"git": {"changed": True, "diff_sha256": "c" * 64}},
            "different code: aaaaaaa (seed 1); aaaaaaa with uncommitted changes ccccccc (seed 2)",
        ),
        ({"git": {"changed": True}}, "different code: aaaaaaa (seed 1); aaaaaaa with uncommitted changes (seed 2)"),
        ({"git": None}, ""),  # not known
        (
            {"versions": {"torch": "2.12.0"}},
            "different versions of torch: 2.13.0+cpu (seed 1); 2.12.0 (seed 2)",
        ),
        ({"machine": {"cpu": "Xeon"}}, "different processors: AMD EPYC (seed 1); Xeon (seed 2)"),
        ({"machine": {"gpus": ["H100"] * 2}}, "different processors: AMD EPYC (seed 1); H100 (seed 2)"),
        ({"torch": {"threads": 1}}, "different numbers of threads: 2 (seed 1); 1 (seed 2)"),
        ({"world_size": 2}, "different numbers of ranks: 1 (seed 1); 2 (seed 2)"),
        (
            {"torch": {"deterministic": True}},
            "different algorithms: any (seed 1); only deterministic ones (seed 2)",
        ),
    ],
)
def test_what_no_config_says_is_named_in_a_line(tmp_path, changes, warning):
    """Between arms by their labels, and within an arm by runs."""
    one = with_starts(make_run(tmp_path / "one", "model.vocab_multiple=64"), START)
    two = with_starts(make_run(tmp_path / "two", "model.vocab_multiple=1"), start(**changes))
    names = {"seed 1": "vocab_multiple=64", "seed 2": "vocab_multiple=1"}
    expected = warning
    for name, label in names.items():
        expected = expected.replace(name, label)
    assert warned(one, two) == expected
    other_seed = with_starts(
        make_run(tmp_path / "other", "model.vocab_multiple=64", seed=2, loss=3.1), start(**changes)
    )
    assert warned(one, other_seed) == warning.replace("seed 1", "one").replace("seed 2", "other")


def test_a_run_that_went_on_elsewhere_is_named(tmp_path):
    runs = [make_run(tmp_path / f"r{seed}", seed=seed, loss=3.0 + seed) for seed in (1, 2)]
    with_starts(runs[0], START, start(git={"commit": "b" * 40}, step=5))
    with_starts(runs[1], START, start(step=5))
    assert warned(*runs) == "different code: aaaaaaa then bbbbbbb (r1); aaaaaaa (r2)"


@pytest.mark.parametrize(
    "overrides, compiled, warning",
    [
        (["compile=true", "optimizer=muon"], True, "not all compiled: not compiled (optimizer=adamw); compiled (optimizer=muon)"),
        (["compile=true"], True, ""),  # the question itself
        (["compile=true"], False, "not all compiled: not compiled (compile=false); asked to, but not compiled (compile=true)"),
    ],
)  # fmt: skip
def test_compiling_is_named_unless_it_is_the_question(tmp_path, overrides, compiled, warning):
    one = make_run(tmp_path / "one", compiled=False)
    two = make_run(tmp_path / "two", *overrides, compiled=compiled)
    assert warned(one, two) == warning


@pytest.mark.parametrize(
    "other, warning",
    [
        ({"data_masks": MASKS}, ""),
        ({"data_masks": {}}, ""),  # not known
        ({"data_masks": MASKS | {"loss_mask": "a-x"}}, "different loss masks: one; another for two"),
        ({"data_masks": MASKS | {"documents": "x-d"}}, "different starts of documents: one; another for two"),
        ({"data_fingerprint": None}, "result.json does not say which data, so it may be another: two"),
    ],
)
def test_other_targets_among_equal_tokens_are_named(tmp_path, other, warning):
    one = make_run(tmp_path / "one", data_masks=MASKS)
    two = make_run(tmp_path / "two", seed=2, loss=3.1, **({"data_masks": MASKS} | other))
    assert warned(one, two) == warning


def test_documents_that_are_windowed_in_another_way_are_named(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", "data.documents=masked")
    assert warned(one, two) == (
        "validated with different data.documents, so on other contexts: packed (documents=packed); "
        "masked (documents=masked)"
    )


# --- what a run records of it


def write_tokens(path, mask, documents=2):
    with TokenWriter(
        path, tokenizer="bytes", vocab_size=257, chars=None, source="test", split="train", has_mask=mask is not None
    ) as writer:
        for ids in np.array_split(np.arange(12), documents):
            writer.add_document(ids, None if mask is None else np.array(mask[: len(ids)]))
    return open_tokens(path)


def test_masks_and_documents_have_an_identity_of_their_own(tmp_path):
    """Equal tokens, and so one fingerprint, with other masks or documents."""
    plain = write_tokens(tmp_path / "plain.h5", None)
    masked = write_tokens(tmp_path / "masked.h5", [0, 0, 1, 1, 1, 1])
    other = write_tokens(tmp_path / "other.h5", [0, 1, 1, 1, 1, 1])
    split = write_tokens(tmp_path / "split.h5", None, documents=3)
    assert len({data_fingerprint(file, plain) for file in (plain, masked, other, split)}) == 1
    assert len({data_masks(file, plain, "packed")["loss_mask"] for file in (plain, masked, other)}) == 3
    assert data_masks(plain, plain, "packed") == data_masks(split, plain, "packed")
    assert data_masks(plain, plain, "masked") != data_masks(split, plain, "masked")

    # A file of one's own may not have recorded the hash of its mask.
    recorded = data_masks(masked, plain, "packed")
    with h5py.File(masked.path, "a") as file:
        del file.attrs["mask_sha256"]
    assert data_masks(masked, plain, "packed") == recorded


def test_a_start_says_how_torch_computes(tmp_path):
    write_about(tmp_path, {}, 0, 1)
    (written,) = read_about(tmp_path)["starts"]
    assert written["torch"] == {"threads": torch.get_num_threads(), "deterministic": False}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", written["date"])
    diff = tmp_path / DIFF
    expected = sha256(diff.read_bytes()).hexdigest() if diff.exists() else None
    assert written["git"]["diff_sha256"] == expected
