"""Copy runs to Weights & Biases: python -m gpt.mirrors.wandb DIR… [project=NAME] [entity=NAME] [artifacts=WHICH]

DIR is the output directory of a run, or of a sweep, or any other that has runs directly below it. Sends what W&B has
not yet: of a run that was trained with tracker=local, or offline, or without a key, or whose upload was cut short.
What is there already is not sent again. project, entity and artifacts (none, last, best, all) take the place of the
run's own tracker.project and so on. With tracker=wandb the same code runs beside the training.
"""

import contextlib
import math
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from omegaconf import OmegaConf

from gpt.checkpoint.files import latest_checkpoint, list_checkpoints
from gpt.cli import command
from gpt.compare.runs import Run, check_logs, load, run_directories
from gpt.config.checks import check_names, check_wandb_name
from gpt.config.groups import CONF
from gpt.config.load import read, read_saved
from gpt.config.schema import Config, WandbConfig, allowed_of
from gpt.console import say
from gpt.errors import InputError, Interrupted, TrainingError
from gpt.files import LAYOUT, locked, read_json, write_json
from gpt.mirrors.wandb_file import logged_steps
from gpt.rundir import HISTOGRAMS, INDEX, SAMPLES, lock_run_dir, read_about
from gpt.tracker.mirror import PATIENCE, POLL, Tail, attend, beside_run, cure, follow, step_back
from gpt.tracker.provenance import DIFF
from gpt.tracker.tracker import parse_samples

IDENTITY = "wandb.json"  # which W&B run it is, in the run's directory
OWN = ("project", "entity", "artifacts")  # arguments with a value
USAGE = "python -m gpt.mirrors.wandb DIR… [project=NAME] [entity=NAME] [artifacts=WHICH]"
INIT_SECONDS = 60  # for W&B to take up a run
PAUSES = (5, 300)  # seconds between attempts to reach it: the first, which doubles, and the longest
ARTIFACTS_SECONDS = 3600  # for which checkpoints may still be uploaded after the end of their run


