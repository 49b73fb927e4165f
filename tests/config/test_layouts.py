"""Configs that grow: runs that earlier versions saved are read, resumed and compared."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest
import yaml
from conftest import BRIEF, ROOT, environment

from gpt.cli.compose import compose
from gpt.cli.compose_evaluation import compose_evaluation
from gpt.cli.resume import with_resume
from gpt.config import layouts
from gpt.config.load import changed_keys, read
from gpt.config.schema import VARIANTS, Config
from gpt.errors import InputError

FIRST = sorted((ROOT / "tests" / "fixtures" / "configs").iterdir())  # as the first version saved them


def keys_of_schema(kind=Config, prefix=""):
    """All keys that any config has."""
    found = set()
    for field in fields(kind):
        kinds = VARIANTS.get(field.name, {}).values() if not prefix else ()
        for inside in kinds or [field.type]:
            key = prefix + field.name
            found |= keys_of_schema(inside, f"{key}.") if is_dataclass(inside) else {key}
    return found


def keys_of(raw, leaves, prefix=""):
    """All keys of a saved config; one of the schema is one key, whatever it holds."""
    found = set()
    for name, value in raw.items():
        key = prefix + name
        found |= keys_of(value, leaves, f"{key}.") if isinstance(value, dict) and key not in leaves else {key}
    return found


def test_every_key_is_the_first_versions_or_says_what_runs_before_it_did():
    today = keys_of_schema()
    first = set().union(*(keys_of(yaml.safe_load((path / "config.yaml").read_text()), today) for path in FIRST))
    new_names = {new for old, new in layouts.RENAMED.items() if "=" not in old}
    untold = today - first - set(layouts.ADDED) - {key for key in today if is_below(key, new_names)}
    assert not untold, f"tell gpt/config/layouts.py what runs without {untold} did: {layouts.RECIPE}"
    lost = {key for key in first - today if not is_below(key, {*layouts.RENAMED, *layouts.REMOVED})}
    assert not lost, f"tell gpt/config/layouts.py what became of {lost}: {layouts.RECIPE}"
    assert set(layouts.ADDED) <= today


def is_below(key, sections):
    return any(key == section or key.startswith(f"{section}.") for section in sections)


@pytest.mark.parametrize("path", FIRST, ids=lambda path: path.name)
def test_configs_of_the_first_version_are_read_and_composed_again(path):
    """Evaluated, compared and resumed, without any key given."""
    assert isinstance(compose_evaluation(path, []), Config)
    again = [override for override in with_resume([f"resume={path}"]) if not override.startswith("hydra.")]
    changed = changed_keys(read(path / "config.yaml"), compose(again), any_length=False)
    assert not changed, f"a default has changed: tell gpt/config/layouts.py ({layouts.RECIPE})"


@pytest.fixture
def tables(monkeypatch):
    """The tables, empty, to be filled by a test."""
    for name in ("ADDED", "RENAMED", "REMOVED"):
        monkeypatch.setattr(layouts, name, {})
    return layouts


def test_a_saved_config_gets_todays_names(tables):
    tables.RENAMED |= {
        "optimizer=adam": "optimizer=adamw",
        "model.activation=gelu": "model.activation=gelu_tanh",
        "trainer.clip": "trainer.grad_clip",
        "batch.warmup": "batch.ramp",
        "trainer.fast=true": "trainer.fast=false",
    }
    tables.REMOVED |= {"model.gated": False}
    raw = {
        "optimizer": {"name": "adam"},
        "model": {"activation": "gelu", "gated": False},
        "trainer": {"clip": 0.5, "fast": True},
        "batch": {"warmup": {"over_tokens": 3}},
    }
    tables.rename(raw)
    assert raw == {
        "optimizer": {"name": "adamw"},
        "model": {"activation": "gelu_tanh"},
        "trainer": {"grad_clip": 0.5, "fast": False},
        "batch": {"ramp": {"over_tokens": 3}},
    }
    given = "optimizer=adam model.activation='gelu' +trainer.clip=1 batch.warmup.over_tokens=3 model.gated=false seed=1"
    assert list(map(tables.rename_override, given.split())) == [
        "optimizer=adamw", "model.activation=gelu_tanh", "+trainer.grad_clip=1", "batch.ramp.over_tokens=3", None, "seed=1",
    ]  # fmt: skip
    with pytest.raises(
        InputError, match=r"model.gated=True is no longer there: what is left is what model.gated=False"
    ):
        tables.rename({"model": {"gated": True}})


def test_keys_are_added_where_the_option_has_them(tables):
    tables.ADDED |= {"model.gated": False, "optimizer.momentum": 0.9, "mup.width": 64}
    raw, keys = {"model": {}, "optimizer": {}}, {"model": {"gated": "?"}, "optimizer": {}, "mup": {"width": "?"}}
    tables.complete(raw, keys)
    assert raw == {"model": {"gated": False}, "optimizer": {}, "mup": {"width": 64}}
    with pytest.raises(InputError, match=r"unknown key model.gates: a newer gptlab wrote it"):
        tables.complete({"model": {"gated": True, "gates": 1}, "optimizer": {}}, keys)
    del tables.ADDED["model.gated"]
    with pytest.raises(
        InputError, match=r"it has no model.gated(.|\n)*gpt/config/layouts.py \(docs/config.md, \"Adding a key"
    ):
        tables.complete({"model": {}, "optimizer": {}}, keys)


@pytest.mark.parametrize("value", [None, True, 0.5, 3, "a 'b', ${x}: {c}", [1, [2]], ["a", "b,c"], {"a": 1.5, "b": []}])
def test_values_are_written_as_hydra_reads_them(value):
    from gpt.cli.arguments import parse

    (parsed,) = parse([layouts.as_override("key", value)])
    found = parsed.value()
    assert found == value or str(found) == value


# --- a version that has grown: the repository's code with two keys more, one of another default, and one renamed

GROW = {
    "gpt/config/model.py": [("    residual_scaling: bool\n", "    residual_scaling: bool\n    gates: str\n")],
    "gpt/config/schema.py": [("class SampleConfig:\n", "class SampleConfig:\n    style: str\n")],
    "conf/model/_common.yaml": [("seq_len:", "gates: none  # as ever\nseq_len:")],
    "conf/config.yaml": [("sample:\n", "sample:\n  style: new  # another than runs had before\n")],
}  # fmt: skip
TOLD = """
ADDED |= {"model.gates": "none", "sample.style": "old"}
RENAMED |= {"trainer.grad_clip": "trainer.clip_norm"}
"""
COMMANDS = """
import json, shutil, sys
from pathlib import Path
import eval, train
from gpt.cli import command as cli
from gpt.config import layouts
from gpt.compare.__main__ import main as compare

