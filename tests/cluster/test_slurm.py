"""cluster=slurm: the sbatch file, refusals, and real jobs where there is a SLURM."""

import json
import re
import shlex
import signal
import subprocess

import pytest
from conftest import ASKS, SLURM, Started, call, slurm, until

from gpt.cli.compose import compose
from gpt.cluster.slurm import _build_executor, _job_state, _local_cluster, sbatch_file
from gpt.errors import InputError
from gpt.tracker.logs import read_metrics


def submitted(stdout: str) -> str:
    """The number of the job that a command says it has submitted."""
    return stdout.partition("SLURM job")[2].split()[0]


def test_the_sbatch_file_says_what_the_keys_say():
    asked = ["cluster.nnodes=2", "cluster.gpus=8", "cluster.cpus=64", "cluster.memory=500G", "cluster.time=1-00:00:00"]
    asked += [
        "cluster.partition=long",
        "cluster.account=lab",
        "+cluster.sbatch.constraint=a100",
        "+cluster.sbatch.exclusive=true",
    ]
    text = sbatch_file(
        compose(
            ["cluster=slurm", *asked, "cluster.setup=['module load cuda']", "name=pad", "batch.global_tokens=16384"]
        )
    )
    lines = text.splitlines()
    for line in """
        --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --mem=500G --time=1-00:00:00
        --partition=long --account=lab --constraint=a100 --exclusive --job-name=pad
    """.split():
        assert f"#SBATCH {line}" in lines
    assert lines.index("module load cuda") < lines.index("# command")


ODD = 'it\'s $HOME `id` "and" #more;'


def test_odd_paths_are_quoted(tmp_path, monkeypatch):
    root = tmp_path / ODD
    monkeypatch.setattr("gpt.cluster.slurm.ROOT", root)
    lines = _build_executor(compose(SLURM), root / "run").text().splitlines()
    (export,) = (line for line in lines if "PYTHONPATH" in line)
    said = subprocess.run(
        ["bash", "-c", f"PYTHONPATH=/other\n{export}\nprintenv PYTHONPATH"], capture_output=True, text=True
    )
    assert said.stdout == f"{root}:/other\n"
    (output,) = (line for line in lines if line.startswith("#SBATCH --output"))
    assert shlex.split(output, comments=False)[1] == f"--output={root}/run/slurm/%j_0_log.out"


@pytest.mark.parametrize("name", ["50%", "back\\slash", "two\nlines"])
def test_paths_that_no_sbatch_file_can_name_are_refused(name, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"the output directory .* and no sbatch file can name it\n  take another"):
        _build_executor(compose(SLURM), tmp_path / name)
    monkeypatch.setattr("gpt.cluster.slurm.ROOT", tmp_path / "a:b")
    with pytest.raises(InputError, match=r"the directory of gptlab .* has ':' in it"):
        _build_executor(compose(SLURM), tmp_path)


def test_threads_of_a_job_sleep_while_they_wait_unless_the_user_says_otherwise():
    """Also where sbatch was told to take nothing of the environment along."""
    text = sbatch_file(compose([*SLURM, "cluster.setup=['echo $OMP_WAIT_POLICY $GOMP_SPINCOUNT']"]))
    setup = text[text.index("export") : text.index("# command")]
    for given, expected in (
        ("", "PASSIVE 1000"),
        ("OMP_WAIT_POLICY=ACTIVE", "ACTIVE"),
        ("GOMP_SPINCOUNT=7", "PASSIVE 7"),
    ):
        said = subprocess.run(["env", "-i", given or "A=", "bash", "-c", setup], capture_output=True, text=True)
        assert said.stdout == f"{expected}\n"


def test_what_is_not_given_is_left_to_slurm():
    text = sbatch_file(compose(SLURM))
    assert "--cpus-per-task=2" in text
    for key in ("time", "mem", "partition", "account", "gpus", "wckey"):
        assert f"--{key}" not in text


@pytest.mark.slow
def test_a_dry_run_needs_no_slurm_and_leaves_nothing(small, tmp_path):
    shown = call(*small, *SLURM, "cluster.dry_run=true", cwd=tmp_path, env={"PATH": str(tmp_path)})
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("#!/bin/bash") and "--output=OUTPUT_DIR/slurm/%j_0_log.out" in shown.stdout
    assert not list(tmp_path.iterdir())


def test_without_slurm_a_job_is_refused(small, tmp_path):
    refused = call(*small, *SLURM, cwd=tmp_path, env={"PATH": str(tmp_path)})
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: cluster=slurm needs sbatch, and there is none here\n")
    assert not list(tmp_path.iterdir())