class Upload:
    """A run on its way to W&B. ``trainer`` is the process that trains it now, if one does."""

    def __init__(self, run_dir: Path, given: dict[str, str], trainer: int | None = None):
        self.run_dir, self.trainer = run_dir, trainer
        self.config = read(run_dir / "config.yaml")
        self.target = target(self.config, given)
        self.is_offline = trainer is not None and self.target.name == "wandb_offline"
        self.home = Path(os.environ.get("WANDB_DIR", run_dir))
        self.identity = run_dir / IDENTITY
        if not self.identity.exists():
            write_json(self.identity, {"layout": LAYOUT, "id": secrets.token_hex(4)})
        self.histograms, self.samples = Tail(run_dir / HISTOGRAMS), Tail(run_dir / SAMPLES)
        self.row_histograms: dict[int, dict[str, Any]] = {}
        self.text, self.table = "", []  # of samples.txt so far, and what was sent of it
        self.tokens: dict[int, int] = {}  # at each step
        self.sent: set[str] = set()
        self.open: int | None = None  # the step of the last row, which may still be added to

    def read_identity(self) -> str:
        """Which W&B run it is. Raises InputError."""
        cure = "restore it from a copy; without it the run is uploaded again, as another one"
        content = read_json(self.identity, ("id",), cure)
        if not re.fullmatch(r"[\w-]{1,128}", str(content["id"])):
            raise InputError(f"{self.identity} is damaged, or none of ours: id={str(content['id'])[:40]!r}", cure)
        return str(content["id"])

    def begin(self) -> None:
        """Take up the W&B run, and learn what it has already. Raises wandb.Error."""
        target, about = self.target, facts(self.run_dir)
        code = about.get("git") or {}
        settings = wandb.Settings(
            mode="offline" if self.is_offline else "online",
            silent=True,
            console="off",
            disable_git=True,  # of where this was started; the training has noted its own
            git_commit=code.get("commit"),
            git_remote_url=code.get("remote"),
            host=about.get("machine", {}).get("host"),
            program="train.py",
            init_timeout=INIT_SECONDS,
            x_stats_pid=self.trainer or os.getpid(),
            x_disable_stats=self.trainer is None,  # what this machine does now is not the training
            x_disable_meta=self.trainer is None,
            x_save_requirements=self.trainer is not None,
            x_skip_transaction_log=not self.is_offline,  # metrics.jsonl has it all
            x_file_stream_retry_max=1_000_000,  # W&B may be away for hours
        )
        config = OmegaConf.to_container(read_saved(self.run_dir / "config.yaml"))
        self.run = wandb.init(
            id=self.read_identity(),
            project=target.project,
            entity=target.entity,
            dir=self.home,
            name=self.run_dir.name,
            group=target.group or sweep_name(self.run_dir),
            job_type=target.job_type,
            notes=target.notes,
            tags=[tag for tag in (*self.config.tags, self.config.sweep.arm) if tag],
            config=holdable(config | {"facts": about}),
            allow_val_change=True,
            resume=None if self.is_offline else "allow",
            settings=settings,
        )
        self.run.define_metric("tokens")
        self.run.define_metric("*", step_metric="tokens")
        self.run.define_metric("val/loss", step_metric="tokens", summary="min,last")
        in_files = logged_steps(self.home / "wandb", self.run.id) if self.is_offline else [self.run.starting_step - 1]
        self.done = max(in_files, default=0)

    def row(self, row: dict[str, Any]) -> None:
        """Send the metrics of a step, with its histograms, and the samples before it; not what is there already."""
        self.read_samples()
        self.tokens[row["step"]] = row["tokens"]
        if row["step"] <= self.done:
            return
        self.row_histograms |= self.histograms.histograms()
        drawn = {key: histogram(held) for key, held in self.row_histograms.pop(row["step"], {}).items()}
        self.run.log(row | drawn, step=row["step"])
        self.open = row["step"]
        if self.target.artifacts == "all":
            self.send_checkpoints()

    def read_samples(self) -> None:
        """Send the table of samples, if it has grown, with the row that is open."""
        self.text += self.samples.text()
        data = [[step, self.tokens[step], text] for step, text in parse_samples(self.text) if step in self.tokens]
        if data != self.table and self.open is not None:
            self.table = data
            self.run.log({"samples": wandb.Table(["step", "tokens", "sample"], data)}, step=self.open)

    def end(self) -> None:
        """Send what stands at the end of a run, and see everything off. Raises wandb.Error."""
        self.read_samples()
        plot, diff = self.run_dir / "loss.png", self.run_dir / DIFF
        if self.open is not None and plot.exists():
            self.run.log({"loss": wandb.Image(str(plot))}, step=self.open)
        if diff.exists():
            self.run.save(str(diff), base_path=str(self.run_dir), policy="now")
        if self.target.artifacts != "none":
            self.send_checkpoints()
        run = load(self.run_dir, self.run_dir.name)
        self.run.summary.update(holdable(summary(run)))
        order = {"data_order_hash": run.result.get("data_order_hash")}
        self.run.config.update({"facts": holdable(facts(self.run_dir) | order)}, allow_val_change=True)
        if run.state == "interrupted":
            self.run.mark_preempting()
        self.run.finish(exit_code={"done": 0, "interrupted": Interrupted.exit_code}.get(run.state, 1))

    def send_checkpoints(self) -> None:
        """Send the checkpoints that ``artifacts`` asks for; one that is there already is known by its content."""
        inside = self.run_dir / "checkpoints"
        last, best = latest_checkpoint(self.run_dir), inside / "best"
        best = best.resolve() if best.exists() else None
        wanted = {"all": list_checkpoints(self.run_dir), "last": [last], "best": [best]}[self.target.artifacts]
        for path in (path for path in wanted if path and path.name not in self.sent):
            aliases = [self.run_dir.name, path.name, *(["last"] * (path == last)), *(["best"] * (path == best))]
            artifact = wandb.Artifact(f"checkpoint-{self.run.id}", type="model", metadata={"run": self.run_dir.name})
            try:
                artifact.add_dir(str(path))
            except OSError:
                continue  # a newer one has taken its place meanwhile
            self.run.log_artifact(artifact, aliases=aliases)
            self.sent.add(path.name)


def target(config: Config, given: dict[str, str]) -> WandbConfig:
    """Where a run goes: where its config says, or, where that says nothing, conf/tracker/wandb.yaml.

    ``given`` comes before both. Raises InputError.
    """
    own = config.tracker
    if not isinstance(own, WandbConfig):
        conf = OmegaConf.to_container(OmegaConf.load(CONF / "tracker" / "wandb.yaml"))
        own = WandbConfig(**{field.name: conf[field.name] for field in fields(WandbConfig)})
    for key in ("project", "entity"):
        check_wandb_name(key, given.get(key))
    if "artifacts" in given:
        check_names("artifacts", given["artifacts"], list(allowed_of("tracker.artifacts").values))
    return replace(own, **given)


