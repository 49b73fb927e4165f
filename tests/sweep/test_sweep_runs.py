"""Sweeps as a user starts them: kept, continued, killed, failed, in parallel, interrupted."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Started, assert_same, call, deterministic, processes_in, until

from gpt.cli.compose import compose
from gpt.compare import compare
from gpt.config.groups import options

pytestmark = pytest.mark.slow
QUICK = ["trainer.max_steps=4", "trainer.eval_every=512", "sample.tokens=0"]
SOON = ["trainer.eval_tokens=512", "sample.tokens=0"]
TOY = ["experiment=ablation_toy", "trainer.max_tokens=2_048", "trainer.eval_every=1_024", "trainer.eval_tokens=512"]


def sweep(*arguments: str, cwd: Path, **how) -> subprocess.CompletedProcess:
    return call("--multirun", *arguments, "hydra.sweep.dir=sweep", cwd=cwd, timeout=240, **how)


def start(*arguments: str, cwd: Path, **how) -> Started:
    return Started("--multirun", *arguments, "hydra.sweep.dir=sweep", cwd=cwd, **how)


def results(directory: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in directory.glob("*/result.json")}


def events(stdout: str, state: str) -> list[str]:
    """The jobs of which it was said that they are in a state."""
    return re.findall(rf"^\[\d+/\d+\]  {state} +([^ \n]+)", stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A sweep of two jobs, done, in ``sweep``; the arguments that made it, and what it said."""
    cwd = tmp_path_factory.mktemp("finished")
    arguments = [*small, *QUICK, "model.vocab_multiple=1,64"]
    done = sweep(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd, arguments, done.stdout


@pytest.fixture
def again(finished, tmp_path):
    """A copy of it to go on with."""
    cwd, arguments, _ = finished
    shutil.copytree(cwd / "sweep", tmp_path / "sweep", symlinks=True)
    return tmp_path, arguments


def test_a_finished_sweep_is_kept_and_values_can_be_added(again):
    cwd, arguments = again
    before = {path: path.read_bytes() for path in (cwd / "sweep").rglob("*") if path.is_file()}
    kept = sweep(*arguments, cwd=cwd)
    assert kept.returncode == 0, kept.stderr
    assert events(kept.stdout, "kept") == ["vocab_multiple-1", "vocab_multiple-64"]
    assert not events(kept.stdout, "running")
    assert {path: path.read_bytes() for path in (cwd / "sweep").rglob("*") if path.is_file()} == before

    more = sweep(*arguments[:-1], "model.vocab_multiple=64,128", cwd=cwd)
    assert more.returncode == 0, more.stderr
    assert (events(more.stdout, "kept"), events(more.stdout, "running")) == (
        ["vocab_multiple-64"],
        ["vocab_multiple-128"],
    )
    index = json.loads((cwd / "sweep" / "sweep.json").read_text())
    assert list(index["jobs"]) == ["vocab_multiple-1", "vocab_multiple-64", "vocab_multiple-128"]
    losses = [result["val_loss"] for result in results(cwd / "sweep").values()]
    assert max(losses) - min(losses) < 1e-5


def test_jobs_are_runs_of_their_own(finished):
    """With a config, overrides and a log of their own, and continued by name."""
    cwd, _, said = finished
    run_dir = cwd / "sweep" / "vocab_multiple-64"
    names = {path.name for path in run_dir.iterdir()}
    assert {".hydra", "config.yaml", "metrics.jsonl", "result.json", "log.txt", "checkpoints"} <= names
    assert "4 steps of 256 tokens" in (run_dir / "log.txt").read_text()
    assert "vocab_multiple-64   done" in said
    refused = call("resume=sweep/vocab_multiple-64", cwd=cwd)
    assert refused.returncode == 2 and "this run is finished, at step 4 of 4" in refused.stderr


def test_a_job_keeps_its_length_and_a_copy_of_it_does_not(again):
    """As the refusal advises; the sweep is as it was."""
    cwd, arguments = again
    job = cwd / "sweep" / "vocab_multiple-64"
    refused = call(f"resume={job}", "trainer.max_steps=8", cwd=cwd)
    assert refused.returncode == 2
    assert f"a job of the sweep in {cwd}/sweep keeps its length: trainer.max_steps 4 -> 8" in refused.stderr
    advice = re.search(r"cp -r (\S+) (\S+) && python train.py resume=(\S+) …", refused.stderr)
    assert advice[1] == str(job) and advice[2] == advice[3]
    subprocess.run(["cp", "-r", advice[1], advice[2]], check=True)
    longer = call(f"resume={advice[3]}", "trainer.max_steps=8", cwd=cwd)
    assert longer.returncode == 0, longer.stderr
    assert json.loads((Path(advice[2]) / "result.json").read_text())["step"] == 8
    kept = sweep(*arguments, cwd=cwd)
    assert events(kept.stdout, "kept") == ["vocab_multiple-1", "vocab_multiple-64"], kept.stderr


def test_seeds_are_added_to_a_sweep_of_one(small, tmp_path):
    """Its job is kept, under the name that it has."""
    name = "data-text_max_steps-4_eval_tokens-512_tokens-0_device-cpu_seed-1"
    given = [
        "data=text",
        "trainer.max_steps=4",
        *SOON,
        *(o for o in small if o.startswith(("data.", "device", "cluster"))),
    ]
    assert sweep(*given, "seed=1", cwd=tmp_path).returncode == 0
    assert list(results(tmp_path / "sweep")) == [name]
    given[1] = "trainer.max_steps=0.004k"  # the same job, written in another way
    more = sweep(*given, "seed=1,2", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert (events(more.stdout, "kept"), events(more.stdout, "done")) == ([name], ["seed-2"])


def test_a_changed_config_is_refused_or_run_anew(again):
    cwd, arguments = again
    refused = sweep(*arguments, "optimizer.lr=1e-4", cwd=cwd)
    assert refused.returncode == 2
    assert (
        "job 1 of 2 (vocab_multiple-1): sweep/vocab_multiple-1 holds a run with another config: optimizer.lr"
        in refused.stderr
    )
    assert "sweep.on_change=rerun" in refused.stderr
    before = results(cwd / "sweep")
    anew = sweep(*arguments, "optimizer.lr=1e-4", "sweep.on_change=rerun", cwd=cwd)
    assert anew.returncode == 0, anew.stderr
    assert results(cwd / "sweep")["vocab_multiple-1"]["val_loss"] != before["vocab_multiple-1"]["val_loss"]
    assert results(cwd / "sweep" / "replaced")["vocab_multiple-1-1"] == before["vocab_multiple-1"]


def test_a_run_that_was_to_be_replaced_and_was_not_does_not_pass_for_the_new_one(again):
    """The sweep stops before it comes to the second job, whose directory still holds the run of other settings."""
    cwd, arguments = again
    anew = [*arguments, "optimizer.lr=1e30", "sweep.on_change=rerun", "sweep.on_failure=stop"]
    for _ in range(2):
        stopped = sweep(*anew, cwd=cwd)
        assert stopped.returncode == 1, stopped.stdout
        assert events(stopped.stdout, "failed") == ["vocab_multiple-1"]
        assert events(stopped.stdout, "kept") == []


def test_other_sweepers_can_drive_it(again):
    """Hydra's own, job by job: each is launched when the one before it has given its loss."""
    cwd, arguments = again
    shutil.rmtree(cwd / "sweep" / "vocab_multiple-64")
    done = sweep(*arguments, "hydra/sweeper=basic", "hydra.sweeper.max_batch_size=1", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (events(done.stdout, "kept"), events(done.stdout, "done")) == (["vocab_multiple-1"], ["vocab_multiple-64"])


@pytest.mark.parametrize("on_failure", ["continue", "stop"])
def test_a_failure_is_seen_and_the_same_command_runs_it_again(small, tmp_path, on_failure):
    arguments = [*small, *QUICK, "optimizer.lr=1e30,1e-3", f"sweep.on_failure={on_failure}"]
    failed = sweep(*arguments, cwd=tmp_path)
    assert failed.returncode == 1, failed.stdout
    assert events(failed.stdout, "failed") == ["lr-1e+30"]
    assert "not finite" in failed.stdout or "loss nan" in failed.stdout
    assert "see sweep/lr-1e+30/log.txt" in failed.stdout
    table = failed.stdout[failed.stdout.index("job ") :]
    assert re.search(r"lr-1e\+30 +failed +step \d+: loss", table)
    if on_failure == "stop":
        assert "error: sweep: stopped after lr-1e+30 failed" in failed.stderr
        assert re.search(r"lr-0.001 +waiting", table)
        return
    assert "error: 1 of 2 jobs failed" in failed.stderr
    assert events(failed.stdout, "done") == ["lr-0.001"]
    again = sweep(*arguments, cwd=tmp_path)
    assert again.returncode == 1
    assert (events(again.stdout, "kept"), events(again.stdout, "failed")) == (["lr-0.001"], ["lr-1e+30"])


def test_a_sweep_killed_again_and_again_ends_as_one_that_was_not(small, tmp_path):
    """SIGKILL while the jobs are checked, and at four random moments."""
    arguments = [*small, "trainer.max_steps=90", "trainer.eval_every=7_680", "checkpoint.every=10", "sample.tokens=0"]
    arguments += ["trainer.log_every=5", "seed=1,2"]
    undisturbed = tmp_path / "undisturbed"
    killed = tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    assert sweep(*arguments, cwd=undisturbed).returncode == 0
    chance = random.Random(6)
    logs = [killed / "sweep" / job / "metrics.jsonl" for job in ("seed-1", "seed-2")]
    for moment in (-1, *sorted(chance.sample(range(4, 36), 4))):  # rows that all jobs have logged, of 38
        process = Started("--multirun", *arguments, "hydra.sweep.dir=sweep", cwd=killed)
        while process.poll() is None:
            rows = sum(log.read_bytes().count(b"\n") for log in logs if log.exists())
            is_checked = len(processes_in(killed)) > 1
            if is_checked if moment < 0 else rows >= moment:
                process.kill()
            time.sleep(0.01)
        process.communicate()
        until(lambda: not processes_in(killed), 20)  # its job went with it
    done = sweep(*arguments, cwd=killed)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [(killed / "sweep" / job / "log.txt").read_text() for job in ("seed-1", "seed-2")]
    assert any("resuming after step" in log for log in logs)
    for job in ("seed-1", "seed-2"):
        assert_same(deterministic(killed / "sweep" / job), deterministic(undisturbed / "sweep" / job))


def cores(pid: int) -> str | None:
    try:
        return re.search(r"^Cpus_allowed_list:\s*(\S+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]
    except OSError:
        return None


def parent(pid: int) -> int | None:
    try:
        return int(re.search(r"^PPid:\s*(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])
    except OSError:
        return None


def is_third(pid: int) -> bool:
    """Whether a process is the job seed-3, by its log."""
    try:
        return os.readlink(f"/proc/{pid}/fd/1").endswith("seed-3/log.txt")
    except OSError:
        return False


def test_eight_jobs_on_two_slots(small, tmp_path):
    """Never more than two at once, on cores of their own, and one that dies does not stop the rest."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPU cores")
    arguments = [
        "--multirun",
        *small,
        *QUICK,
        "seed=1,2,3,4,5,6,7,8",
        "hydra.launcher.slots=2",
        "hydra.sweep.dir=sweep",
    ]
    process = Started(*arguments, cwd=tmp_path)
    most, pairs, victim, everywhere = 0, set(), None, str(cores(process.pid))
    while process.poll() is None:
        pids = [pid for pid in processes_in(tmp_path) if parent(pid) == process.pid]  # and not what jobs ask git
        most = max(most, len(pids))
        if len(pids) == 2:
            pairs.add(tuple(sorted(map(str, (cores(pid) for pid in pids)))))
        if victim is None and (victim := next(filter(is_third, pids), None)):
            os.kill(victim, signal.SIGKILL)
        time.sleep(0.05)
    said, errors = process.communicate()
    assert process.returncode == 1, said + errors
    assert most == 2
    entered = [pair for pair in pairs if not {"None", everywhere} & set(pair)]  # no job that has just been forked
    assert entered and all(a != b for a, b in entered), pairs
    assert len(events(said, "done")) == 7 and "ended by SIGKILL" in said
    assert len([r for r in results(tmp_path / "sweep").values() if r["status"] == "done"]) == 7


def test_ctrl_c_ends_all_jobs_in_order(small, tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPU cores")
    process = start(*small, "trainer.max_steps=100_000", "seed=1,2,3", "hydra.launcher.slots=2", cwd=tmp_path)
    logs = [tmp_path / "sweep" / f"seed-{seed}" / "metrics.jsonl" for seed in (1, 2)]
    until(lambda: all(log.exists() and log.stat().st_size for log in logs))
    second = sweep(*small, "seed=1", cwd=tmp_path)
    assert second.returncode == 2 and "sweep is in use" in second.stderr
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 75, said + errors
    first, interrupted, command = errors.splitlines()
    assert first == "SIGINT: its jobs end after their steps and save; a second one ends them at once"
    assert interrupted == "sweep: interrupted; go on with it:"
    assert command.startswith("  python train.py --multirun ") and "seed=1,2,3" in command
    assert command.count("hydra.sweep.dir=sweep") == 1
    found = results(tmp_path / "sweep")
    assert {name: result["status"] for name, result in found.items()} == {
        "seed-1": "interrupted",
        "seed-2": "interrupted",
    }
    assert said.startswith("checking 3 jobs …\n")
    assert events(said, "interrupted") and "waiting" not in said  # no table, as there are no results
    for name in found:
        assert (tmp_path / "sweep" / name / "checkpoints" / "last" / "state.json").exists()
    assert not processes_in(tmp_path)


SIZED = {"seeds": ["seed=1,2"]}


@pytest.mark.parametrize("name", [name for name in options("sweeps") if name != "speed_ladder"])
def test_every_sweep_trains_at_toy_size(name, cache, tmp_path):
    """One seed, in one process after another of Hydra's own launcher, which needs no start for each."""
    needed = []
    if name == "finetune":
        first = call(*TOY, "hydra.run.dir=outputs/pretrained", f"data.cache_dir={cache}", cwd=tmp_path)
        assert first.returncode == 0, first.stdout + first.stderr
        needed = [f"data.files=[{Path(__file__)}]"]  # in place of Shakespeare, which would be fetched
    seeds = SIZED.get(name, ["seed=1"])
    done = call(f"sweeps={name}", *TOY, *seeds, *needed, "hydra/launcher=basic", f"data.cache_dir={cache}", cwd=tmp_path, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path / "outputs" / "sweeps" / name)
    assert len(found) >= 2 and all(result["status"] == "done" for result in found.values())
    assert {result["tokens"] for result in found.values()} == {2_048}
    baseline = compose([f"sweeps={name}", *TOY]).sweep.baseline
    comparison = compare([tmp_path / "outputs" / "sweeps" / name], baseline, None)  # refused where it is no arm
    assert (baseline is None) == (name == "seeds")
    if name in ("vocab_padding", "batch_ramp"):
        assert comparison.agreement.startswith("comparable: same data in the same order, 2,048 tokens each")
    if name == "vocab_padding":
        keys = ("train/loss", "val/loss")
        curves = [
            [row[key] for row in run.rows for key in keys if key in row] for arm in comparison.arms for run in arm.runs
        ]
        for curve in curves:
            assert curve == pytest.approx(curves[0], abs=1e-5)
    if name == "context_length":
        assert "with another model.seq_len the windows necessarily differ" in comparison.warnings[0]


def test_another_order_of_the_data_is_flagged(again):
    cwd, arguments = again
    other = [*arguments[:-1], "model.vocab_multiple=128", "data.seed=2"]
    assert sweep(*other, cwd=cwd).returncode == 0
    (warning,) = compare([cwd / "sweep"], None, None).warnings
    assert (
        warning.startswith("not the same data in the same order as vocab_multiple=1")
        and "vocab_multiple=128" in warning
    )


LADDER = ["sweeps=speed_ladder", *TOY, "seed=1", "device=cpu", "model.n_layer=1"]


def test_the_speed_ladder_trains_at_toy_size(cache, tmp_path):
    rungs = ["fp32", "bf16", "fused"]  # the last holds all others that are for a CPU
    arguments = [*LADDER, f"sweep.arm={','.join(rungs)}", "hydra/launcher=basic", f"data.cache_dir={cache}"]
    done = call(*arguments, cwd=tmp_path, timeout=280, constants={"gpt.parallelize._saving_less": "aot_eager"})
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path / "outputs" / "sweeps" / "speed_ladder")
    assert [result["status"] for result in found.values()] == ["done"] * len(rungs)


def test_the_speed_ladder_leaves_out_what_is_not_here(cache, tmp_path):
    done = call(*LADDER, "sweep.arm=fp32,tf32", f"data.cache_dir={cache}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert events(done.stdout, "left out") == ["tf32_seed-1"]
    assert "precision=tf32 is not supported on cpu here" in done.stdout
    assert events(done.stdout, "done") == ["fp32_seed-1"]
    assert (tmp_path / "outputs" / "sweeps" / "speed_ladder" / "compare.html").exists()