sweep = json.loads(sys.argv[1])
def run_all(sweep, only=None):
    codes = {}
    for name, command, argv in [
        ("eval", lambda: cli.script(eval.main, ""), ["checkpoint=run", "tasks=[val]"]),
        ("compare", lambda: cli.script(compare, ""), ["run", "sweep", "out=compared"]),
        ("sweep", lambda: cli.run(train.train), sweep),
        ("resume", lambda: cli.run(train.train), ["resume=run", "trainer.max_steps=6"]),
    ]:
        if only not in (None, name):
            continue
        print("---", name, file=sys.stderr, flush=True)
        sys.argv = [name, *argv]
        codes[name] = command()
    return codes

told = dict(layouts.ADDED), dict(layouts.RENAMED)
layouts.ADDED.clear()
without = run_all(sweep)
layouts.ADDED |= told[0]
with_other_default = run_all(sweep)["sweep"]
print("codes", json.dumps([without, with_other_default, run_all([*sweep, "sample.style=old"], only="sweep")["sweep"]]))
"""


def grown(directory):
    """A copy of the code, edited as whoever adds and renames keys would."""
    for name in ("gpt", "data", "conf", "sweeps", "hydra_plugins"):
        ignored = shutil.ignore_patterns("__pycache__", "cache")
        shutil.copytree(ROOT / name, directory / name, symlinks=True, ignore=ignored)
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, directory)
    for name, edits in GROW.items():
        text = (directory / name).read_text()
        for before, after in edits:
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, after)
        (directory / name).write_text(text)
    for path in (*directory.glob("gpt/**/*.py"), *directory.glob("conf/**/*.yaml")):
        path.write_text(re.sub(r"\bgrad_clip\b", "clip_norm", path.read_text()))
    with open(directory / "gpt" / "config" / "layouts.py", "a") as layouts_file:
        layouts_file.write(TOLD)
    return directory


@pytest.mark.slow
def test_a_version_with_more_keys_reads_the_runs_of_this_one(saved, small, tmp_path):
    """Evaluation, comparison, a finished sweep and resume, with entries in the table, and refused without them."""
    shutil.copytree(saved, tmp_path / "home", symlinks=True)
    code, home = grown(tmp_path / "code"), tmp_path / "home"
    sweep = [
        o.replace("grad_clip", "clip_norm") for o in ["--multirun", "seed=1,2", *small, *BRIEF, "hydra.sweep.dir=sweep"]
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(sweep)], cwd=home, env=environment() | {"PYTHONPATH": str(code)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    without, other_default, kept = json.loads(re.search("^codes (.*)$", done.stdout, re.MULTILINE)[1])
    assert without == dict.fromkeys(["eval", "compare", "sweep", "resume"], 2), done.stderr
    first, second = re.split("--- eval\n", done.stderr)[1:]
    second = second.rpartition("--- sweep\n")[0]
    assert first.count("it has no model.gates") == 4 and first.count(layouts.RECIPE) == 4, first
    assert "error: " not in second.replace("error: job 1 of 2 (seed-1)", ""), second
    assert other_default == 2 and "another config: sample.style old -> new\n" in second
    assert kept == 0 and len(re.findall(r"\[./2\]  kept", done.stdout)) == 2
    resumed = yaml.safe_load((home / "run" / "config.yaml").read_text())
    assert (resumed["model"]["gates"], resumed["sample"]["style"]) == ("none", "old")
    assert resumed["trainer"]["clip_norm"] == 0.5
    assert json.loads((home / "run" / "result.json").read_text())["step"] == 6
    with pytest.raises(
        InputError,
        match=r"run/config.yaml: unknown key (model.gates|trainer.clip_norm|sample.style): a newer gptlab",
    ):
        read(home / "run" / "config.yaml")
