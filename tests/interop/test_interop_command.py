"""python -m gpt.interop: our checkpoints in the formats of others, and refusals."""

import json
import shutil

import pytest
from conftest import call
from weights import assert_same, model_config, pretrained

from gpt.errors import InputError
from gpt.interop import hf_export, hub, llmc
from gpt.interop.load import weights_hash
from gpt.interop.read import read_header, read_pretrained


def interop(*arguments, cwd):
    return call(*arguments, cwd=cwd, script="gpt.interop")


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved / "run", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.mark.slow
def test_a_checkpoint_becomes_a_folder_with_a_card_and_comes_back(run, tmp_path):
    done = interop("run", "to=hf", "out=exported/model", cwd=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["hf", "exported/model"]), done.stderr
    ours, back = read_pretrained(str(run)), read_pretrained(str(tmp_path / "exported" / "model"))
    assert_same(back.tensors, ours.tensors)
    assert len(ours.tensors["wte.weight"]) == ours.vocab_size == 257
    assert (back.tokenizer, back.vocab_size) == (ours.tokenizer, ours.vocab_size)
    card = (tmp_path / "exported" / "model" / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    for row in (
        "| seed | 1 |",
        "| data | text, modules.txt |",
        f"| validation loss | {result['val_loss']:.4f} nats per token |",
    ):
        assert row in card, card
    assert str(tmp_path) not in card
    # On to llm.c's, from the folder, and from the checkpoint itself.
    for source, out in (("exported/model", "a.bin"), ("run/checkpoints/last", "b.bin")):
        assert interop(source, "to=llmc", f"out={out}", cwd=tmp_path).returncode == 0
        assert weights_hash(read_pretrained(str(tmp_path / out))) == weights_hash(ours)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert interop("a.bin", "to=llmc", "out=half.bin", "dtype=bf16", cwd=tmp_path).returncode == 0
    half = read_pretrained(str(tmp_path / "half.bin")).tensors
    assert_same(half, {name: tensor.bfloat16() for name, tensor in ours.tensors.items()})


WRONG = [
    ([], "no source of weights is given", "usage: python -m gpt.interop SOURCE"),
    (["run", "run2", "to=hf", "out=x"], "run and run2: one is taken", "usage"),
    (["run", "out=x"], "to= is not given", "usage"),
    (["run", "to=hf"], "out= is not given", "usage"),
    (["run", "to=gguf", "out=x"], "to=gguf is not known", "allowed: hf, llmc"),
    (["run", "to=hf", "out=x", "dtype=fp16"], "dtype=fp16 is not known", "allowed: fp32, bf16"),
    (["run", "to=hf", "to=llmc", "out=x"], "to=hf and to=llmc: two values", "give one"),
    (["run", "too=hf", "out=x"], "too=hf: no such argument", "did you mean to?"),
    (["run", "to=hf", "out=run"], "out=run is there already", "give another name"),
    (["nowhere", "to=hf", "out=x"], "nowhere: nothing is there", "allowed: the output directory of a run"),
    (["hf:gpt3", "to=hf", "out=x"], "hf:gpt3 is not known", "hf:gpt2, hf:gpt2-medium"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, problem, cure", WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_wrong_commands_are_refused(arguments, problem, cure, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run2").mkdir()
    before = sorted(tmp_path.iterdir())
    refused = interop(*arguments, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert problem in refused.stderr and cure in refused.stderr, refused.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_of_a_newer_layout_or_damaged_is_refused(run, tmp_path):
    checkpoint = (run / "checkpoints" / "last").resolve()
    state = (checkpoint / "state.json").read_text()
    (checkpoint / "state.json").write_text(state.replace('"layout": 1', '"layout": 9'))
    refused = interop("run", "to=hf", "out=x", cwd=tmp_path)
    assert refused.returncode == 2 and "has layout 9, and this version of gptlab reads up to" in refused.stderr
    (checkpoint / "state.json").write_text(state)
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)
    refused = interop("run", "to=hf", "out=x", cwd=tmp_path)
    assert refused.returncode == 2 and "model.safetensors is damaged" in refused.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("changes", [{"norm": "post"}, {"position": "sinusoidal"}])
def test_what_hugging_face_cannot_hold_is_refused_by_key(changes):
    ((key, value),) = changes.items()
    with pytest.raises(InputError, match=f"model.{key}={value}, which Hugging Face's GPT-2 cannot hold"):
        hf_export.check_holds(pretrained(model_config(**changes)))


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_export, "_write_json", no_space)
    monkeypatch.setattr(llmc.os, "replace", no_space)
    for kind in (hf_export, llmc):
        with pytest.raises(OSError, match="No space"):
            kind.write(pretrained(model_config()), tmp_path / "out", "fp32")
        assert not list(tmp_path.iterdir())


def no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


# --- the hub


def test_the_headers_of_the_hub_are_known_without_it(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    sizes = {
        "gpt2": (12, 12, 768),
        "gpt2-medium": (24, 16, 1024),
        "gpt2-large": (36, 20, 1280),
        "gpt2-xl": (48, 25, 1600),
    }
    for name, size in sizes.items():
        header = read_header(f"hf:{name}")
        model = header.model
        assert (model.n_layer, model.n_head, model.n_embd) == size
        assert (model.seq_len, header.vocab_size, header.tokenizer) == (1024, 50_257, "gpt2")


def test_a_download_that_is_not_possible_says_what_to_fetch_and_where_to_put_it(tmp_path):
    there = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    refused = call("hf:gpt2", "to=llmc", "out=x.bin", cwd=tmp_path, script="gpt.interop", env=there)
    assert refused.returncode == 2, refused.stderr
    assert "hf:gpt2 cannot be fetched: " in refused.stderr
    assert "fetch config.json and model.safetensors by hand" in refused.stderr
    assert "https://huggingface.co/openai-community/gpt2/tree/main" in refused.stderr
    assert "give the folder in place of hf:gpt2" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_was_fetched_is_read_as_any_folder(tmp_path, monkeypatch):
    """The cache of the hub is a folder of Hugging Face; hf:FOLDER is one too."""
    weights = pretrained(model_config())
    hf_export.write(weights, tmp_path / "snapshot", "fp32")
    monkeypatch.setattr(hub, "fetch", lambda source: tmp_path / "snapshot")
    for source in ("hf:gpt2", f"hf:{tmp_path / 'snapshot'}"):
        found = read_pretrained(source)
        assert found.source == source
        assert_same(found.tensors, weights.tensors)