def facts(run_dir: Path) -> dict[str, Any]:
    """What a config does not say: size, data, code, versions and machine of the last start."""
    about = read_about(run_dir)
    if about is None:
        return {}
    return {key: value for key, value in about.items() if key not in ("layout", "starts")} | about["starts"][-1]


def sweep_name(run_dir: Path) -> str | None:
    """Of the sweep whose job the run is."""
    return run_dir.resolve().parent.name if (run_dir.parent / INDEX).is_file() else None


def summary(run: Run) -> dict[str, Any]:
    """What the table of runs is to show of a run."""
    scalars = {key: value for key, value in run.result.items() if isinstance(value, (int, float, str))}
    derived = {
        "val_loss": run.val_loss,
        "best_val_loss": run.best_val_loss,
        "tokens_per_sec": run.tokens_per_sec,
        "hours": run.seconds / 3600 if run.seconds is not None else None,
    }
    return {key: value for key, value in (scalars | derived).items() if key != "layout" and value is not None}


def histogram(held: dict[str, Any]) -> wandb.Histogram:
    """As W&B draws it: counts between equal steps from ``min`` to ``max``."""
    edges = np.linspace(held["min"], held["max"], len(held["counts"]) + 1)
    return wandb.Histogram(np_histogram=(held["counts"], edges))


def holdable(value: Any) -> Any:
    """As W&B can hold it: keys are text, and numbers finite or text."""
    if isinstance(value, dict):
        return {str(key): holdable(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [holdable(inside) for inside in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def beside(run_dir: Path) -> None:
    """Mirror the run that has started this process, until it is over."""
    rest = cure("gpt.mirrors.wandb", run_dir)
    upload = Upload(run_dir, {}, trainer=os.getppid())
    stays = upload.target.artifacts != "none"
    over = attend(ARTIFACTS_SECONDS if stays else PATIENCE - 1, f"wandb       not all of it has arrived; {rest}")
    with alone(upload.identity, over) as is_alone:
        if not (is_alone and connect(upload, over)):
            return
        step_back()
        say(f"wandb       {upload.run.url or 'offline; ' + rest}")
        for row in follow(run_dir, over):
            upload.row(row)
        upload.end()


@contextlib.contextmanager
def alone(identity: Path, over: threading.Event) -> Iterator[bool]:
    """Wait until no other process uploads a run; False if one still did when the run was over."""
    with contextlib.ExitStack() as held:
        is_alone = False
        while not is_alone:
            try:
                held.enter_context(locked(identity))
                is_alone = True
            except InputError:
                if over.wait(POLL):
                    break
        yield is_alone


def connect(upload: Upload, over: threading.Event) -> bool:
    """Begin, however often that must be tried; False where it is in vain, or the run is over."""
    pause, longest = PAUSES
    while True:
        try:
            upload.begin()
            return True
        except wandb.Error as error:
            is_final = isinstance(error, (wandb.errors.UsageError, wandb.errors.AuthenticationError)) or over.is_set()
            if is_final or pause == PAUSES[0]:
                then = cure("gpt.mirrors.wandb", upload.run_dir) if is_final else "training goes on, and so do attempts"
                say(f"wandb       {str(error).splitlines()[0]}; {then}")
            if is_final:
                return False
        wandb.teardown()
        over.wait(pause)
        pause = min(2 * pause, longest)


def later(run_dir: Path, given: dict[str, str]) -> str:
    """Upload what W&B has not of a run that is over; returns its address. Raises InputError or TrainingError."""
    check_logs(run_dir)
    upload = Upload(run_dir, given)
    with lock_run_dir(run_dir):
        pass
    over = threading.Event()
    over.set()
    try:
        with locked(upload.identity):
            upload.begin()
            for row in follow(run_dir, over):
                upload.row(row)
            upload.end()
    except wandb.Error as error:
        raise TrainingError(f"{run_dir}: {error}") from error
    return upload.run.url


def main() -> None:
    if run_dir := beside_run(sys.argv[1:]):
        return beside(run_dir)
    directories, given = command.directories_and_values(sys.argv[1:], OWN, USAGE)
    runs = [run_dir for directory in directories for run_dir in run_directories(directory)[0]]
    failed = 0
    for run_dir in runs:
        try:
            print(later(run_dir, given), flush=True)
        except (InputError, TrainingError) as error:
            if len(runs) == 1:
                raise
            failed += 1
            print(error, file=sys.stderr)
    if failed:
        raise TrainingError(f"{failed} of {len(runs)} runs were not uploaded; the same command sends what is missing")


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
