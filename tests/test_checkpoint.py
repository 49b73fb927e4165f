"""Checkpoints and logs: killed at any moment, damaged in any way, moved away."""

import json
import math
import os
import random
import shutil
import stat
import sys

import pytest
import torch

from gpt.checkpoint import state as checkpoint
from gpt.checkpoint.files import check_whole, latest_checkpoint, list_checkpoints, read_state
from gpt.cli.resume_checks import check_resumable
from gpt.config.load import save
from gpt.errors import InputError, TrainingError
from gpt.rundir import METRICS, NOT_FINITE, lock_run_dir, read_result
from gpt.tracker.logs import read_metrics
from gpt.tracker.tracker import Tracker

CALLS = ("open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The directory of a run with two checkpoints: of step 10, the best, and of step 20."""
    from data.preparation import prepare
    from gpt.cli.compose import compose
    from gpt.trainer import Trainer

    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run_dir.mkdir()
    config = compose([*small, "checkpoint.every=10", "checkpoint.keep=2"])
    save(config, run_dir / "config.yaml")
    trainer = Trainer(config, *prepare(config.data), run_dir)
    trainer.fit()
    return run_dir


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def resumed(run_dir):
    """A Trainer that goes on with a run."""
    from data.preparation import prepare
    from gpt.config.load import read
    from gpt.trainer import Trainer

    config = read(run_dir / "config.yaml")
    config.resume = str(run_dir)
    config.trainer.max_steps = 25
    return Trainer(config, *prepare(config.data), run_dir)


def killed_at(call, function):
    """Call a function in a process that is killed before its file-system call of that number; whether it was."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    left, save_file, fsync = [call], checkpoint.save_file, os.fsync

    def count(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), 9)

    def counted(real):
        return lambda *arguments: (count(), real(*arguments))[1]

    checkpoint.save_file, os.fsync = counted(save_file), counted(fsync)
    sys.addaudithook(lambda event, arguments: count() if event in CALLS else None)
    try:
        function()
    finally:
        os._exit(0)


@pytest.mark.slow
def test_a_save_that_is_killed_at_any_call_loses_no_checkpoint(trainer):
    """What was best stays until the new best is there; a resumed run repairs links and deletes what is too much."""
    run = trainer("checkpoint.keep=1", "trainer.max_steps=4")
    run.fit()
    progress, directory = run.state.progress, run.run_dir / "checkpoints"
    about = {"fingerprint": "", "tokenizer": {}}
    logs = {name: (run.run_dir / name).stat().st_size for name in ("metrics.jsonl", "samples.txt")}

    def write():
        checkpoint.save(run.run_dir, run.state, about=about, logs=logs, keep=1)

    progress.step = 6
    write()
    progress.step = progress.best_step = 8

    pristine, call = shutil.copytree(directory, run.run_dir / "pristine", symlinks=True), 0
    was_killed = True
    while was_killed:
        call += 1
        was_killed = killed_at(call, write)
        newest = latest_checkpoint(run.run_dir)
        saved = read_state(newest)["progress"]
        check_whole(newest)
        checkpoint.prune(run.run_dir, saved["best_step"], keep=1)  # as a resumed run does
        assert {saved["step"], saved["best_step"]} == {int(path.name[5:]) for path in list_checkpoints(run.run_dir)}
        assert (directory / "last").resolve() == newest.resolve()
        assert int((directory / "best").resolve().name[5:]) == saved["best_step"]
        check_whole((directory / "best").resolve())
        shutil.rmtree(directory)
        shutil.copytree(pristine, directory, symlinks=True)
    assert call > 40
    assert saved["step"] == 8


def test_more_checkpoints_than_are_kept_are_deleted_on_resume(run_dir):
    run = resumed(run_dir)
    run.config.checkpoint.keep = 1
    shutil.copytree(run_dir / "checkpoints" / "step_00000010", run_dir / "checkpoints" / "step_00000005")
    (run_dir / "checkpoints" / "best").unlink()
    run.fit()
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == ["best", "last", "step_00000025"]


def files_of(run_dir):
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in run_dir.rglob("*")
        if path.is_file() and "checkpoints/last" not in str(path) and "checkpoints/best" not in str(path)
    }


def flip(content):
    position = random.Random(len(content)).randrange(len(content) // 3)
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 3],
    "flipped": flip,
    "zeroed": lambda content: bytes(len(content)),
    "emptied": lambda content: b"",
    "garbage": lambda content: b"\xff\xfe{[" * 9,
    "nested": lambda content: b"[" * 100_000,
    "removed": None,
    "directory": None,
}
FILES = ["model.safetensors", "optimizer.safetensors", "metrics.jsonl", "samples.txt", "state.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_refused_by_name_with_one_that_is_whole(run_dir, name, monkeypatch, capsys):
    import eval as evaluation
    from gpt.cli import command as cli
    from gpt.config.load import read

    path = run_dir / "checkpoints" / "step_00000020" / name
    content, whole = path.read_bytes(), path.parents[1] / "step_00000010"
    config = read(run_dir / "config.yaml")
    config.trainer.max_steps = 25
    for how, change in DAMAGE.items():
        path.unlink()
        if change:
            path.write_bytes(change(content))
        elif how == "directory":
            path.mkdir()
        before = files_of(run_dir)
        with pytest.raises(InputError) as refused:
            check_resumable(config, run_dir)
        assert f"{path} is damaged" in refused.value.problem, how
        assert f"{whole} is whole" in refused.value.cure
        monkeypatch.setattr("sys.argv", ["eval.py", f"checkpoint={run_dir}"])
        assert cli.script(evaluation.main, "") == 2
        said = capsys.readouterr().err
        assert f"{path} is damaged" in said, how
        assert "Traceback" not in said
        assert files_of(run_dir) == before
        if how == "directory":
            path.rmdir()
        path.write_bytes(content)
    shutil.rmtree(path.parent)
    check_resumable(config, run_dir)  # as the refusal advises: it goes on from the older one


def test_without_a_checkpoint_that_is_whole_a_copy_is_asked_for(run_dir):
    for path in list_checkpoints(run_dir):
        (path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="no other checkpoint of this run is whole: restore this one from a copy"):
        check_whole(latest_checkpoint(run_dir))


def test_a_checkpoint_from_before_there_were_hashes_is_read(run_dir):
    path = latest_checkpoint(run_dir)
    content = json.loads((path / "state.json").read_text())
    del content["layout"], content["sha256"], content["progress"]["pending"]
    content["logs"] = {name: (run_dir / name).stat().st_size for name in content["logs"]}
    (path / "state.json").write_text(json.dumps(content))
    for name in ("metrics.jsonl", "samples.txt"):
        (path / name).unlink()
    run = resumed(run_dir)
    run.fit()
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, 26))

    newer = content | {"layout": 2}
    (path / "state.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match=r"state\.json has layout 2, and this version of gptlab reads up to 1"):
        check_whole(path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt"])
@pytest.mark.parametrize("how", ["truncated", "zeroed", "emptied", "flipped", "removed"])
def test_damaged_logs_are_rebuilt_from_the_checkpoint(run_dir, name, how, capsys):
    path, content = run_dir / name, (run_dir / name).read_bytes()
    rows = read_metrics(run_dir)
    path.unlink()
    if DAMAGE[how]:
        path.write_bytes(DAMAGE[how](content))
    resumed(run_dir).fit()
    assert f"{name} was not what it was when step 20 was saved: rebuilt" in capsys.readouterr().out
    without_last = rows[:19]  # whose row comes after its evaluation, which is done anew
    assert read_metrics(run_dir)[:19] == without_last
    assert path.read_bytes().startswith(content[: content.rfind(b"--- step") if name == "samples.txt" else 100])
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, 26))


def test_histograms_that_are_too_short_are_refused_before_training(trainer):
    run = trainer("tracker.histograms_every=5", "trainer.max_steps=10")
    run.fit()
    save(run.config, run.run_dir / "config.yaml")
    path, content = run.run_dir / "histograms.jsonl", (run.run_dir / "histograms.jsonl").read_bytes()
    path.write_bytes(content[:-7])
    run.config.trainer.max_steps = 15
    with pytest.raises(InputError, match=r"histograms\.jsonl has .* bytes, and .* belong to step_00000010"):
        check_resumable(run.config, run.run_dir)
    path.unlink()
    check_resumable(run.config, run.run_dir)  # the user has chosen to go on without
    resumed(run.run_dir).fit()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [15, 20, 25]


def test_weights_that_are_not_finite_are_never_saved(trainer):
    run = trainer("checkpoint.every=3", "trainer.max_steps=6", "trainer.eval_every=100_000")
    real = run.stepper.train_step

    def step(*arguments):
        done = real(*arguments)
        if run.state.progress.step == 6:
            with torch.no_grad():
                run.state.model.wte.weight[0] = math.nan
        return done

    run.stepper.train_step = step
    with pytest.raises(TrainingError, match=r"step 6: .* weights that are not finite\n  the checkpoint of step 3 is"):
        run.fit()
    assert latest_checkpoint(run.run_dir).name == "step_00000003"


def test_what_was_not_saved_is_not_called_intact(trainer):
    run = trainer("checkpoint.every=100")
    with torch.no_grad():
        run.state.model.wte.weight[0] = math.nan
    with pytest.raises(TrainingError, match="nothing had been saved yet, and from the beginning it would end") as error:
        run.fit()
    assert "resume=" not in str(error.value)  # where it would end in the same way
    assert read_result(run.run_dir)["cause"] == NOT_FINITE


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_directory_that_is_moved_or_removed_ends_the_run_at_the_next_write(trainer, how, monkeypatch, tmp_path):
    run, real = trainer(), Tracker.row

    def row(self, metrics):
        if metrics["step"] == 5:
            run.run_dir.rename(tmp_path / "elsewhere") if how == "moved" else shutil.rmtree(run.run_dir)
        real(self, metrics)

    monkeypatch.setattr(Tracker, "row", row)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl is no longer there: .* was moved or removed"):
        run.fit()
    assert not run.run_dir.exists()
    if how == "moved":
        assert len(read_metrics(tmp_path / "elsewhere")) == 4


def test_a_directory_that_is_moved_is_not_made_again_by_a_checkpoint(trainer, tmp_path):
    run = trainer()
    run.run_dir.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        checkpoint.save(run.run_dir, run.state, about={}, logs={}, keep=1)
    assert not run.run_dir.exists()


def test_files_follow_the_umask(trainer):
    before = os.umask(0o027)
    try:
        run = trainer("trainer.max_steps=1")
        run.fit()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in run.run_dir.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o640}, modes


def test_a_training_holds_its_logs(trainer, monkeypatch):
    """So that no command takes a directory in which a training of another machine still writes."""
    run, real, refusals = trainer("trainer.max_steps=1"), Tracker.row, []

    def row(self, metrics):
        with pytest.raises(InputError, match="is in use") as refused, lock_run_dir(run.run_dir):
            pass
        refusals.append(refused)
        real(self, metrics)

    monkeypatch.setattr(Tracker, "row", row)
    run.fit()
    assert refusals
    with lock_run_dir(run.run_dir):
        assert (run.run_dir / METRICS).exists()


def test_a_longer_run_that_is_killed_in_its_last_evaluation_is_not_taken_for_the_shorter(run_dir, monkeypatch):
    run = resumed(run_dir)
    monkeypatch.setattr(
        run, "evaluate_pending", lambda *arguments: os._exit(9) if run.state.progress.step == 25 else True
    )
    if not (pid := os.fork()):
        run.fit()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert not (run_dir / "result.json").exists()
    config = run.config
    config.trainer.max_steps = 25
    check_resumable(config, run_dir)  # whose last evaluation is still to come


def test_links_that_were_copied_as_directories_are_refused(run_dir):
    last = run_dir / "checkpoints" / "last"
    last.unlink()
    shutil.copytree(run_dir / "checkpoints" / "step_00000020", last)
    with pytest.raises(InputError, match=r"checkpoints/last is a directory, and should be a link"):
        check_resumable(resumed(run_dir).config, run_dir)


def test_a_checkpoint_that_its_run_has_replaced_is_not_called_damaged(run_dir):
    gone = run_dir / "checkpoints" / "step_00000005"
    with pytest.raises(InputError, match="step_00000005 is gone: its run has replaced it by a newer one"):
        read_state(gone)
