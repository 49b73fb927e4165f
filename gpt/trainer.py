"""The training loop: from a config and prepared data to checkpoints, metrics, samples and a result."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpt.checkpoint import state as checkpoint
from gpt.checkpoint.state import Progress, TrainState
from gpt.config.schema import Config
from gpt.debug.anomaly import detect_anomaly, not_finite
from gpt.debug.profile import profile_steps
from gpt.device import Compute, peak_bytes, pick_device, reset_peak
from gpt.distributed import ALONE, World
from gpt.evaluation.task import Subject, Task, due_tasks, measure_each
from gpt.evaluation.tasks import build_tasks, usual_tasks
from gpt.interop.start import start_weights
from gpt.model import GPT
from gpt.optimizer.build import build_averages, build_optimizers
from gpt.parallelize import compiler_problem, parallelize
from gpt.precision import autocast, loss_scaler, set_matmul_precision
from gpt.session import Session, open_session
from gpt.step import Step, Stepper
from gpt.tokens.loader import TokenDataset, open_dataset
from gpt.tokens.tokenfile import TokenFile
from gpt.tracker.summary import log_header, run_facts, summarize


class Due(NamedTuple):
    """The actions that are due after a step."""

    tasks: list[str]  # names of evaluation tasks
    log: bool
    save: bool


def due_after(config: Config, total_steps: int, tasks: dict[str, Task], progress: Progress, step_tokens: int) -> Due:
    """Return the actions that are due after a step of ``step_tokens`` tokens, which led to ``progress``."""
    step = progress.step
    is_last = step == total_steps
    names = due_tasks(tasks, progress.tokens - step_tokens, progress.tokens, is_last)
    is_logged = step == 1 or step % config.trainer.log_every == 0
    return Due(
        tasks=names,
        log=is_logged or bool(names) or histograms_due(config, step),
        save=is_last or step % config.checkpoint.every == 0,
    )


def histograms_due(config: Config, step: int) -> bool:
    """Return whether histograms of weights and gradients are due after ``step``."""
    every = config.tracker.histograms_every
    return every is not None and step % every == 0


class Trainer:
    """One run, or one rank of it.

    Raises InputError when config, data and the checkpoint to resume from do not fit together.
    """

    session: Session  # while it trains

    def __init__(self, config: Config, train: TokenFile, val: TokenFile, run_dir: Path, world: World = ALONE):
        self.config = config
        self.run_dir = run_dir
        self.world = world
        self.total_steps = config.total_steps
        device = pick_device(config.device, world.local_rank)
        set_matmul_precision(config.precision.name)
        self.compute = Compute(
            device, autocast(config.precision.name, device), world, lambda: self.session.interrupt.received
        )

        # The data in the order of the run, and what is measured.
        dataset = open_dataset(config, train)
        self.tasks = build_tasks(Subject.of_data(config, val), usual_tasks(config))

        # Model and optimizers, as at step 0 or as the last checkpoint has them.
        self.state = self._build_state(dataset, train.vocab_size)
        # Bytes of each log that belong to this step. A run that was ended before its first checkpoint starts again.
        self.logs = checkpoint.load_latest(run_dir, self.state) if config.resume else {}
        self.saved_step = self.state.progress.step
        self.facts = self.origin | run_facts(config, self.state.model, train, val, self.tasks["val"].n_targets)

        # All that is done to the model for speed; its parameters stay those of the state.
        self.compiler_problem = compiler_problem(device) if config.compile else None
        self.facts["compiled"] = config.compile and not config.trainer.anomaly and not self.compiler_problem
        loss_sum = parallelize(self.state.model, device, world, self.facts["compiled"])
        self.stepper = Stepper(config, self.state, dataset, loss_sum, self.compute)

    def _build_state(self, dataset: TokenDataset, vocab_size: int) -> TrainState:
        model = GPT(self.config.model, vocab_size)
        self.origin = start_weights(self.config, model, self.run_dir)
        optimizers = build_optimizers(self.config.optimizer, model.to(self.compute.device))
        scaler = loss_scaler(self.config.precision.name, self.compute.device)
        averages = build_averages(self.config, model, optimizers)
        return TrainState(model, optimizers, scaler, Progress(order_hash=dataset.order.empty_hash()), averages)

    def fit(self) -> dict[str, Any]:
        """Train to the end of the run, or to a signal; returns what result.json holds.

        Raises TrainingError when the run cannot go on, and Interrupted where a signal ended it at once.
        """
        progress = self.state.progress
        reset_peak(self.compute.device)
        with open_session(self.config, self.run_dir, self.world, progress, self.logs, self.facts) as self.session:
            tracker = self.session.tracker
            log_header(
                tracker,
                self.config,
                self.state.model,
                self.facts,
                self.compute,
                run_dir=self.run_dir,
                n_train=self.stepper.dataset.windows.file.n_tokens,
                step=progress.step,
                compiler_problem=self.compiler_problem,
            )
            self.train()
            status = "done" if progress.step == self.total_steps and progress.pending is None else "interrupted"
            self.session.result["status"] = status
            if self.world.is_main:
                peak = peak_bytes(self.compute.device)
                result, lines = summarize(self.config, self.run_dir, progress, self.tasks, self.facts, status, peak)
                self.session.result |= result
                for line in lines:
                    tracker.say(line)
        return self.session.result

    def train(self) -> None:
        """Take step after step until the run ends or a signal comes, and save the last one."""
        progress = self.state.progress
        trainer = self.config.trainer
        batches = self.stepper.batches()
        profiler = profile_steps(self.run_dir, enabled=trainer.profile and self.world.is_main)
        with profiler as profile, detect_anomaly(self.state.model, trainer.anomaly):
            # A run that goes on may have been saved before its evaluation was over.
            stopping = not self.evaluate_pending()
            while progress.step < self.total_steps and not stopping:
                with_histograms = self.world.is_main and histograms_due(self.config, progress.step + 1)
                step = self.stepper.train_step(batches, with_histograms)
                due = self.due(step)
                # Asked once a step, so that a run that stops has saved it.
                stopping = self.world.any(self.compute.stop())
                self.record(step, due._replace(save=due.save or stopping))
                stopping = stopping or not self.evaluate_pending()
                profile()
        if progress.step != self.saved_step:
            self.save()

    def due(self, step: Step) -> Due:
        """Return the actions that are due after the last step."""
        return due_after(self.config, self.total_steps, self.tasks, self.state.progress, step.tokens)

    def record(self, step: Step, due: Due) -> None:
        """Log and save the last step, where that is due. A row that is to be evaluated waits for its metrics."""
        if not (due.log or due.save):
            return
        progress = self.state.progress
        row = self.stepper.metrics(step)
        norm = row.get("optim/grad_norm", 0.0)  # an overflow in float16 has none
        if not (math.isfinite(row["train/loss"]) and math.isfinite(norm)):
            raise not_finite(f"loss {row['train/loss']}, gradient norm {norm}", progress.step, self.run_dir)
        if step.histograms:
            self.session.tracker.histograms(progress.step, step.histograms)
        if due.tasks:
            progress.pending = row
        elif due.log:
            self.log(row)
        if due.save:
            self.save()
        self.stepper.restart_clock()

    def evaluate_pending(self) -> bool:
        """Run the tasks that the last step made due, log their metrics with it, and save the best.

        Return False if a signal came before the end: the tasks are then left, and run when the run goes on. Raises
        TrainingError when a metric is not finite.
        """
        progress = self.state.progress
        row = progress.pending
        if row is None:
            return True
        # A run that was made longer had all of them due at what was its last step.
        before = row["tokens"] - row["optim/batch_tokens"]
        names = due_tasks(self.tasks, before, row["tokens"], progress.step == self.total_steps) or list(self.tasks)
        tasks = [self.tasks[name] for name in names]
        texts = []
        for measurement in measure_each(tasks, self.state.model, progress.step, self.compute, self.state.averages):
            if measurement is None:
                return False
            for key, value in measurement.metrics.items():
                if not math.isfinite(value):
                    raise not_finite(f"{key} {value}", progress.step, self.run_dir)
            row = row | measurement.metrics
            if measurement.text is not None:
                texts.append(measurement.text)

        progress.pending = None
        self.log(row)
        for text in texts:
            self.session.tracker.sample(progress.step, text)
        loss = row.get("val/loss")
        if loss is not None and (progress.best_loss is None or loss < progress.best_loss):
            progress.best_loss = loss
            progress.best_step = progress.step
            self.save()
        self.stepper.restart_clock()
        return True

    def log(self, row: dict[str, Any]) -> None:
        """Log the metrics of a step."""
        tracker = self.session.tracker
        tracker.row(row)
        if row["step"] == 1:
            ln_vocab = math.log(self.state.model.vocab_size)
            tracker.say(f"loss at initialisation {row['train/loss']:.4f}, ln(vocab_size) {ln_vocab:.4f}")

    def save(self) -> None:
        """Write a checkpoint of the last step, if there is none. Raises TrainingError where weights are not finite."""
        if not self.world.is_main:
            return
        progress = self.state.progress
        keep = self.config.checkpoint.keep
        if self.saved_step == progress.step:
            # It was saved before its evaluation, which may have found it the best.
            checkpoint.prune(self.run_dir, progress.best_step, keep)
            return
        is_finite = [p.isfinite().all() for p in self.state.model.parameters()]
        if not torch.stack(is_finite).all():
            raise not_finite("the update left weights that are not finite", progress.step, self.run_dir)
        about = {"fingerprint": self.facts["data_fingerprint"], "tokenizer": self.facts["tokenizer"]}
        checkpoint.save(self.run_dir, self.state, about=about, logs=self.session.tracker.sync(), keep=keep)
        self.saved_step = progress.step
