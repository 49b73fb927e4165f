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
from gpt.compare.runs import Run, load, metric_names
from gpt.config.groups import CONF
from gpt.config.load import read, read_saved
from gpt.config.lookup import allowed_of
from gpt.config.schema import Config, WandbConfig
from gpt.config.values import check_names, check_wandb_name
from gpt.console import say
from gpt.errors import InputError, Interrupted, TrainingError
from gpt.evaluation.metrics import METRICS, PREFIX
from gpt.files import LAYOUT, locked, read_json, write_json
from gpt.mirrors.follow import (
    POLL,
    already_over,
    beside_run,
    check_readable,
    follow,
    runs_in,
    watch_training,
    yield_processor,
)
from gpt.mirrors.wandb_file import logged_steps
from gpt.rundir import HISTOGRAMS, INDEX, SAMPLES, lock_run_dir, read_about
from gpt.tracker.logs import Tail, parse_samples
from gpt.tracker.mirror import PATIENCE, how_to_send_rest
from gpt.tracker.provenance import DIFF

IDENTITY = "wandb.json"  # id of the W&B run, in the run's directory
OWN = ("project", "entity", "artifacts")  # arguments with a value
USAGE = "python -m gpt.mirrors.wandb DIR… [project=NAME] [entity=NAME] [artifacts=WHICH]"
INIT_SECONDS = 60  # for W&B to accept a run
FIRST_PAUSE = 5  # seconds between attempts to reach W&B; doubles
LONGEST_PAUSE = 300
ARTIFACTS_SECONDS = 3600  # for which checkpoints may still be uploaded after the end of their run


