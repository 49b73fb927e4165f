"""Runs on several ranks, as commands: the number of ranks changes the speed and nothing else."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Started, call, command, environment, processes_in, until
from safetensors.torch import load_file
from switches import ALL, as_overrides

from gpt.cli.compose import compose
from gpt.cluster.rank import _compare_ranks, _fingerprints
from gpt.distributed import World
from gpt.errors import InputError
from gpt.tracker.logs import read_metrics

pytestmark = pytest.mark.slow

# Evaluated at every step; a schedule that does not depend on the length of the run.
STEPS = """
    trainer.max_steps=40 trainer.eval_every=256 trainer.eval_tokens=1500 checkpoint.every=1 checkpoint.keep=100
    sample.tokens=0
    schedule=constant schedule.warmup_tokens=2560 batch.micro_batch_size=2 trainer.grad_clip=0
""".split()
RAMP = ["batch=ramp", "batch.ramp.start_tokens=128", "batch.ramp.over_tokens=5_000"]
DDP = ["cluster=ddp", "cluster.nproc=2"]


@pytest.fixture(scope="module")
def reference(small, tmp_path_factory):
    """One process, with and without a ramp."""
    runs = {}
    for name, ramp in (("constant", []), ("ramp", RAMP)):
        runs[name] = tmp_path_factory.mktemp("reference") / name
        done = call(*small, *STEPS, *ramp, f"hydra.run.dir={runs[name]}", cwd=runs[name].parent)
        assert done.returncode == 0, done.stderr
    return runs


def torchrun(*arguments, cwd, ranks=2):
    """The same command under torchrun."""
    launcher = ["--standalone", f"--nproc_per_node={ranks}", *command(*arguments)[1:]]
    return call(*launcher, cwd=cwd, script="torch.distributed.run")


def result(run_dir):
    return json.loads((run_dir / "result.json").read_text())


def first_gradients(run_dir):
    """Adam's first average after one step is a tenth of the gradient."""
    tensors = load_file(run_dir / "checkpoints" / "step_00000001" / "optimizer.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.endswith("/exp_avg")}


def assert_same_run(run_dir, reference):
    assert result(run_dir)["status"] == "done"
    assert result(run_dir)["data_order_hash"] == result(reference)["data_order_hash"]
    theirs = first_gradients(reference)
    for name, gradient in first_gradients(run_dir).items():
        assert (gradient - theirs[name]).norm() <= 1e-5 * theirs[name].norm(), name
    rows, expected = read_metrics(run_dir), read_metrics(reference)
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in expected]
    for key, at_least in (("val/loss", 20), ("train/loss", 40)):
        values, wanted = ([row[key] for row in each if key in row] for each in (rows, expected))
        assert len(values) >= at_least
        assert values == pytest.approx(wanted, abs=1e-5)


def test_all_switches_of_the_model_do_not_depend_on_the_ranks(small, tmp_path):
    overrides = [*small, *STEPS, *as_overrides(**ALL), "model.n_head=4", "model.n_embd=48"]
    overrides += ["trainer.max_steps=5", "trainer.eval_every=1280", "schedule.warmup_tokens=256"]
    for name, cluster in (("one", []), ("two", DDP)):
        done = call(*overrides, *cluster, f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for key in ("val/loss", "train/loss"):
        values, expected = ([row[key] for row in rows if key in row] for rows in (two, one))
        assert values == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "kind, overrides",
    [
        ("constant", DDP),
        ("constant", ["cluster=ddp", "cluster.nproc=4", "batch.micro_batch_size=1"]),
        ("ramp", DDP),
    ],
)
def test_ranks_change_nothing(small, tmp_path, reference, kind, overrides):
    ramp = RAMP if kind == "ramp" else []
    done = call(*small, *STEPS, *ramp, *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "outputs").glob("*/*")
    assert_same_run(run_dir, reference[kind])
    assert done.stdout.count("loss at initialisation") == 1
    ranks = int(overrides[1].partition("=")[2])
    assert {path.name for path in (run_dir / "logs").iterdir()} == {f"rank_{i}.log" for i in range(1, ranks)}
    assert done.stderr == ""


def test_torchrun_is_the_same_run_in_one_directory(small, tmp_path, reference):
    done = torchrun(*small, *STEPS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "outputs").glob("*/*")
    assert_same_run(run_dir, reference["constant"])
    assert done.stdout.count("loss at initialisation") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "outputs"]


