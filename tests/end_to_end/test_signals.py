"""How runs end on signals: at once where that loses nothing, in words, and to be gone on with exactly."""

import contextlib
import importlib
import json
import os
import pty
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Started, call, command, environment, processes_in, until

from gpt.checkpoint import state as checkpoint
from gpt.checkpoint.files import latest_checkpoint
from gpt.evaluation import validation as evaluate
from gpt.generate.sampling import Sampler
from gpt.rundir import METRICS
from gpt.signals import Interrupt, ending_at_once
from gpt.step import Stepper
from gpt.tracker.logs import read_metrics
from gpt.trainer import Trainer

TIMES = ["trainer.max_steps=12", "trainer.eval_every=1024", "checkpoint.every=3"]  # evaluated every 4th step


def without_speed(run_dir):
    rows = read_metrics(run_dir)
    return [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows]


def left_by(run_dir):
    """All that must not depend on signals."""
    last = latest_checkpoint(run_dir)
    weights = [(last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]
    links = [(run_dir / "checkpoints" / name).resolve().name for name in ("last", "best")]
    return without_speed(run_dir), (run_dir / "samples.txt").read_text(), weights, links


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    """What a run leaves that no signal has met."""
    from data.preparation import prepare
    from gpt.cli.compose import compose

    config, run_dir = compose([*small, *TIMES]), tmp_path_factory.mktemp("undisturbed")
    Trainer(config, *prepare(config.data), run_dir).fit()
    return left_by(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["evaluation", "first evaluation", "last evaluation", "sample", "save", "step"])
def test_a_signal_at_any_moment_loses_nothing(small, tmp_path, undisturbed, moment, monkeypatch):
    from data.preparation import prepare
    from gpt.cli.compose import compose

    config, left = compose([*small, *TIMES]), [{"first evaluation": 3, "last evaluation": 40}.get(moment, 20)]

    def after(real):
        def wrapped(*arguments, **keys):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments, **keys)

        return wrapped

    if "evaluation" in moment:  # 16 batches each
        monkeypatch.setattr("gpt.evaluation.validation.loss_sum", after(evaluate.loss_sum))
    elif moment == "sample":  # 16 tokens each
        left[0] = 20
        monkeypatch.setattr(Sampler, "draw", after(Sampler.draw))
    elif moment == "save":
        left[0] = 2
        monkeypatch.setattr(checkpoint, "save_file", after(checkpoint.save_file))
    else:
        left[0] = 5
        monkeypatch.setattr(Stepper, "train_step", after(Stepper.train_step))
    ends = []
    while "done" not in ends:
        run = Trainer(config, *prepare(config.data), tmp_path)
        begun = run.state.progress.step
        ends.append(run.fit()["status"])
        config.resume = str(tmp_path)
        assert run.state.progress.step == run.saved_step >= begun
    assert ends == ["interrupted", "done"]
    assert left_by(tmp_path) == undisturbed


def test_an_evaluation_is_left_at_its_next_batch(trainer, monkeypatch):
    run, batches = trainer("trainer.max_steps=1"), []
    real = evaluate.loss_sum

    def counted(*arguments):
        batches.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr("gpt.evaluation.validation.loss_sum", counted)
    assert run.fit()["status"] == "interrupted"
    assert len(batches) == 1
    assert read_metrics(run.run_dir) == []  # its row comes with its evaluation
    assert latest_checkpoint(run.run_dir).name == "step_00000001"


def test_a_closed_terminal_signals_twice_and_that_is_no_second_one(capfd):
    with Interrupt() as interrupt:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
            assert interrupt.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert capfd.readouterr().err == (
        "SIGHUP: ends after this step and saves; a second one ends at once, without saving\n"
    )