class _Upload:
    """A run on its way to W&B. ``trainer`` is the process that trains it now, if one does."""

    def __init__(self, run_dir: Path, overrides: dict[str, str], trainer: int | None = None):
        self.run_dir = run_dir
        self.trainer = trainer
        self.config = read(run_dir / "config.yaml")
        self.destination = destination(self.config, overrides)
        self.is_offline = trainer is not None and self.destination.name == "wandb_offline"
        self.home = Path(os.environ.get("WANDB_DIR", run_dir))
        self.identity = run_dir / IDENTITY
        if not self.identity.exists():
            write_json(self.identity, {"layout": LAYOUT, "id": secrets.token_hex(4)})
        # Read from the logs so far.
        self.histograms = Tail(run_dir / HISTOGRAMS)
        self.waiting_histograms: dict[int, dict[str, Any]] = {}  # their row has not been read yet, by step
        self.samples = Tail(run_dir / SAMPLES)
        self.samples_text = ""
        self.tokens: dict[int, int] = {}  # by step
        # Sent so far.
        self.skipped_until = 0  # last step that W&B had before
        self.open_step: int | None = None  # step of the last row, which W&B still adds to
        self.sent_samples: list[list[Any]] = []
        self.sent_checkpoints: set[str] = set()

    def begin(self) -> None:
        """Start or resume the W&B run, and learn which steps it has already. Raises InputError or wandb.Error."""
        # What the run was: its config, and the facts of its last start.
        tracker = self.destination
        about = _facts(self.run_dir)
        config = OmegaConf.to_container(read_saved(self.run_dir / "config.yaml"))
        self.run = wandb.init(
            id=self._read_identity(),
            project=tracker.project,
            entity=tracker.entity,
            dir=self.home,
            name=self.run_dir.name,
            group=tracker.group or sweep_name(self.run_dir),
            job_type=tracker.job_type,
            notes=tracker.notes,
            tags=[tag for tag in (*self.config.tags, self.config.sweep.arm) if tag],
            config=_to_wandb(config | {"facts": about}),
            allow_val_change=True,
            resume=None if self.is_offline else "allow",
            settings=self._settings(about),
        )
        # All curves are drawn against tokens; declared metrics have their best value in the summary.
        self.run.define_metric("tokens")
        self.run.define_metric("*", step_metric="tokens")
        for name, metric in METRICS.items():
            if metric.higher_is_better is None:
                continue
            best = "max" if metric.higher_is_better else "min"
            self.run.define_metric(PREFIX + name, step_metric="tokens", summary=f"{best},last")
        if self.is_offline:
            steps = logged_steps(self.home / "wandb", self.run.id)
            self.skipped_until = max(steps, default=0)
        else:
            self.skipped_until = self.run.starting_step - 1

    def _settings(self, about: dict[str, Any]) -> wandb.Settings:
        """Return settings by which W&B notes the code and machine of the training, not those of this process."""
        code = about.get("git") or {}
        is_training = self.trainer is not None
        return wandb.Settings(
            mode="offline" if self.is_offline else "online",
            silent=True,
            console="off",
            disable_git=True,
            git_commit=code.get("commit"),
            git_remote_url=code.get("remote"),
            host=about.get("machine", {}).get("host"),
            program="train.py",
            init_timeout=INIT_SECONDS,
            x_stats_pid=self.trainer or os.getpid(),
            x_disable_stats=not is_training,
            x_disable_meta=not is_training,
            x_save_requirements=is_training,
            x_skip_transaction_log=not self.is_offline,  # metrics.jsonl has it all
            x_file_stream_retry_max=1_000_000,  # W&B may be away for hours
        )

    def _read_identity(self) -> str:
        """Return the id of the W&B run. Raises InputError."""
        cure = "restore it from a copy; without it the run is uploaded again, as another one"
        content = read_json(self.identity, ("id",), cure)
        run_id = str(content["id"])
        if not re.fullmatch(r"[\w-]{1,128}", run_id):
            raise InputError(f"{self.identity} is damaged, or none of ours: id={run_id[:40]!r}", cure)
        return run_id

    def send_row(self, row: dict[str, Any]) -> None:
        """Send the metrics and histograms of a step, and the samples before it, unless W&B has them already."""
        step = row["step"]
        self._send_samples()
        self.tokens[step] = row["tokens"]
        if step <= self.skipped_until:
            return
        # A step's histograms are written before its row.
        self.waiting_histograms |= self.histograms.histograms()
        histograms = self.waiting_histograms.pop(step, {})
        drawn = {key: _histogram(histogram) for key, histogram in histograms.items()}
        self.run.log(row | drawn, step=step)
        self.open_step = step
        if self.destination.artifacts == "all":
            self._send_checkpoints()

    def _send_samples(self) -> None:
        """Send the table of samples, if it has grown, with the last row that was sent."""
        self.samples_text += self.samples.text()
        table = []
        for step, sample in parse_samples(self.samples_text):
            if step in self.tokens:
                table.append([step, self.tokens[step], sample])
        if table != self.sent_samples and self.open_step is not None:
            self.sent_samples = table
            samples = wandb.Table(["step", "tokens", "sample"], table)
            self.run.log({"samples": samples}, step=self.open_step)

    def _send_checkpoints(self) -> None:
        """Send the checkpoints that ``artifacts`` asks for. W&B knows by its content one that it has already."""
        inside = self.run_dir / "checkpoints"
        last = latest_checkpoint(self.run_dir)
        best = (inside / "best").resolve() if (inside / "best").exists() else None
        wanted = {"all": list_checkpoints(self.run_dir), "last": [last], "best": [best]}
        for path in wanted[self.destination.artifacts]:
            if path is None or path.name in self.sent_checkpoints:
                continue
            aliases = [self.run_dir.name, path.name]
            if path == last:
                aliases.append("last")
            if path == best:
                aliases.append("best")
            artifact = wandb.Artifact(
                f"checkpoint-{self.run.id}",
                type="model",
                metadata={"run": self.run_dir.name},
            )
            try:
                artifact.add_dir(str(path))
            except OSError:
                continue  # the run has replaced it by a newer one meanwhile
            self.run.log_artifact(artifact, aliases=aliases)
            self.sent_checkpoints.add(path.name)

    def finish(self) -> None:
        """Send what a run has only at its end, and wait until all has arrived. Raises wandb.Error."""
        # Samples of the last step come after its row.
        self._send_samples()
        plot = self.run_dir / "loss.png"
        if self.open_step is not None and plot.exists():
            self.run.log({"loss": wandb.Image(str(plot))}, step=self.open_step)
        diff = self.run_dir / DIFF
        if diff.exists():
            self.run.save(str(diff), base_path=str(self.run_dir), policy="now")
        if self.destination.artifacts != "none":
            self._send_checkpoints()
        # The outcome: summary, facts that were not known at the start, exit code.
        run = load(self.run_dir, self.run_dir.name)
        self.run.summary.update(_to_wandb(_summary(run)))
        order = {"data_order_hash": run.result.get("data_order_hash")}
        facts = _to_wandb(_facts(self.run_dir) | order)
        self.run.config.update({"facts": facts}, allow_val_change=True)
        if run.state == "interrupted":
            self.run.mark_preempting()
        exit_codes = {"done": 0, "interrupted": Interrupted.exit_code}
        self.run.finish(exit_code=exit_codes.get(run.state, 1))


def destination(config: Config, overrides: dict[str, str]) -> WandbConfig:
    """Return the project and so on to which a run is sent: the config's own, or else those of conf/tracker/wandb.yaml.

    ``overrides`` come before both. Raises InputError.
    """
    # A run that was trained with tracker=local says nothing about W&B.
    tracker = config.tracker
    if not isinstance(tracker, WandbConfig):
        conf = OmegaConf.to_container(OmegaConf.load(CONF / "tracker" / "wandb.yaml"))
        tracker = WandbConfig(**{field.name: conf[field.name] for field in fields(WandbConfig)})
    for key in ("project", "entity"):
        check_wandb_name(key, overrides.get(key))
    if "artifacts" in overrides:
        check_names("artifacts", overrides["artifacts"], list(allowed_of("tracker.artifacts").values))
    return replace(tracker, **overrides)


def sweep_name(run_dir: Path) -> str | None:
    """Return the name of the sweep whose job the run is, or None."""
    return run_dir.resolve().parent.name if (run_dir.parent / INDEX).is_file() else None


