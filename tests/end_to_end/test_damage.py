"""Small files of a run or a sweep that are damaged: refused by name, without a traceback, and nothing is changed."""

import json
import shutil

import pytest
from conftest import BRIEF

from gpt.cli import command as cli
from gpt.cli.resume import with_resume
from gpt.config.load import read
from gpt.errors import InputError
from gpt.files import write_json
from gpt.rundir import check_layout, read_about, read_result, read_sweep

BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))  # fmt: skip
GARBAGE = {
    "empty": b"",
    "cut": None,  # in the middle
    "binary": bytes(range(256)) * 8,
    "nul": b"\0" * 100,
    "other": b"images: [1, 2]\n",
    "scalar": b"3\n",
    "list of numbers": b"[1, 2]\n",
    "nested": b"[" * 100_000,
    "tag": b"!!bool x\n",
    "bomb": BOMB.encode(),
}
FILES = ["config.yaml", ".hydra/overrides.yaml", "result.json", "about.json", "sweep.json"]
READERS = {
    "config.yaml": lambda run: read(run / "config.yaml"),
    ".hydra/overrides.yaml": lambda run: with_resume([f"resume={run}"]),
    "result.json": read_result,
    "about.json": read_about,
    "sweep.json": read_sweep,
}
WRONG_KINDS = {
    "result.json": [{"status": 3}, {"status": "done", "step": "4"}, {"status": "done", "tokenizer": []}],
    "about.json": [{"starts": 3}, {"starts": []}, {"starts": [3]}, {"starts": [{"git": "a"}]}],
    "sweep.json": [{"jobs": [1]}, {"jobs": {"a": 3}}, {"jobs": {"a": {"overrides": [1]}}}, {"jobs": {}, "baseline": 3}],
}


