"""Mirrors of a run: W&B's own package against a server on this machine and into files, and TensorBoard's files."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Started, call, deterministic, until
from wandb_server import KEY, serving

from gpt.files import LAYOUT, locked, write_json
from gpt.rundir import METRICS
from gpt.tracker.histogram import BINS, _histogram
from gpt.tracker.logs import Tail, parse_samples, read_metrics
from gpt.tracker.provenance import _git, _without_secrets

RUN = ["tracker=wandb", "hydra.run.dir=run", "trainer.eval_every=1280"]
IMPATIENT = {
    "FILE_STREAM_TRANSMIT_INTERVAL": "0.5",
    "FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "0.2",
    "FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "1",
    "GRAPHQL_RETRY_WAIT_MIN_SECONDS": "0.2",
    "GRAPHQL_RETRY_WAIT_MAX_SECONDS": "1",
}
# A mirror that does not wait until the machine has nothing else to do: other tests would keep it from running.
AWAKE = {
    "constants": {
        "gpt.mirrors.follow.NICENESS_AT_START": 0,
        "gpt.mirrors.follow.NICENESS": 0,
        "gpt.mirrors.follow.POLL": 0.2,
    }
}
PATIENCE = 4  # seconds, in place of ten
SHORT = {"constants": AWAKE["constants"] | {"gpt.tracker.mirror.PATIENCE": float(PATIENCE)}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """No credentials, settings or caches of whoever runs the tests; nothing is sent to W&B itself."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name.lower()))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name, seconds in IMPATIENT.items():  # the package's settings whose names begin with x_
        monkeypatch.setenv(f"WANDB__{name}", seconds)
    return tmp_path


@pytest.fixture
def server(home, monkeypatch):
    """A W&B that this machine's commands speak to."""
    with serving() as served:
        monkeypatch.setenv("WANDB_BASE_URL", served.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield served


def mirror(*arguments: str, cwd: Path, module: str = "mirrors.wandb") -> subprocess.CompletedProcess:
    """python -m gpt.mirrors.wandb, or another."""
    return call(*arguments, cwd=cwd, script=f"gpt.{module}", timeout=120)


def only(things):
    (thing,) = things
    return thing


def logged(rows: list[dict]) -> list[dict]:
    """What of W&B's rows comes from metrics.jsonl."""
    extra = re.compile(r"_step|_timestamp|_runtime|samples|loss|(gradients|parameters)/.*")
    return [{key: value for key, value in row.items() if not extra.fullmatch(key)} for row in rows]


def test_a_tail_gives_whole_lines_once(tmp_path):
    tail = Tail(tmp_path / "log")
    assert tail.rows() == []
    with open(tmp_path / "log", "w") as file:
        for text, rows in [('{"a": 1}\n{"a"', [{"a": 1}]), ("", []), (": 2", []), ("}\n", [{"a": 2}])]:
            file.write(text)
            file.flush()
            assert tail.rows() == rows


def test_samples_are_read_back_as_they_were_written(tmp_path):
    from gpt.rundir import SAMPLES
    from gpt.tracker.mirror import Mirror
    from gpt.tracker.tracker import Tracker

    samples = [(1, ""), (20, "a\n\n--- step 3 of a recipe\nb\n"), (300, "--- step")]
    with Tracker(tmp_path, {}, 0, 300, Mirror("local", tmp_path, False)) as tracker:
        for step, text in samples:
            tracker.sample(step, text)
    assert parse_samples((tmp_path / SAMPLES).read_text()) == samples


def test_histograms_count_every_value():
    values = torch.randn(5_000_001, generator=torch.Generator().manual_seed(0))
    held = _histogram(values.view(-1, 3))
    assert sum(held["counts"]) == 5_000_001 and (held["min"], held["max"]) == (values.min(), values.max())
    expected, _ = np.histogram(values.numpy(), BINS)
    assert np.abs(np.array(held["counts"]) - expected).max() <= 5  # values that lie on an edge, in float32
    assert _histogram(torch.full((7,), 2.0))["counts"].count(7) == 1
    assert _histogram(torch.tensor([1.0, torch.nan])) is _histogram(torch.tensor([1.0, -torch.inf])) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "room, others",
    [("trainer", {"wandb", "tensorboardX"}), ("tracker.mirror", {"torch"}), ("mirrors.wandb", {"torch"})],
)
def test_training_imports_nothing_of_wandb_and_a_mirror_nothing_of_torch(room, others):
    code = f"import gpt.{room}, sys; assert not {others} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_is_not_committed_is_kept(tmp_path):
    def run_git(*arguments: str) -> None:
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run(["git", *who, "-C", tmp_path, *arguments], check=True, capture_output=True)

    (repository := tmp_path).joinpath("code.py").write_text("a = 1\n")
    assert _git(repository / "nowhere") == (None, b"")
    run_git("init", "-q")
    run_git("add", ".")
    run_git("commit", "-q", "-m", "first")
    about, diff = _git(repository)
    assert len(about["commit"]) == 40 and (about["changed"], diff) == (False, b"")
    (repository / "code.py").write_text("a = 2\n")
    about, diff = _git(repository)
    assert about["changed"] and b"-a = 1\n+a = 2\n" in diff
    run_git("remote", "add", "origin", "https://user:secret@example.org/lab/code.git")
    assert _git(repository)[0]["remote"] == "https://example.org/lab/code.git"


