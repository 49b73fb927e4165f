"""Commands as a user types them, in processes of their own: the output directory, signals, exact resume."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, Started, assert_same, call, deterministic, environment, until

from gpt.rundir import METRICS
from gpt.tracker.logs import read_metrics

pytestmark = pytest.mark.slow


def wait_for_step(process, run_dir, step):
    """Return once the run has logged the step."""
    path = run_dir / METRICS
    until(lambda: path.exists() and path.read_bytes().count(b"\n") > step, process=process)


LONG = ["trainer.max_steps=160", "trainer.eval_every=12_800", "checkpoint.every=13", "model.dropout=0.1"]


@pytest.fixture(scope="module")
def uninterrupted(small, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = call(*small, *LONG, f"hydra.run.dir={run_dir}", cwd=run_dir.parent)
    assert done.returncode == 0, done.stderr
    return deterministic(run_dir)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_three_random_steps_and_resumed_is_the_uninterrupted_run(small, tmp_path, uninterrupted, num_workers):
    run_dir = tmp_path / "run"
    arguments = [*small, *LONG, f"data.num_workers={num_workers}", f"hydra.run.dir={run_dir}"]
    steps = sorted(random.Random(time.time_ns()).sample(range(1, 110), 3))
    print("killed at", steps)
    for step in steps:
        process = Started(*arguments, cwd=tmp_path)
        wait_for_step(process, run_dir, step)
        process.kill()
        process.communicate()
        arguments = [f"resume={run_dir}"]
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(deterministic(run_dir), uninterrupted)


@pytest.mark.parametrize("number, num_workers", [(signal.SIGINT, 2), (signal.SIGTERM, 0), (signal.SIGTERM, 2)])
def test_a_signal_finishes_the_step_saves_and_can_be_resumed(small, tmp_path, uninterrupted, number, num_workers):
    """A signal to the whole process group, as a terminal and a scheduler send it."""
    run_dir = tmp_path / "run"
    process = Started(*small, *LONG, f"data.num_workers={num_workers}", f"hydra.run.dir={run_dir}", cwd=tmp_path)
    wait_for_step(process, run_dir, 40)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in said
    assert "python train.py resume=run\n" in said
    result = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert (run_dir / "checkpoints" / "last").resolve().name == f"step_{result['step']:08d}"
    done = call(f"resume={run_dir}", "batch.micro_batch_size=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(deterministic(run_dir), uninterrupted)


def test_the_output_directory_is_complete(small, tmp_path):
    done = call(*small, "tracker.plot=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (run_dir,) = (tmp_path / "outputs").glob("*/*-tiny")
    names = {path.name for path in run_dir.iterdir()} - {"code.diff"}  # which is there while the code is changed
    assert names == {
        ".hydra", "config.yaml", "metrics.jsonl", "checkpoints", "samples.txt", "loss.png", "result.json", "about.json"
    }  # fmt: skip
    assert {path.name for path in (run_dir / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last", "best", "step_00000020"}
    assert {path.name for path in (run_dir / "checkpoints" / "last").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "state.json", "metrics.jsonl", "samples.txt",
    }  # fmt: skip
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["model"]["n_embd"] == 32
    assert (run_dir / "samples.txt").read_text().count("--- step") == 2
    overrides = (run_dir / ".hydra" / "overrides.yaml").read_text()
    result = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "done"
    assert result["val_loss"] == read_metrics(run_dir)[-1]["val/loss"]
    for said in (
        "loss at initialisation",
        "ln(vocab_size) 5.5491",
        "bits per byte",
        "a sample:",
        "loss.png",
        "step_00000020",
    ):
        assert said in done.stdout
    assert "\x1b" not in done.stdout  # plain lines in a pipe

    finished = call(f"resume={run_dir}", cwd=tmp_path)
    assert finished.returncode == 2
    assert "this run is finished, at step 20 of 20" in finished.stderr
    assert "larger trainer.max_steps" in finished.stderr
    occupied = call(*small, f"hydra.run.dir={run_dir}", cwd=tmp_path)
    assert occupied.returncode == 2
    assert f"{run_dir} already holds a run (done)" in occupied.stderr
    other = call(f"resume={run_dir}", "model.n_layer=3", "seed=5", cwd=tmp_path)
    assert other.returncode == 2
    assert "seed 1337 -> 5, model.n_layer 2 -> 3" in other.stderr
    inside = call(f"resume={run_dir}/checkpoints/last", cwd=tmp_path)
    assert inside.returncode == 2
    assert f"did you mean resume={run_dir}?" in inside.stderr
    text_file = tmp_path / "other.txt"
    text_file.write_text("something else " * 200)
    other_data = call(f"resume={run_dir}", f"data.files=[{text_file}]", "trainer.max_steps=30", cwd=tmp_path)
    assert other_data.returncode == 2
    assert "the data is other than it was" in other_data.stderr
    assert json.loads((run_dir / "result.json").read_text()) == result  # nothing lost
    assert (run_dir / ".hydra" / "overrides.yaml").read_text() == overrides

    longer = call(f"resume={run_dir}", "trainer.max_steps=30", cwd=tmp_path)
    assert longer.returncode == 0, longer.stderr
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, 31))
    assert (run_dir / ".hydra" / ".overrides.yaml").read_text() == overrides
    (run_dir / ".hydra" / "overrides.yaml").write_text("")  # as where Hydra is killed while it writes
    shorter = call(f"resume={run_dir}", "trainer.max_steps=25", cwd=tmp_path)
    assert shorter.returncode == 2
    assert "this run is at step 30, and would end at step 25" in shorter.stderr


def test_a_run_made_longer_says_what_becomes_of_its_curve_and_can_keep_it(saved, tmp_path):
    """Cosine from 1 to 0.1 over 1,024 tokens, made twice as long."""
    shutil.copytree(saved / "run", tmp_path / "run", symlinks=True)
    shutil.copytree(saved / "run", tmp_path / "kept", symlinks=True)
    refused = call("resume=kept", "trainer.max_steps=8", "schedule.decay_until=1025", cwd=tmp_path)
    assert refused.returncode == 2 and "schedule.decay_until None -> 1025" in refused.stderr
    for name, keys in [("run", []), ("kept", ["schedule.decay_until=1024"])]:
        longer = call(f"resume={name}", "trainer.max_steps=8", *keys, cwd=tmp_path)
        assert longer.returncode == 0, longer.stderr
        said = [line for line in longer.stdout.splitlines() if line.startswith("length")]
        rates = [row["optim/lr"] for row in read_metrics(tmp_path / name)]
        if keys:
            assert said == ["length      1,024 -> 2,048 tokens; the learning rate at 1,024 is still 0.0002"]
            assert rates[3:] == [0.0002] * 5
        else:
            assert said == [
                "length      1,024 -> 2,048 tokens; the learning rate at 1,024 becomes 0.00113, and was 0.0002; "
                "to keep the curve: schedule.decay_until=1024"
            ]
            assert rates[4] > rates[3] == 0.0002


def test_a_run_killed_before_its_first_checkpoint_starts_again(small, tmp_path):
    run_dir = tmp_path / "run"
    process = Started(
        *small,
        "trainer.max_steps=100000",
        "trainer.eval_every=1_000_000_000",
        "checkpoint.every=100_000",
        f"hydra.run.dir={run_dir}",
        cwd=tmp_path,
    )
    wait_for_step(process, run_dir, 5)
    saved = {path: path.read_bytes() for path in [run_dir / "config.yaml", *(run_dir / ".hydra").iterdir()]}
    for other in ([f"resume={run_dir}", "trainer.max_steps=7"], [*small, "seed=5", f"hydra.run.dir={run_dir}"]):
        while_running = call(*other, cwd=tmp_path)
        assert while_running.returncode == 2
        assert "is in use" in while_running.stderr
    assert {path: path.read_bytes() for path in saved} == saved
    process.kill()
    process.communicate()
    done = call(f"resume={run_dir}", "trainer.max_steps=20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, 21))


def test_simultaneous_starts_get_directories_of_their_own(small, tmp_path):
    processes = [Started(*small, "trainer.max_steps=1", cwd=tmp_path) for _ in range(3)]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert len(list((tmp_path / "outputs").glob("*/*/result.json"))) == 3


def test_of_two_commands_with_one_directory_one_runs_and_nothing_of_the_other_is_there(small, tmp_path):
    """Whatever each was doing when the other came: before its directory was made, before its first row."""
    run_dir, codes = tmp_path / "run", {}
    processes = {seed: Started(*small, f"seed={seed}", f"hydra.run.dir={run_dir}", cwd=tmp_path) for seed in (1, 2, 3)}
    for seed, process in processes.items():
        _, said = process.communicate()
        codes[seed] = process.returncode
        assert process.returncode == 0 or "is in use" in said or "already holds a run" in said, said
    (seed,) = (seed for seed, code in codes.items() if code == 0)
    assert sorted(codes.values()) == [0, 2, 2]
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["seed"] == seed
    assert f"seed={seed}" in yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())


@pytest.mark.parametrize(
    "arguments, code", [(["--help"], 0), (["--cfg", "job"], 0), (["precison=bf16"], 2), (["model.n_embd=130"], 2)]
)
def test_answers_come_without_torch(tmp_path, arguments, code):
    script = (
        "import sys; from gpt.cli import command as cli; from train import train\n"
        f"sys.argv = ['train.py', *{arguments!r}]\n"
        "code = cli.run(train)\n"
        "heavy = {'torch', 'matplotlib', 'tiktoken', 'h5py'} & set(sys.modules)\n"
        "print('code', code, 'heavy', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"code {code} heavy []", done.stderr
    assert not list(tmp_path.iterdir())


def test_a_traceback_is_shown_on_request(tmp_path):
    done = call("model.n_embd=130", cwd=tmp_path, env={"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "model.n_embd=130 is not divisible" in done.stderr


def test_prepare_is_a_command(text_file, tmp_path):
    arguments = [
        "-m",
        "data.prepare",
        "data=text",
        f"data.files=[{text_file}]",
        "data.cache_dir=" + str(tmp_path / "c"),
    ]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "c").glob("[!.]*")
    assert {path.name for path in directory.iterdir()} == {"train.h5", "val.h5", "manifest.json"}
    assert f"{directory}/train.h5" in done.stdout
    wrong = call("data=txt", cwd=ROOT, script="data.prepare")
    assert wrong.returncode == 2
    assert "did you mean text?" in wrong.stderr


def test_without_the_vocabulary_gpt2_says_what_to_set(text_file, tmp_path):
    """Offline and with an empty cache: a refusal, not a traceback."""
    (tmp_path / "empty").mkdir()
    blocked = {
        "TIKTOKEN_CACHE_DIR": str(tmp_path / "empty"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    wanted = ["data=text", f"data.files=[{text_file}]", "data.tokenizer=gpt2", f"data.cache_dir={tmp_path}/c"]
    done = call(*wanted, cwd=tmp_path, env=blocked)
    assert done.returncode == 2, done.stderr
    assert "TIKTOKEN_CACHE_DIR" in done.stderr
    assert not (tmp_path / "outputs").exists()