@pytest.fixture
def run_dir(tmp_path):
    """A directory with the small files of a run and of a sweep."""
    from gpt.cli.compose import compose
    from gpt.config.load import save

    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=1\n- 'tags=[a,b]'\n")
    save(compose(["seed=1"]), tmp_path / "config.yaml")
    write_json(tmp_path / "result.json", {"layout": 1, "status": "done", "step": 4, "val_loss": 2.5})
    write_json(tmp_path / "about.json", {"layout": 1, "starts": [{"step": 0, "git": None, "machine": {}}]})
    write_json(tmp_path / "sweep.json", {"layout": 1, "jobs": {"a": {"overrides": ["seed=1"]}}, "left_out": {}})
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_whole_files_are_read_and_damaged_ones_refused_by_name(run_dir, name):
    path, reader = run_dir / name, READERS[name]
    whole = path.read_bytes()
    assert reader(run_dir)
    for what, content in GARBAGE.items():
        path.write_bytes(whole[: len(whole) // 2 + 3] if content is None else content)
        with pytest.raises(InputError) as refused:
            reader(run_dir)
        assert str(path) in refused.value.problem, what
        assert len(str(refused.value)) < 500, what
    for content in WRONG_KINDS.get(name, []):
        write_json(path, {"layout": 1, **content})
        with pytest.raises(InputError, match=r"is damaged, or none of ours"):
            reader(run_dir)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError) as refused:
        reader(run_dir)
    assert str(path) in refused.value.problem


def test_aliases_in_a_config_are_not_expanded(run_dir):
    """Within a key of any content they would be read, and a few lines of them fill the memory."""
    path = run_dir / "config.yaml"
    path.write_text(path.read_text().replace("references: {}", "references: {a: &a 1.0, b: *a}"))
    with pytest.raises(InputError, match=r"config.yaml is damaged, or none of ours: it has an alias \(\*\)"):
        read(path)


@pytest.mark.parametrize("line", ["- 3", "- [seed=1]", "- --multirun", "- 'seed=1 2]'", "seed: 1"])
def test_what_is_no_list_of_overrides_is_refused(run_dir, line):
    (run_dir / ".hydra" / "overrides.yaml").write_text(line + "\n")
    with pytest.raises(InputError, match=r"overrides.yaml is damaged(.|\n)*a line '- KEY=VALUE'"):
        with_resume([f"resume={run_dir}"])


def test_files_and_directories_are_what_they_should_be(run_dir):
    check_layout(run_dir)
    check_layout(run_dir / "none")
    with pytest.raises(InputError, match=r"result.json is no directory"):
        check_layout(run_dir / "result.json")
    for name in ("checkpoints", "slurm", "logs", "tensorboard"):
        (run_dir / name).write_text("")
        with pytest.raises(InputError, match=f"{name} is no directory\n  move it away"):
            check_layout(run_dir)
        (run_dir / name).unlink()
    for name in ("metrics.jsonl", "samples.txt", "log.txt", "wandb.json"):
        (run_dir / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is no file\n  move it away"):
            check_layout(run_dir)
        (run_dir / name).rmdir()


# --- the commands, on copies of a run and of a sweep


def spoil(path, content):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if content is dir:
        path.mkdir()
    elif content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def remember(job, **entry):
    """Let the sweep's index know a job by these facts alone."""
    index = json.loads((job.parent / "sweep.json").read_text())
    index["jobs"][job.name] = entry
    write_json(job.parent / "sweep.json", index)


BINARY = GARBAGE["binary"]
CASES = [
    *(("resume", f"run/{name}", BINARY) for name in FILES[:-1]),
    ("resume", "run/.hydra", None),
    ("resume", "run/.hydra", b""),
    ("resume", "run/checkpoints", b""),
    ("resume", "run/metrics.jsonl", dir),
    ("resume", "run/wandb.json", dir),
    ("eval", "run/config.yaml", BINARY),
    ("eval", "run/config.yaml", b"model: 3\n"),
    ("eval", "run/checkpoints/eval-step_00000004.json", BINARY),
    ("eval", "run/checkpoints/eval-step_00000004.json", dir),
    *(("compare", f"run/{name}", BINARY) for name in ("config.yaml", "result.json", "metrics.jsonl")),
    ("compare", "run/metrics.jsonl", b"[" * 100_000 + b"\n"),
    ("compare", "run/metrics.jsonl", b'{"step": "1"}\n'),
    ("compare", "run/metrics.jsonl", dir),
    ("compare", "run/compare.json", dir),
    ("compare sweep", "sweep/sweep.json", BINARY),
    ("compare sweep", "sweep/seed-2/config.yaml", b""),
    ("sweep", "sweep/sweep.json", BINARY),
    ("sweep", "sweep/sweep.json", dir),
    ("sweep", "sweep/seed-1/result.json", BINARY),
    ("sweep", "sweep/seed-1/result.json", dir),
    ("changed sweep", "sweep/seed-1/config.yaml", BINARY),
    ("changed sweep", "sweep/seed-1/config.yaml", dir),
    ("changed sweep", "sweep/seed-1/log.txt", dir),
    ("changed sweep", "sweep/seed-1/checkpoints", b""),
    ("changed sweep", "sweep/seed-1", b""),
    *(("tensorboard", f"run/{name}", BINARY) for name in ("config.yaml", "about.json", "metrics.jsonl", "histograms.jsonl", "samples.txt")),
    ("tensorboard", "run/tensorboard", b""),
    ("tensorboard", "run/histograms.jsonl", b'{"step": 1, "a": 3}\n'),
    *(("wandb", f"run/{name}", BINARY) for name in ("config.yaml", "result.json", "about.json", "metrics.jsonl", "wandb.json")),
    ("wandb", "run/wandb.json", b'{"layout": 1, "id": ["a b"]}\n'),
    ("wandb", "run/wandb.json", dir),
]  # fmt: skip


def run_command(name, home, small):
    """Be one of the commands, in this process; returns its exit code."""
    import eval as evaluation
    from gpt.compare.__main__ import main as compare
    from gpt.mirrors import tensorboard as tensorboard_mirror
    from gpt.mirrors import wandb as wandb_mirror
    from train import train

    sweep = ["--multirun", "seed=1,2", *small, *BRIEF, "hydra.sweep.dir=sweep"]
    command, argv = {
        "resume": (lambda: cli.run(train), ["resume=run", "trainer.max_steps=6"]),
        "eval": (lambda: cli.script(evaluation.main, ""), ["checkpoint=run"]),
        "compare": (lambda: cli.script(compare, ""), ["run", "out=run"]),
        "compare sweep": (lambda: cli.script(compare, ""), ["sweep"]),
        "sweep": (lambda: cli.run(train), sweep),
        "changed sweep": (lambda: cli.run(train), sweep),
        "tensorboard": (lambda: cli.script(tensorboard_mirror.main, ""), ["run"]),
        "wandb": (lambda: cli.script(wandb_mirror.main, ""), ["run"]),
    }[name]
    return command, argv


@pytest.mark.slow
@pytest.mark.parametrize("command, name, content", CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_commands_refuse_damaged_files_and_change_nothing(
    command, name, content, saved, small, tmp_path, monkeypatch, capfd
):
    shutil.copytree(saved, tmp_path / "home", symlinks=True)
    home = tmp_path / "home"
    monkeypatch.chdir(home)
    monkeypatch.setenv("WANDB_MODE", "offline")  # should it come so far
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if command == "changed sweep":  # whose finished jobs are looked at again
        remember(home / "sweep" / "seed-1", overrides=["seed=1"])
    spoil(home / name, content)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    entry, argv = run_command(command, home, small)
    monkeypatch.setattr("sys.argv", [command, *argv])
    code = entry()
    said = capfd.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said and len(said.splitlines()) <= 4, said
    if content is not None or name != "run/.hydra":
        assert name.removesuffix("/config.yaml") in said, said
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