def test_machines_of_a_job_meet_on_the_first(monkeypatch):
    for key, value in {"JOB_ID": "70001", "NODEID": "1", "JOB_NODELIST": "gpu[07-08]"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    two = _local_cluster(compose(["cluster=slurm", "cluster.nnodes=2", "cluster.gpus=8"]).cluster)
    assert (two.name, two.nproc, two.nnodes, two.node_rank) == ("multinode", 8, 2, 1)
    host, port = two.rdzv_endpoint.split(":")
    assert host == "gpu07" and 16384 <= int(port) < 32768
    assert _local_cluster(compose(["cluster=slurm"]).cluster).name == "single"
    assert _local_cluster(compose(SLURM).cluster).name == "ddp"


@slurm
@pytest.mark.slow
def test_slurm_is_asked_before_anything_is_made(small, tmp_path):
    refused = call(*small, *SLURM, "cluster.partition=nowhere", cwd=tmp_path)
    assert refused.returncode == 2
    assert "error: sbatch would not take the job: invalid partition specified: nowhere" in refused.stderr
    assert not list(tmp_path.iterdir())


@slurm
@pytest.mark.slow
def test_a_sweep_on_slurm_is_what_it_is_here(small, tmp_path):
    """Its jobs outlive it, are found again, and are the same runs; one that fails runs again."""
    tmp_path /= ODD  # which SLURM can write to
    tmp_path.mkdir()
    run = [*small, "trainer.max_steps=200", "trainer.eval_every=25_600"]

    def arguments(rates: str, *more: str) -> list[str]:
        return ["--multirun", *run, *SLURM, *more, f"optimizer.lr={rates}", "hydra.sweep.dir=there"]

    def states(said: str) -> list[tuple[str, str]]:
        return re.findall(r"^\[\d/\d\]  (kept|done|failed) +(\S+)", said, re.MULTILINE)

    there = tmp_path / "there" / "lr-0.001"
    killed = Started(*arguments("1e-3,2e-3"), cwd=tmp_path, **ASKS)
    until((there / "metrics.jsonl").exists, process=killed)
    killed.kill()
    killed.communicate()
    assert not (there / "result.json").exists()
    done = call(*arguments("1e-3,2e-3"), cwd=tmp_path, **ASKS)
    assert done.returncode == 0, done.stderr
    for job in ("lr-0.001", "lr-0.002"):
        assert re.search(rf"(done|kept)         {job}  val \d", done.stdout), done.stdout
        submitted_as = list((tmp_path / "there" / job / "slurm").glob("*_submitted.pkl"))
        assert len(submitted_as) == 1  # and not again
        assert (tmp_path / "there" / job / "logs" / "rank_1.log").exists()
    for _ in range(2):
        more = call(*arguments("1e-3,2e-3,1e30", "cluster.nproc=1"), cwd=tmp_path, **ASKS)
        assert more.returncode == 1 and "error: 1 of 3 jobs failed" in more.stderr, more.stderr
        assert states(more.stdout) == [("kept", "lr-0.001"), ("kept", "lr-0.002"), ("failed", "lr-1e+30")]
        assert re.search(r"lr-1e\+30 +failed +step \d+: loss", more.stdout[more.stdout.index("job ") :])

    here = tmp_path / "here"
    assert call(*run, "optimizer.lr=1e-3", "hydra.run.dir=here", cwd=tmp_path).returncode == 0
    mine, other = (json.loads((run_dir / "result.json").read_text()) for run_dir in (here, there))
    assert other["status"] == "done" and other["data_order_hash"] == mine["data_order_hash"]
    for key in ("train/loss", "val/loss"):
        expected = [row[key] for row in read_metrics(here) if key in row]
        assert [row[key] for row in read_metrics(there) if key in row] == pytest.approx(expected, abs=1e-5)


@slurm
@pytest.mark.slow
def test_who_waits_may_leave_and_a_warned_job_saves(small, tmp_path):
    long = ["trainer.max_steps=100_000", "data.num_workers=1", "hydra.run.dir=run"]
    waiting = Started(*small, *SLURM, *long, cwd=tmp_path, **ASKS)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and read_metrics(tmp_path / "run"), process=waiting)
    waiting.send_signal(signal.SIGINT)
    said, left = waiting.communicate(timeout=30)
    assert waiting.returncode == 75
    job = submitted(said)
    assert f"  scancel --signal=USR2 {job}\n" in left
    assert _job_state(job).startswith("RUNNING")
    for cluster in ([], ["cluster=single"]):  # asked of SLURM, and of the training's own lock
        second = call("resume=run", *cluster, cwd=tmp_path)
        assert second.returncode == 2
        assert "is in use" in second.stderr, second.stderr
    subprocess.run(["scancel", "--signal=USR2", job], check=True)  # as at the time limit
    until((tmp_path / "run" / "slurm" / f"{job}_0_result.pkl").exists)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert (tmp_path / "run" / "logs" / "rank_1.log").exists()
    on = call("resume=run", "cluster=single", f"trainer.max_steps={result['step'] + 2}", cwd=tmp_path)
    assert on.returncode == 0, on.stderr


@slurm
@pytest.mark.slow
def test_what_went_wrong_in_a_job_is_said_where_one_waits(small, tmp_path):
    refused = call(*small, "cluster=slurm", "cluster.gpus=0", "cluster.nproc=1", "device=cuda", cwd=tmp_path, **ASKS)
    assert refused.returncode == 2
    assert "error: device=cuda" in refused.stderr

    cancelled = Started(*small, *SLURM, cwd=tmp_path, stdout_is_pipe=True, **ASKS)
    job = submitted(cancelled.stdout.readline())
    subprocess.run(["scancel", job], check=True)
    _, why = cancelled.communicate(timeout=60)
    assert cancelled.returncode == 1
    assert why.startswith(f"error: SLURM job {job} has ended without a result: cancelled")