def test_torchrun_starts_no_sweep_and_no_second_ranks(small, tmp_path):
    sweep = torchrun("--multirun", *small, "seed=1,2", cwd=tmp_path)
    assert sweep.returncode != 0
    assert "python train.py cluster=ddp" in sweep.stderr
    twice = torchrun(*small, *DDP, cwd=tmp_path)
    assert twice.returncode != 0
    assert twice.stderr.count("torchrun has started the ranks already, and cluster=ddp would start others") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_at_other_rank_counts(small, tmp_path, reference):
    run_dir = tmp_path / "run"
    first = call(*small, *STEPS, "trainer.max_steps=10", f"hydra.run.dir={run_dir}", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    for steps, cluster in (
        (20, ["cluster=ddp", "cluster.nproc=2"]),
        (30, ["cluster=ddp", "cluster.nproc=4", "batch.micro_batch_size=1"]),
        (40, ["cluster=single"]),
    ):
        done = call(f"resume={run_dir}", f"trainer.max_steps={steps}", *cluster, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert_same_run(run_dir, reference["constant"])


def test_a_job_of_a_sweep_has_ranks_of_its_own(small, tmp_path, reference):
    done = call("--multirun", *small, *STEPS, *DDP, "seed=1337", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (config,) = tmp_path.glob("sweep/*/config.yaml")
    assert_same_run(config.parent, reference["constant"])


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def meeting(port, timeout=60):
    return ["cluster=multinode", "cluster.nproc=1", f"cluster.rdzv_endpoint=127.0.0.1:{port}", f"cluster.timeout={timeout}"]  # fmt: skip


def two_machines(tmp_path, *arguments, root=None):
    """Both to their end, the second from another root: their exit codes, and what they say."""
    arguments += (*meeting(free_port()),)
    other = tmp_path / "other"
    other.mkdir()
    second = [*arguments, "cluster.node_rank=1"]
    if root is None:
        machine_1 = Started(*second, cwd=other)
    else:  # which no process has imported yet
        machine_1 = subprocess.Popen(
            command(*second, script=root / "train.py"), cwd=other, env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    machines = [machine_1, Started(*arguments, "cluster.node_rank=0", cwd=tmp_path)]
    said = [machine.communicate(timeout=120) for machine in machines]
    return [machine.returncode for machine in machines], said


def test_two_machines_are_one_run(small, tmp_path, reference):
    codes, said = two_machines(tmp_path, *small, *STEPS)
    assert codes == [0, 0], said
    (run_dir,) = (tmp_path / "outputs").glob("*/*")
    assert_same_run(run_dir, reference["constant"])
    assert not list((tmp_path / "other").iterdir())


def test_machines_with_other_code_are_refused(small, tmp_path):
    root = tmp_path / "copy"
    for part in ("gpt", "data", "conf"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("cache"))
    shutil.copy(ROOT / "train.py", root)
    (root / "gpt" / "model.py").write_text((ROOT / "gpt" / "model.py").read_text() + "\n# another line\n")
    codes, said = two_machines(tmp_path, *small, root=root)
    assert codes == [2, 2], said
    for _, stderr in said:
        assert "rank 1 has other code than rank 0\n  give every rank the same code\n" in stderr


@dataclass(frozen=True)
class Gathered(World):
    """Rank 1 of two, with what rank 0 has said."""

    said: Any = None

    def gather(self, value):
        return [self.said, value]


def test_ranks_with_other_config_or_data_are_refused(small):
    config, other = compose(small), compose([*small, "seed=2"])
    elsewhere = compose([*small, "data.cache_dir=/elsewhere"])
    rank_1 = Gathered(rank=1, size=2, said=(_fingerprints(config, "a text"), Path("run")))
    assert _compare_ranks(rank_1, elsewhere, "a text", None) == Path("run")
    with pytest.raises(InputError, match="rank 1 has other config than rank 0"):
        _compare_ranks(rank_1, other, "a text", None)
    with pytest.raises(InputError, match="rank 1 has other data than rank 0"):
        _compare_ranks(rank_1, config, "another", None)


@pytest.mark.parametrize("node_rank", [0, 1])
def test_a_machine_that_stays_away_is_missed(small, tmp_path, node_rank):
    port = free_port()
    done = call(*small, *meeting(port, timeout=1), f"cluster.node_rank={node_rank}", cwd=tmp_path)
    assert done.returncode == 1
    assert f"did not all meet at 127.0.0.1:{port} within cluster.timeout=1 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_started_is_refused(small, tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        taken = call(*small, *meeting(port), "cluster.node_rank=0", cwd=tmp_path)
    assert taken.returncode == 2
    assert f"port {port} cannot be opened here" in taken.stderr
    for overrides, problem, cure in [
        (["cluster=ddp"], "takes a rank per GPU, and there is no GPU here for device=cpu", "cluster.nproc=2"),
        (["cluster=ddp", "cluster.nproc=3"], "batch.global_tokens=256 is not divisible by model.seq_len=32 × batch.micro_batch_size=4 × 3 ranks", "384"),
        (["cluster.nproc=2"], "cluster=single is one process", "cluster=ddp cluster.nproc=2"),
        ([*meeting(1), "cluster.node_rank=2"], "cluster.node_rank=2 is none of cluster.nnodes=2 machines", "0 to 1"),
        ([*meeting(1), "cluster.rdzv_endpoint=here"], "cluster.rdzv_endpoint=here is no address", "HOST:PORT"),
    ]:  # fmt: skip
        done = call(*small, *overrides, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert problem in done.stderr
        assert cure in done.stderr
    assert not list(tmp_path.iterdir())


FAULTS = '''
import os, time, torch

class Fault(torch.optim.SGD):
    """Does something else than a step, on rank 1, at its third."""

    def step(self, closure=None):
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 3 and os.environ.get("RANK") == "1":
            self.fault()
        super().step(closure)

class Raises(Fault):
    def fault(self):
        raise ValueError("a wrong turn")

class Exits(Fault):
    def fault(self):
        os._exit(3)

class Hangs(Fault):
    def fault(self):
        time.sleep(1000)
'''


@pytest.mark.parametrize(
    "fault, message",
    [
        ("Raises", "error: rank 1: ValueError: a wrong turn"),
        ("Exits", "error: rank 1 ended with 3 and left no message"),
        ("Hangs", "step 4: another rank is gone, or did not answer within cluster.timeout=4 s"),
    ],
)
def test_a_rank_that_fails_ends_all(small, tmp_path, fault, message):
    """The class of its optimizer is in the directory where the command runs, as for all ranks."""
    (tmp_path / "faults.py").write_text(FAULTS)
    custom = ["optimizer=custom", f"optimizer._target_=faults.{fault}", "optimizer.weight_decay=0", "optimizer.lr=0.01"]
    how = {"constants": {"gpt.distributed.GRACE_SECONDS": 2}}
    done = call(*small, *DDP, *custom, "cluster.timeout=4", cwd=tmp_path, timeout=60, **how)
    assert done.returncode == 1
    assert done.stderr.count(message) == 1, done.stderr
    assert not processes_in(tmp_path)
    (run_dir,) = (tmp_path / "outputs").glob("*/*")
    if fault == "Raises":
        assert "ValueError: a wrong turn" in (run_dir / "logs" / "rank_1.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_finishes_the_step_on_all_ranks(small, tmp_path, reference, number):
    run_dir = tmp_path / "run"
    long = [argument for argument in STEPS if not argument.startswith("trainer.max_steps")]
    arguments = [*small, *long, "trainer.max_steps=100_000", *DDP, f"hydra.run.dir={run_dir}"]
    process = Started(*arguments, cwd=tmp_path)
    until(lambda: (run_dir / "metrics.jsonl").exists() and len(read_metrics(run_dir)) > 5, process=process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert re.search(r"interrupted after step \d+; continue with\n  python train.py resume=run\n", said)
    assert result(run_dir)["status"] == "interrupted"
    step = result(run_dir)["step"]
    assert (run_dir / "checkpoints" / "last").resolve().name == f"step_{step:08d}"
    if step < 40:
        done = call(f"resume={run_dir}", "trainer.max_steps=40", "cluster=single", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_same_run(run_dir, reference["constant"])


def test_activation_checkpointing_changes_no_gradient(trainer):
    gradients = {}
    for kind in ("none", "blocks"):
        run = trainer(f"model.activation_checkpointing={kind}", "model.dropout=0.1", "trainer.grad_clip=0")
        run.stepper.train_step(run.stepper.batches())
        state = run.state.optimizers[0].state
        gradients[kind] = {name: state[p]["exp_avg"] for name, p in run.state.model.named_parameters()}
    for name, gradient in gradients["none"].items():
        assert torch.equal(gradient, gradients["blocks"][name]), name


def test_the_data_is_prepared_by_one_process_while_others_wait(text_file, tmp_path):
    arguments = ["data=text", f"data.files=[{text_file}]", f"data.cache_dir={tmp_path}/cache"]
    processes = [Started(*arguments, cwd=ROOT, script="data.prepare") for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("preparing 1 file " in text for text in said) == 1
    assert all("train.h5" in text for text in said)