@pytest.mark.parametrize(
    "remote, public",
    [
        ("https://example.org/lab/code.git", "https://example.org/lab/code.git"),
        ("https://secret@example.org/code.git", "https://example.org/code.git"),
        ("https://user:secret@example.org:8443/code.git", "https://example.org:8443/code.git"),
        ("https://user:se@cr?et@example.org/@lab/code.git", "https://example.org/@lab/code.git"),
        ("https://example.org/code.git?private_token=secret#secret", "https://example.org/code.git"),
        ("ssh://git@example.org:22/code.git", "ssh://git@example.org:22/code.git"),
        ("ssh://secret@example.org/code.git", "ssh://example.org/code.git"),
        ("helper::https://user:secret@example.org/code.git", "helper::https://example.org/code.git"),
        ("git@example.org:lab/code.git", "git@example.org:lab/code.git"),
        ("secret@example.org:lab/code.git", "example.org:lab/code.git"),
        ("/srv/me@lab/code.git", "/srv/me@lab/code.git"),
    ],
)
def test_a_remote_is_noted_without_secrets(remote, public):
    assert _without_secrets(remote) == public


@pytest.mark.slow
def test_wandb_has_everything_about_a_run(server, small, tmp_path):
    done = call(*small, *RUN, "tracker.plot=true", "tracker.histograms_every=10", "tracker.artifacts=best", "tags=[a,b]", "tracker.notes=why", cwd=tmp_path, **AWAKE)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_id, run = only(server.runs.items())
    assert f"wandb       {server.url}/somebody/gptlab/runs/{run_id}" in done.stdout
    assert json.loads((tmp_path / "run" / "wandb.json").read_text())["id"] == run_id
    assert (run["displayName"], run["jobType"], run["tags"], run["notes"]) == ("run", "train", ["a", "b"], "why")
    rows, result = read_metrics(tmp_path / "run"), json.loads((tmp_path / "run" / "result.json").read_text())
    history = server.history(run_id)
    assert [row["_step"] for row in history] == [row["step"] for row in rows]
    assert logged(history) == rows
    config = server.config(run_id)
    assert config["model"]["n_layer"] == 2 and config["optimizer"]["betas"] == [0.9, 0.95]
    facts = config["facts"]
    assert facts["parameters"] == result["parameters"] and facts["data_fingerprint"] == result["data_fingerprint"]
    assert facts["data_order_hash"] == result["data_order_hash"]
    assert {"flops_per_token", "git", "versions", "machine", "world_size", "total_tokens"} <= set(facts)
    assert facts["versions"]["torch"] == torch.__version__
    summary = server.summary(run_id)
    for key in ("val_loss", "best_val_loss", "data_order_hash", "peak_memory_bytes"):
        assert summary[key] == result[key]
    assert summary["tokens_per_sec"] > 0 and summary["hours"] > 0 and summary["status"] == "done"
    assert [row["_step"] for row in history if "gradients/wte.weight" in row] == [10, 20]
    held = history[9]["parameters/h.0.attn.c_attn.weight"]
    assert held["_type"] == "histogram" and sum(held["values"]) == 32 * 96 and len(held["bins"]) == BINS + 1
    assert [row["_step"] for row in history if "samples" in row] == [5, 10, 15, 20]
    table = json.loads(server.uploads[f"{run_id}/{history[-1]['samples']['path']}"])
    assert table["columns"] == ["step", "tokens", "sample"]
    written = parse_samples((tmp_path / "run" / "samples.txt").read_text())
    assert [(step, sample) for step, _, sample in table["data"]] == written
    assert server.uploads[f"{run_id}/{history[-1]['loss']['path']}"] == (tmp_path / "run" / "loss.png").read_bytes()
    checkpoint = only(artifact for artifact in server.artifacts if artifact["type"] == "model")
    assert {"run", "best", "step_00000020"} <= set(checkpoint["aliases"]) and checkpoint["state"] == "COMMITTED"
    assert {"model.safetensors", "state.json"} <= set(checkpoint["files"])
    assert run["exitcode"] == 0