def _facts(run_dir: Path) -> dict[str, Any]:
    """Return what a config does not say: size, data, code, versions and machine of the last start."""
    about = read_about(run_dir)
    if about is None:
        return {}
    # Those of the run, and those of its last start.
    facts = dict(about)
    del facts["layout"]
    starts = facts.pop("starts")
    return facts | starts[-1]


def _summary(run: Run) -> dict[str, Any]:
    """Return the figures of a run for W&B's table of runs."""
    # Everything in result.json that a table can show.
    figures = {}
    for key, value in run.result.items():
        if isinstance(value, (int, float, str)) and key != "layout":
            figures[key] = value
    # A run that did not end has no result.json, but rows.
    for name in metric_names([run]):
        figures[name] = run.metric(name)
    figures |= {
        "val_loss": run.val_loss,
        "best_val_loss": run.best_val_loss,
        "tokens_per_sec": run.tokens_per_sec,
        "hours": run.seconds / 3600 if run.seconds is not None else None,
    }
    return {key: value for key, value in figures.items() if value is not None}


def _histogram(histogram: dict[str, Any]) -> wandb.Histogram:
    """Return counts in bins of equal width between ``min`` and ``max`` as W&B draws them."""
    counts = histogram["counts"]
    edges = np.linspace(histogram["min"], histogram["max"], len(counts) + 1)
    return wandb.Histogram(np_histogram=(counts, edges))


def _to_wandb(value: Any) -> Any:
    """Return a value that W&B can store: keys become text, and so do numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): _to_wandb(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_to_wandb(inside) for inside in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _beside(run_dir: Path) -> None:
    """Mirror the run whose training has started this process, until it is over."""
    rest = how_to_send_rest("gpt.mirrors.wandb", run_dir)
    upload = _Upload(run_dir, {}, trainer=os.getppid())
    # Large checkpoints may take longer than the training waits.
    stays = upload.destination.artifacts != "none"
    seconds = ARTIFACTS_SECONDS if stays else PATIENCE - 1
    over = watch_training(seconds, f"wandb       not all of it has arrived; {rest}")
    with _alone(upload.identity, over) as is_alone:
        if not (is_alone and _connect(upload, over)):
            return
        yield_processor()
        say(f"wandb       {upload.run.url or 'offline; ' + rest}")
        for row in follow(run_dir, over):
            upload.send_row(row)
        upload.finish()


@contextlib.contextmanager
def _alone(identity: Path, over: threading.Event) -> Iterator[bool]:
    """Wait until no other process uploads the run; False if one still did when the run was over."""
    with contextlib.ExitStack() as stack:
        is_alone = False
        while not is_alone:
            try:
                stack.enter_context(locked(identity))
                is_alone = True
            except InputError:
                if over.wait(POLL):
                    break
        yield is_alone


def _connect(upload: _Upload, over: threading.Event) -> bool:
    """Begin, with as many attempts as it takes; False if W&B refuses for good, or the run is over."""
    pause = FIRST_PAUSE
    while True:
        try:
            upload.begin()
            return True
        except wandb.Error as error:
            is_refused = isinstance(error, (wandb.errors.UsageError, wandb.errors.AuthenticationError))
            is_final = is_refused or over.is_set()
            # Only the first failure and the last are news.
            if is_final or pause == FIRST_PAUSE:
                rest = how_to_send_rest("gpt.mirrors.wandb", upload.run_dir)
                then = rest if is_final else "training goes on, and so do attempts"
                say(f"wandb       {str(error).splitlines()[0]}; {then}")
            if is_final:
                return False
        wandb.teardown()
        over.wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _upload_later(run_dir: Path, overrides: dict[str, str]) -> str:
    """Upload what W&B has not of a run that is over; returns its address. Raises InputError or TrainingError."""
    check_readable(run_dir)
    upload = _Upload(run_dir, overrides)
    with lock_run_dir(run_dir):
        pass  # refused while the run is still going on
    try:
        with locked(upload.identity):
            upload.begin()
            for row in follow(run_dir, already_over()):
                upload.send_row(row)
            upload.finish()
    except wandb.Error as error:
        raise TrainingError(f"{run_dir}: {error}") from error
    return upload.run.url


def main() -> None:
    if run_dir := beside_run(sys.argv[1:]):
        _beside(run_dir)
        return
    directories, overrides = command.directories_and_values(sys.argv[1:], OWN, USAGE)
    run_dirs = runs_in(directories)
    # One after the other, in the order of their sweep.
    failed = 0
    for run_dir in run_dirs:
        try:
            print(_upload_later(run_dir, overrides), flush=True)
        except (InputError, TrainingError) as error:
            # One run that cannot be sent does not keep the others from it.
            if len(run_dirs) == 1:
                raise
            failed += 1
            print(error, file=sys.stderr)
    if failed:
        raise TrainingError(
            f"{failed} of {len(run_dirs)} runs were not uploaded; the same command sends what is missing"
        )


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