@pytest.mark.parametrize("number, is_heard", [(signal.SIGHUP, False), (signal.SIGINT, True)])
def test_nohup_is_respected_and_a_shell_that_ignores_ctrl_c_is_not(number, is_heard):
    """Scripts start what is to run beside them with SIGINT ignored, by which a sweep stops its jobs."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), number)
            assert interrupt.received == is_heard
    finally:
        signal.signal(number, before)


ENDLESS = ["trainer.max_steps=100_000", "trainer.eval_every=1_000_000_000", "checkpoint.every=100_000"]


def wait_for_row(run_dir, process):
    path = run_dir / METRICS
    until(lambda: path.exists() and path.stat().st_size, process=process)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT])
def test_every_signal_that_asks_for_an_end_is_heard(small, tmp_path, number):
    run_dir = tmp_path / "run"
    process = Started(*small, *ENDLESS, f"hydra.run.dir={run_dir}", cwd=tmp_path)
    wait_for_row(run_dir, process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in said
    if number == signal.SIGQUIT:
        assert "stopped at once\n  nothing had been saved yet; from the beginning: python train.py resume=run" in said
    else:
        assert said.startswith(f"{number.name}: ends after this step and saves; a second one ends at once")
        assert "python train.py resume=run\n" in said
        assert json.loads((run_dir / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves(small, tmp_path):
    run_dir = tmp_path / "run"
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *command(*small, *ENDLESS, f"hydra.run.dir={run_dir}")], cwd=tmp_path, env=environment(),
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    os.set_blocking(master, False)
    deadline = time.monotonic() + 60
    while not (run_dir / METRICS).exists() or not read_metrics(run_dir):
        with contextlib.suppress(BlockingIOError):
            os.read(master, 65536)
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(master)
    assert process.wait(timeout=60) == 75
    assert json.loads((run_dir / "result.json").read_text())["status"] == "interrupted"
    assert (run_dir / "checkpoints" / "last" / "state.json").exists()


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_run(small, tmp_path):
    run_dir = tmp_path / "run"
    arguments = [*small, f"data.cache_dir={tmp_path}/cache", f"hydra.run.dir={run_dir}"]
    process = Started(*arguments, cwd=tmp_path, stdout_is_pipe=True)
    process.stdout.readline()  # data is prepared meanwhile
    process.stdout.close()
    assert process.wait(timeout=60) == 0, process.communicate()
    assert json.loads((run_dir / "result.json").read_text())["status"] == "done"


def catches(pid, number):
    """Whether a process has a handler of a signal, which is so from its first imports on."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:\t")[2].split()[0]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_signal_during_an_import_waits_for_its_end(tmp_path, monkeypatch):
    """An exception inside the imports of torch aborts the process, or is swallowed."""
    signalled = (
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nfor _ in range(1000):\n    pass\nis_whole = True\n"
    )
    (tmp_path / "signalled_here.py").write_text(signalled)
    monkeypatch.syspath_prepend(tmp_path)
    imported = []
    with pytest.raises(KeyboardInterrupt), ending_at_once():
        imported.append(importlib.import_module("signalled_here"))
        time.sleep(30)
    assert imported[0].is_whole


def test_a_signal_that_is_swallowed_is_sent_again_and_one_that_waits_for_others_is_not(monkeypatch):
    monkeypatch.setattr("gpt.signals.PATIENCE", 0.05)
    ends = []
    with pytest.raises(KeyboardInterrupt), ending_at_once():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        except KeyboardInterrupt:
            ends.append("swallowed")
        try:
            time.sleep(30)
        finally:
            time.sleep(0.3)
            ends.append("waited")
    assert ends == ["swallowed", "waited"]


@pytest.mark.slow
def test_a_signal_while_a_run_starts_is_no_traceback(small, tmp_path):
    """At three moments; what was made is gone on with, or nothing was made."""
    moments = [random.uniform(0, 2.5) for _ in range(3)]
    print("signalled after", moments)
    started = []
    for i, moment in enumerate(moments):
        process = subprocess.Popen(
            command(*small, *ENDLESS, f"hydra.run.dir={tmp_path}/run{i}"), cwd=tmp_path, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        number, deadline = [signal.SIGTERM, signal.SIGHUP][i % 2], time.monotonic() + 30
        while not catches(process.pid, number):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        started.append((process, time.monotonic() + moment, number))
    for process, moment, number in sorted(started, key=lambda one: one[1]):
        time.sleep(max(0, moment - time.monotonic()))
        process.send_signal(number)
    for process, _, _ in started:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75, said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_worker_of_the_loader_that_is_killed_ends_the_run_in_words(small, tmp_path):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(*small, *ENDLESS, "data.num_workers=2", f"hydra.run.dir={run_dir}"), cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_row(run_dir, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "one of data.num_workers=2 is gone: DataLoader worker" in said
    assert "nothing had been saved yet; from the beginning: python train.py resume=run" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 4


@pytest.mark.slow
def test_ranks_leave_an_evaluation_together(small, tmp_path):
    run_dir = tmp_path / "run"
    long = ["trainer.eval_tokens=null", "checkpoint.every=4", "batch.micro_batch_size=1"]
    process = Started(*small, *TIMES, *long, "cluster=ddp", "cluster.nproc=2", f"hydra.run.dir={run_dir}", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (run_dir / "checkpoints" / "last").exists():  # step 4 has been saved, and is evaluated
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75, said
    assert "Traceback" not in said
    assert [row["step"] for row in read_metrics(run_dir)] == [1, 2, 3]
    assert latest_checkpoint(run_dir).name == "step_00000004"
    done = call(f"resume={run_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_metrics(run_dir) if "val/loss" in row] == [4, 8, 12]


@pytest.mark.slow
def test_a_signal_to_all_while_ranks_start_is_heard_once(small, tmp_path):
    """Ranks import for seconds before they can handle anything."""
    number = signal.SIGHUP
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(*small, *ENDLESS, "cluster=ddp", "cluster.nproc=2", f"hydra.run.dir={run_dir}"), cwd=tmp_path,
        env=environment(OPENBLAS_NUM_THREADS="2"),  # importing numpy makes a thread then, which signals may find
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(processes_in(tmp_path)) < 4:  # the command, what tracks its resources, and the ranks
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said == (
        f"{number.name}: ends after this step and saves; a second one ends at once, without saving\n"
        "interrupted after step 1; continue with\n  python train.py resume=run\n"
    )