@pytest.fixture(scope="module")
def local(small, tmp_path_factory):
    """The same run without a mirror."""
    cwd = tmp_path_factory.mktemp("local")
    assert call(*small, *RUN, "tracker=local", cwd=cwd).returncode == 0
    return deterministic(cwd / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "mood, said",
    [
        ("no key", r"wandb       No API key configured.*; for the rest: python -m gpt.mirrors.wandb "),
        ("refuse", r"wandb       .*invalid API key"),
        ("deny", r"wandb       permission denied"),
        ("garbage", r"wandb       .*invalid character"),
        ("hang", rf"(not all of it has arrived|not done within {PATIENCE} s); for the rest"),
        ("hang later", rf"(not all of it has arrived|not done within {PATIENCE} s); for the rest"),
        ("no disk", r"mirror      (not started|ended by code 1)|wandb       .*; for the rest"),
    ],
)
def test_whatever_wandb_does_training_is_the_same(server, small, local, tmp_path, monkeypatch, mood, said):
    overrides = []
    if mood == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    elif mood == "no disk":
        (tmp_path / "full").touch()
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / "full" / "there"))
        overrides = ["tracker=wandb_offline"]
    elif mood == "hang later":
        server.moods_after = {"UpsertBucket": "hang"}
    else:
        server.mood = mood
    done = call(*small, *RUN, *overrides, cwd=tmp_path, **(SHORT if mood.startswith("hang") else AWAKE))
    over = time.time() - (tmp_path / "run" / "result.json").stat().st_mtime
    assert done.returncode == 0, done.stderr
    assert deterministic(tmp_path / "run") == local
    assert re.search(said, done.stdout), done.stdout
    assert "ended by SIG" not in done.stdout, done.stdout
    assert over < 15  # its patience, and what a busy machine takes to end a process
    if mood not in ("hang later", "no disk"):
        return
    server.mood, server.moods_after = "accept", {}
    monkeypatch.delenv("WANDB_DIR", raising=False)
    sent = mirror("run", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert logged(server.history(only(server.runs))) == read_metrics(tmp_path / "run")


def children(pid: int, log: str = "") -> list[int]:
    """The processes that a process has started whose stderr is a file of that name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and os.readlink(path.parent / "fd" / "2").endswith(log):
                found.append(int(path.parent.name))
        except (OSError, IndexError):
            continue
    return found


def stop_at(rows: int, process: Started, cwd: Path) -> None:
    """Stop a training when it has logged so many rows, so that its mirror may come as far, however fast it is."""
    until((cwd / "run" / METRICS).exists)
    until(lambda: len(read_metrics(cwd / "run")) >= rows)
    process.send_signal(signal.SIGSTOP)


def rows_in(server) -> int:
    """How many rows W&B has."""
    return sum(len(run.get("wandb-history.jsonl", [])) for run in server.runs.values())


@pytest.mark.slow
@pytest.mark.parametrize("rows_at_kill", [0, random.Random(7).randrange(1, 100)])
def test_a_mirror_that_is_killed_loses_nothing_that_cannot_be_sent_later(server, small, tmp_path, rows_at_kill):
    """Killed when W&B has so many rows; 0: before it has any."""
    long = ["trainer.max_steps=150", "trainer.eval_every=25_600", "tracker.histograms_every=50"]
    process = Started(*small, *RUN, *long, cwd=tmp_path, **AWAKE)
    victim = only(until(lambda: children(process.pid, "logs/mirror.log")))
    if rows_at_kill:
        stop_at(100, process, tmp_path)
        until(lambda: rows_in(server) >= rows_at_kill)
    os.kill(victim, signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert (
        "mirror      ended by SIGKILL, see run/logs/mirror.log; for the rest: python -m gpt.mirrors.wandb run" in said
    )
    for _ in range(2):  # the second time there is nothing left to send
        sent = mirror("run", cwd=tmp_path)
        assert sent.returncode == 0, sent.stderr
        run_id, run = only(server.runs.items())
        assert logged(server.history(run_id)) == read_metrics(tmp_path / "run")
        assert [row["_step"] for row in server.history(run_id) if "gradients/wte.weight" in row] == [50, 100, 150]
    assert run["exitcode"] == 0 and server.summary(run_id)["status"] == "done"


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_wandb_without_gap_or_repetition(server, small, tmp_path):
    """Killed after its rows went beyond its last checkpoint, which was then lost; and the next time ended by Ctrl-C."""
    long = ["trainer.max_steps=200", "trainer.eval_every=25_600", "checkpoint.every=20", "checkpoint.keep=2"]
    process = Started(*small, *RUN, *long, cwd=tmp_path, **AWAKE)
    stop_at(60, process, tmp_path)
    until(lambda: rows_in(server) > 45)
    process.kill()
    process.communicate()
    newest = max((tmp_path / "run" / "checkpoints").glob("step_*"))
    shutil.rmtree(newest)
    before = json.loads(server.runs[only(server.runs)]["wandb-history.jsonl"][-1])["_step"]
    process = Started("resume=run", cwd=tmp_path, **AWAKE)
    until(lambda: len(read_metrics(tmp_path / "run")) > before + 20)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert server.runs[only(server.runs)]["exitcode"] == 75
    assert call("resume=run", cwd=tmp_path, **AWAKE).returncode == 0
    run_id, run = only(server.runs.items())
    history, rows = logged(server.history(run_id)), read_metrics(tmp_path / "run")
    assert [row["step"] for row in history] == list(range(1, 201))
    kept = [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in history]
    assert kept == [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows]
    assert history[-20:] == rows[-20:] and run["exitcode"] == 0


def offline_records(run_dir: Path) -> dict[str, list]:
    """What the files that W&B's package has written hold, by kind of record, in order of time."""
    from gpt.mirrors.wandb_file import _records

    found = {}
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        for record in _records(path):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
    return found


@pytest.mark.slow
def test_a_sweep_of_several_ranks_is_written_offline_and_uploaded_in_one_call(server, small, tmp_path):
    """One job is killed with all its processes, and goes on."""
    arguments = [
        *small, "tracker=wandb_offline", "tracker.plot=true", "tracker.histograms_every=20", "cluster=ddp",
        "cluster.nproc=2", "batch.micro_batch_size=4", "trainer.max_steps=60", "trainer.eval_every=5_120",
        "checkpoint.every=20", "tags=[x]", "tracker.notes=why", "tracker.artifacts=last", "seed=1,2", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    process = Started("--multirun", *arguments, cwd=tmp_path, **AWAKE)
    run_dir = tmp_path / "sweep" / "seed-2"
    until((run_dir / "checkpoints" / "step_00000020").exists, 200)
    job = only(children(process.pid))
    for rank in children(job):  # which wait until W&B has begun, however late
        os.kill(rank, signal.SIGSTOP)
    until(lambda: "run" in offline_records(run_dir))
    os.kill(job, signal.SIGKILL)
    process.communicate(timeout=200)
    assert process.returncode == 1
    again = call("--multirun", *arguments, cwd=tmp_path, timeout=200, **AWAKE)
    assert again.returncode == 0
    assert again.stdout.endswith("upload      python -m gpt.mirrors.wandb sweep\n")
    from gpt.mirrors.wandb_file import _history

    ids = set()
    for seed in (1, 2):
        run_dir = tmp_path / "sweep" / f"seed-{seed}"
        found, rows = offline_records(run_dir), read_metrics(run_dir)
        run = found["run"][-1]
        ids.add(run.run_id)
        assert (run.display_name, run.run_group, run.job_type, run.notes) == (f"seed-{seed}", "sweep", "train", "why")
        assert list(run.tags) == ["x"] and {start.run_id for start in found["run"]} == {run.run_id}
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert config["seed"] == seed and config["cluster"]["nproc"] == 2 and config["facts"]["world_size"] == 2
        assert config["facts"]["git"] is None or len(config["facts"]["git"]["commit"]) == 40
        files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
        assert len(files) == (2 if seed == 2 else 1)
        held = [row for path in files for row in _history(path)]
        assert [row["_step"] for row in held] == list(range(1, 61))
        assert [row["train/loss"] for row in held] == [row["train/loss"] for row in rows]
        assert [row["_step"] for row in held if "gradients/wte.weight.values" in row] == [20, 40, 60]
        assert held[-1]["loss._type"] == "image-file" and held[-1]["samples._type"] == "table-file"
        metrics = {metric.name or metric.glob_name: metric for metric in found["metric"]}
        assert metrics["*"].step_metric == "tokens" and metrics["val/loss"].summary.min
        summary = {update.key: update.value_json for record in found["summary"] for update in record.update}
        assert json.loads(summary["status"]) == "done" and {"val_loss", "best_val_loss", "hours"} <= set(summary)
        assert found["stats"] and found["exit"][-1].exit_code == 0
        assert {"model", "run_table"} == {artifact.type for artifact in found["artifact"]}
        checkpoint = [artifact for artifact in found["artifact"] if artifact.type == "model"][-1]
        assert {f"seed-{seed}", "step_00000060", "last"} <= set(checkpoint.aliases)
        sent = {file.path for files in found["files"] for file in files.files}
        assert ("code.diff" in sent) == (run_dir / "code.diff").exists()
    assert len(ids) == 2
    sent = mirror("sweep", cwd=tmp_path)
    assert sent.returncode == 0 and set(server.runs) == ids, sent.stderr
    assert {run["groupName"] for run in server.runs.values()} == {"sweep"}
    for run_id, run in server.runs.items():
        assert logged(server.history(run_id)) == read_metrics(tmp_path / "sweep" / run["displayName"])


@pytest.mark.slow
def test_a_server_that_comes_back_gets_everything(server, small, tmp_path):
    server.mood = "garbage"
    process = Started(*small, *RUN, "trainer.max_steps=150", cwd=tmp_path, **AWAKE)
    stop_at(60, process, tmp_path)
    until(lambda: server.turned_away)
    server.mood = "accept"
    until(lambda: rows_in(server), seconds=180)  # the pauses between attempts double
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "training goes on, and so do attempts" in said
    assert mirror("run", cwd=tmp_path).returncode == 0  # for what a busy machine has not sent in ten seconds
    assert logged(server.history(only(server.runs))) == read_metrics(tmp_path / "run")


@pytest.mark.slow
def test_a_view_of_a_sweep_is_saved(server, small, tmp_path):
    for job in ("1", "64"):
        job = [f"model.vocab_multiple={job}", f"hydra.run.dir=sweep/vocab_multiple-{job}", "trainer.max_steps=4"]
        assert call(*small, *job, "sample.tokens=0", cwd=tmp_path).returncode == 0
    jobs = {"vocab_multiple-1": {}, "vocab_multiple-64": {}}
    write_json(tmp_path / "sweep" / "sweep.json", {"layout": LAYOUT, "jobs": jobs, "baseline": None})
    saved = mirror("sweep", "project=p", cwd=tmp_path, module="mirrors.workspace")
    assert saved.returncode == 0, saved.stderr
    assert saved.stdout.startswith(f"{server.url}/somebody/p")
    view = only(server.views)
    assert (view["displayName"], view["entityName"], view["projectName"]) == ("sweep sweep", "somebody", "p")
    text = json.dumps(view["spec"])
    assert "model.value.vocab_multiple" in text and '"val/loss"' in text and '"group"' in text
    refused = mirror("sweep/vocab_multiple-1", cwd=tmp_path, module="mirrors.workspace")
    assert refused.returncode == 2 and "is one run\n  give the output directory of a sweep" in refused.stderr
    server.mood = "refuse"
    refused = mirror("sweep", cwd=tmp_path, module="mirrors.workspace")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr, refused.stderr


@pytest.mark.slow
def test_metrics_that_are_no_numbers_reach_wandb_as_they_are(server, small, local, tmp_path):
    call(*small, *RUN, "tracker=local", cwd=tmp_path)
    path = tmp_path / "run" / METRICS
    rows = read_metrics(path.parent)
    rows[3] |= {"a": float("nan"), "b": float("-inf"), "c": None}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert mirror("run", "project=p", "entity=e", cwd=tmp_path).returncode == 0
    run_id, run = only(server.runs.items())
    assert (run["project"], run["entity"]) == ("p", "e")
    row = server.history(run_id)[3]
    assert (str(row["a"]), str(row["b"]), row.get("c")) == ("nan", "-inf", None)
    assert [row["_step"] for row in server.history(run_id)] == [row["step"] for row in rows]


@pytest.mark.slow
def test_a_wrong_upload_is_refused(server, small, tmp_path):
    for arguments, said in [
        ([], "no directory is given"),
        (["nowhere"], "nowhere: no such directory"),
        (["."], "is empty"),
        (["run", "projet=p"], "did you mean project?"),
        (["run", "artifacts=some"], "artifacts=some is not known\n  allowed: none, last, best, all"),
    ]:
        if arguments[:1] == ["run"] and not (tmp_path / "run").exists():
            assert call(*small, *RUN, "tracker=local", cwd=tmp_path).returncode == 0
        refused = mirror(*arguments, cwd=tmp_path)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    with locked(tmp_path / "run"):
        refused = mirror("run", cwd=tmp_path)
    assert refused.returncode == 2 and "run is in use: its run is still going on" in refused.stderr
    server.mood = "refuse"
    refused = mirror("run", cwd=tmp_path)
    assert refused.returncode == 1 and "invalid API key" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_tensorboard_shows_every_row_once(small, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    done = call(*small, *RUN, "tracker=tensorboard", "tracker.histograms_every=10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "look        tensorboard --logdir run\n" in done.stdout

    def scalars() -> dict[str, list]:
        found = {}
        data = only((tmp_path / "run" / "tensorboard").iterdir()).read_bytes()
        while data:  # records of length, its checksum, content, its checksum (TensorFlow's TFRecord)
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                found.setdefault(value.tag, []).append(
                    (event.step, value.simple_value if kind == "simple_value" else kind)
                )
            data = data[16 + length :]
        return found

    for _ in range(2):
        found, rows = scalars(), read_metrics(tmp_path / "run")
        assert found["train/loss"] == [(row["tokens"], pytest.approx(row["train/loss"])) for row in rows]
        assert found["gradients/wte.weight"] == [(2560, "histo"), (5120, "histo")]
        assert len(found["sample/text_summary"]) == 4
        assert mirror("run", cwd=tmp_path, module="mirrors.tensorboard").returncode == 0


def test_the_summary_has_every_metric_of_validation_though_a_run_failed(tmp_path):
    from gpt.compare.runs import Run
    from gpt.mirrors.wandb import _summary

    row = {"step": 1, "tokens": 10, "train/loss": 3.0, "perf/tokens_per_sec": 5.0}
    rows = [row | {"val/loss": 2.0, "val/exact_match": 0.5, "val/word_errors": 7}, row | {"tokens": 20}]
    result = {"layout": 1, "status": "failed", "seconds": 1.0}
    run = Run(name="run", path=tmp_path, state="failed", config={}, result=result, rows=rows, starts=[])
    assert _summary(run) == {
        "status": "failed", "seconds": 1.0, "exact_match": 0.5, "word_errors": 7, "val_loss": 2.0, "best_val_loss": 2.0,
        "tokens_per_sec": 5.0, "hours": 4 / 3600,
    }  # fmt: skip
