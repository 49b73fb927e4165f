"""docs/interop.md runs as it stands, and its tables are those of the code."""

import re
import shlex
import shutil

import pytest
from conftest import ROOT, SMALL, call
from test_nanogpt import saved as saved_by_nanogpt
from weights import model_config, pretrained

from gpt.interop import hf, hf_export, llama, llmc
from gpt.interop.hub import MODELS, OWNER
from gpt.interop.pretrained import as_typed
from gpt.interop.read import read_pretrained

PAGE = (ROOT / "docs" / "interop.md").read_text()
COMMANDS = re.findall(r"^python (?:-m )?(\S+) (.*)$", PAGE, re.MULTILINE)
# What the test adds, so that a command takes seconds; the large models are planned.
SHORT = [o for o in SMALL if not o.startswith("model.")] + [
    "trainer.max_steps=2",
    "trainer.eval_every=512",
    "sample.tokens=0",
]


@pytest.fixture
def home(saved, tmp_path, text_file):
    """A directory with all that the page names, in small; the hub's cache too."""
    (tmp_path / "outputs" / "2026-11-21").mkdir(parents=True)
    shutil.copytree(saved / "run", tmp_path / "outputs" / "2026-11-21" / "19-49-08-tiny", symlinks=True)
    (tmp_path / "out-shakespeare").mkdir()
    saved_by_nanogpt(tmp_path / "out-shakespeare" / "ckpt.pt")
    shutil.copy(text_file, tmp_path / "book.txt")
    cached = tmp_path / "hf" / "hub" / f"models--{OWNER}--gpt2"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    hf_export.write(pretrained(model_config()), cached / "snapshots" / ("0" * 40), "fp32")
    return tmp_path


@pytest.mark.slow
def test_the_page_runs_as_it_stands(home, cache, monkeypatch, capsys):
    pytest.importorskip("transformers")
    env = {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    assert len(COMMANDS) == 10
    for script, arguments in COMMANDS:
        argv = shlex.split(arguments)
        if script == "train.py":
            is_planned = argv[0].startswith(("experiment=", "sweeps="))
            argv += ["plan=true"] if is_planned else [*SHORT, f"data.cache_dir={cache}"]
        done = call(*argv, cwd=home, script=script, env=env)
        assert done.returncode == 0, (script, arguments, done.stderr)
    written = {path.name for path in home.iterdir()} | {path.name for path in (home / "exported").iterdir()}
    assert {"tiny.bin", "gpt2_124M_bf16.bin", "tiny", "nanogpt"} <= written
    assert read_pretrained(str(home / "gpt2_124M_bf16.bin")).model.n_embd == 16  # that of the cache
    monkeypatch.chdir(home)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/interop.md", "exec"), {})
    said = capsys.readouterr().out
    assert "import " in said and "2 257 bytes\ntorch.Size([96, 32])\n" in said


def test_the_table_of_what_formats_hold_is_that_of_the_code():
    rows = re.findall(r"^\| `model\.(\w+)` \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
    formats = (hf_export.HELD, llama.HELD, llmc.HELD)
    for key, *cells in rows:
        for held, cell in zip(formats, cells, strict=True):
            expected = ", ".join(map(as_typed, held[key])) if key in held else "all"
            assert cell.split(";")[0] == expected, key
    assert {key for key, *_ in rows} >= set().union(*formats)
    assert set(hf_export.ACTIVATIONS) == set(hf.ACTIVATIONS.values())
    assert re.findall(r"`hf:([\w-]+)`", PAGE.split("\n\n")[2]) == list(MODELS)
