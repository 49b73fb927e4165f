"""The training loop: from a config and prepared data to checkpoints, metrics, samples and a result."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpt import checkpoint
from gpt.checkpoint import Progress, TrainState
from gpt.config.load import Config
from gpt.config.schema import WandbConfig
from gpt.device import cpu_threads, device_name, peak_flops, pick_device, reset_peak
from gpt.diagnostics import detect_anomaly, profile_steps
from gpt.distributed import ALONE, World, after_grace, agree, heard, is_lost_rank, joined, replicated
from gpt.errors import Interrupted, LostRank, TrainingError
from gpt.evaluation.validation import Validation, exact_match
from gpt.generate import generate_text
from gpt.loss import loss_sum
from gpt.model import GPT, flops_per_token, init_weights
from gpt.optim import build_optimizers
from gpt.parallelize import checkpoint_activations, compile_blocks, compiler_problem
from gpt.precision import autocast, loss_scaler, set_matmul_precision
from gpt.rundir import latest_checkpoint, logs_held, step_directory, what_is_saved, write_result
from gpt.schedule import step_tokens
from gpt.signals import Interrupt, Stopped, never
from gpt.summary import conclude, facts, introduce
from gpt.tokens.loader import OrderedSampler, TokenDataset, count_targets, micro_batches, unpack
from gpt.tokens.order import Order, derive
from gpt.tokens.tokenfile import TokenFile, data_fingerprint
from gpt.tokens.tokenizer import get_tokenizer
from gpt.tokens.windows import Windows
from gpt.tracker.histogram import histograms
from gpt.tracker.mirror import Mirror
from gpt.tracker.provenance import write_about
from gpt.tracker.tracker import Silent, Tracker


class Step(NamedTuple):
    """What an optimizer step gives: this rank's part of the loss (nats per token of the whole batch, before the
    update) and the gradient norm, both (), the tokens of all ranks, and histograms of the gradients, if due."""

    loss: Tensor
    grad_norm: Tensor
    tokens: int
    histograms: dict[str, Any]


def run(world: World, config: Config, train: TokenFile, val: TokenFile, run_dir: Path | None) -> dict[str, Any]:
    """A rank's part in a run, from joining the others to its end; only rank 0 needs to know the directory.

    Raises InputError when the ranks, or config, data and checkpoint, do not fit together, and TrainingError when
    the run cannot go on.
    """
    device = pick_device(config.device, world.local_rank)
    with joined(world, device, config.cluster.timeout):
        run_dir = agree(world, config, data_fingerprint(train, val), run_dir)
        with heard(world, run_dir):
            return Trainer(config, train, val, run_dir, world).fit()


class LossSum(nn.Module):
    """The model and its loss as one forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        """See :func:`gpt.loss.loss_sum`."""
        return loss_sum(self.model, inputs, targets, documents)


class Trainer:
    """One run, or one rank of it.

    Raises InputError when config, data and the checkpoint to resume from do not fit together.
    """

    def __init__(self, config: Config, train: TokenFile, val: TokenFile, run_dir: Path, world: World = ALONE):
        self.config, self.run_dir, self.world = config, run_dir, world
        self.stages, self.total_steps, self.total_tokens = config.stages, config.total_steps, config.total_tokens
        self.micro_batch_size = config.micro_batch_size
        self.device = pick_device(config.device, world.local_rank)
        self.autocast = autocast(config.precision.name, self.device)
        self.peak_flops = peak_flops(config.precision.name, device_name(self.device))
        set_matmul_precision(config.precision.name)
        windows, val_windows = (
            Windows(file, config.model.seq_len, config.data.documents, config.data.read) for file in (train, val)
        )
        self.order = Order(
            config.data.seed,
            train.sha256,
            train.n_tokens,
            config.model.seq_len,
            kind=config.data.order if config.data.shuffle else "sequential",
            first=config.batch.global_tokens // config.model.seq_len if config.trainer.one_batch else None,
            windows=windows if config.data.documents == "separate" else None,
        )
        self.train_file, self.fingerprint = train, data_fingerprint(train, val)
        self.dataset = TokenDataset(windows, self.order)
        self.validation = Validation(val_windows, config.trainer.eval_tokens, self.micro_batch_size)
        self.exact_match = exact_match(val_windows, self.micro_batch_size)
        self.tokenizer = get_tokenizer(train.tokenizer, train.chars)
        self.compiler_problem = compiler_problem(self.device) if config.compile else None
        self.state = self.build_state(train.vocab_size)
        self.logs = self.resume() if config.resume else {}  # bytes of each log that belong to where the run starts
        self.saved_step = self.state.progress.step
        self.last_sample: str | None = None
        self.loss_sum = replicated(LossSum(self.state.model), self.device, world)
        self.mark = (time.perf_counter(), self.state.progress.tokens)  # since when tokens per second are counted

    def build_state(self, vocab_size: int) -> TrainState:
        """Model and optimizers at step 0."""
        model = GPT(self.config.model, vocab_size)
        init_weights(model, self.config.seed)
        model.to(self.device)
        if self.config.compile and not self.config.trainer.anomaly and not self.compiler_problem:
            compile_blocks(model)
        if self.config.model.activation_checkpointing == "blocks":
            checkpoint_activations(model)
        optimizers = build_optimizers(self.config.optimizer, model)
        scaler = loss_scaler(self.config.precision.name, self.device)
        return TrainState(model, optimizers, scaler, Progress(order_hash=self.order.empty_hash()))

    def resume(self) -> dict[str, int]:
        """Load the newest checkpoint; a run that was ended before its first one starts again."""
        path = latest_checkpoint(self.run_dir)
        return checkpoint.load(path, self.state) if path else {}

    def fit(self) -> dict[str, Any]:
        """Train to the end of the run, or to a signal; returns what result.json holds.

        Raises TrainingError when the run cannot go on, and Interrupted where a signal ended it at once.
        """
        progress, world = self.state.progress, self.world
        begun = time.perf_counter()
        reset_peak(self.device)
        result = {"status": "failed"}
        alone = logs_held(self.run_dir) if world.is_main else contextlib.nullcontext()
        threads = cpu_threads(self.config.cluster.threads)
        interrupt = Interrupt(world.stop, listens=world.stop is None)
        with self.failures_in_words(), alone, threads, interrupt, self.mirror() as mirror:
            try:
                with self.tracker(mirror) as tracker:
                    introduce(self, tracker)
                    self.train(tracker, interrupt)
                    is_done = progress.step == self.total_steps and progress.pending is None
                    result["status"] = "done" if is_done else "interrupted"
                    if world.is_main:
                        result |= conclude(self, tracker, result["status"])
            except KeyboardInterrupt:
                result["status"] = "interrupted"
                raise
            finally:
                seconds = round(time.perf_counter() - begun, 3)
                if world.is_main:
                    with contextlib.suppress(OSError):  # a full disk has been told
                        write_result(self.run_dir, result | {"seconds": seconds})
        return result

    @contextlib.contextmanager
    def failures_in_words(self) -> Iterator[None]:
        """Say of what ends a run before its time what it was, and how it goes on. Raises TrainingError, Interrupted."""
        try:
            yield
        except KeyboardInterrupt as error:
            raise Interrupted(f"stopped at once\n  {what_is_saved(self.run_dir)}") from error
        except OSError as error:
            raise TrainingError(
                f"step {self.state.progress.step}: {self.run_dir} cannot be written: {error}\n"
                f"  mend that, or make room; {what_is_saved(self.run_dir)}"
            ) from error
        except RuntimeError as error:
            step, reason = self.state.progress.step + 1, str(error).partition("\n")[0]
            if reason.startswith("DataLoader worker"):
                raise TrainingError(
                    f"step {step}: one of data.num_workers={self.config.data.num_workers} is gone: {reason}\n"
                    f"  if memory is short, take fewer; {what_is_saved(self.run_dir)}"
                ) from error
            if self.world.size == 1 or not is_lost_rank(error):
                raise
            raise after_grace(
                LostRank(
                    f"step {step}: another rank is gone, or did not answer within "
                    f"cluster.timeout={self.config.cluster.timeout} s ({reason})\n"
                    f"  see {self.run_dir}/logs; {what_is_saved(self.run_dir)}"
                )
            ) from error

    def mirror(self) -> Mirror | contextlib.nullcontext:
        """What copies the logs elsewhere, which outlives them and result.json."""
        tracker = self.config.tracker
        stays = isinstance(tracker, WandbConfig) and tracker.artifacts != "none"
        return Mirror(tracker.name, self.run_dir, stays) if self.world.is_main else contextlib.nullcontext()

    def tracker(self, mirror: Mirror | None) -> Tracker | Silent:
        """Rank 0 speaks and writes the logs, which are first brought to where the run goes on."""
        if mirror is None:
            return Silent()
        step, rebuilt = self.state.progress.step, []
        (self.run_dir / "result.json").unlink(missing_ok=True)  # of an earlier end, which this run goes beyond
        if step:
            path = step_directory(self.run_dir, step)
            rebuilt = checkpoint.restore_logs(path, self.run_dir, self.logs)
            checkpoint.settle(self.run_dir, self.state.progress.best_step, self.config.checkpoint.keep)
        write_about(self.run_dir, facts(self), step, self.world.size)
        draws = self.config.tracker.histograms_every is not None
        tracker = Tracker(self.run_dir, self.logs, step, self.total_steps, mirror, draws)
        for name in rebuilt:
            tracker.say(f"{name} was not what it was when step {step:,} was saved: rebuilt from the checkpoint")
        return tracker

    def train(self, tracker: Tracker, interrupt: Interrupt) -> None:
        """Step after step, until the run ends or a signal came; the last one is saved."""
        progress, trainer, batches = self.state.progress, self.config.trainer, self.batches()
        recorded = profile_steps(self.run_dir, enabled=trainer.profile and self.world.is_main)
        with recorded as profile, detect_anomaly(self.state.model, trainer.anomaly):
            stopping = not self.evaluate_pending(tracker, interrupt)  # a signal had come before the evaluation's end
            while progress.step < self.total_steps and not stopping:
                step = self.train_step(batches)
                stopping = self.world.any(interrupt.received)  # asked once a step, so that a run that stops has saved
                self.after_step(tracker, step, stopping)
                stopping = stopping or not self.evaluate_pending(tracker, interrupt)
                profile()
        if progress.step != self.saved_step:
            self.save(tracker)

    def batches(self) -> Iterator[Tensor]:
        """Micro-batches (micro_batch_size, seq_len + 1) from where the run stands to its end."""
        sampler = OrderedSampler(
            self.dataset,
            consumed=self.state.progress.samples,
            steps=self.total_steps - self.state.progress.step,
            stages=self.stages,
            micro_batch_size=self.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        return micro_batches(sampler, self.config.data.num_workers, pin_memory=self.device.type == "cuda")

    def train_step(self, batches: Iterator[Tensor]) -> Step:
        """One optimizer step."""
        config, state, progress = self.config, self.state, self.state.progress
        torch.manual_seed(derive("step", config.seed, progress.step, self.world.rank))  # all that dropout draws from
        tokens = step_tokens(self.stages, progress.tokens)
        sequences = tokens // config.model.seq_len
        multiplier = config.schedule.multiplier(progress.tokens + tokens, self.total_tokens)
        for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * multiplier
        loss, micro_steps = torch.zeros((), device=self.device), sequences // (self.micro_batch_size * self.world.size)
        taken, n_targets = self.counted(itertools.islice(batches, micro_steps), tokens)
        for micro_step, batch in enumerate(taken):
            batch = batch.to(self.device, non_blocking=True)
            with self.synchronized(micro_step == micro_steps - 1):
                with self.autocast:
                    share = self.loss_sum(*unpack(batch, config.data.documents == "masked")) / n_targets
                state.scaler.scale(share * self.world.size).backward()  # of which DDP takes the mean
            loss += share.detach()
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
        drawn = self.world.is_main and self.has_histograms(progress.step + 1)
        gradients = histograms("gradients", state.model) if drawn else {}
        grad_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.trainer.grad_clip or math.inf)
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
            optimizer.zero_grad()
        state.scaler.update()
        progress.order_hash = self.order.chain_hash(progress.order_hash, progress.samples, sequences)
        progress.step += 1
        progress.tokens += tokens
        progress.samples += sequences
        return Step(loss, grad_norm, tokens, gradients)

    def counted(self, taken: Iterator[Tensor], tokens: int) -> tuple[Iterable[Tensor], int]:
        """The micro-batches of a step, and how many targets all ranks have in it: all tokens, where none is masked."""
        if self.dataset.windows.all_count:
            return taken, tokens
        held = list(taken)
        return held, max(1, int(self.world.sum(sum(map(count_targets, held))).item()))

    def synchronized(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Gradients go to the other ranks after the last micro-step alone; forward and backward belong inside."""
        if is_last or self.world.size == 1:
            return contextlib.nullcontext()
        return self.loss_sum.no_sync()

    def after_step(self, tracker: Tracker, step: Step, stopping: bool) -> None:
        """Log and save where they are due. A step that is to be evaluated is saved before, and logged after it."""
        config, progress = self.config, self.state.progress
        last = progress.step == self.total_steps
        every = config.trainer.eval_every
        evaluating = last or progress.tokens // every > (progress.tokens - step.tokens) // every
        logging = evaluating or progress.step == 1 or progress.step % config.trainer.log_every == 0
        logging |= self.has_histograms(progress.step)
        saving = last or stopping or progress.step % config.checkpoint.every == 0
        if not (logging or saving):
            return
        row = self.measure(step)
        if step.histograms:
            tracker.histograms(progress.step, step.histograms | histograms("parameters", self.state.model))
        if evaluating:
            progress.pending = row
        elif logging:
            self.log(tracker, row)
        if saving:
            self.save(tracker)
        self.mark = (time.perf_counter(), progress.tokens)

    def evaluate_pending(self, tracker: Tracker, interrupt: Interrupt) -> bool:
        """Evaluate the last step, if that is still to come: validation, sample, log, and a checkpoint of the best.

        False where a signal comes before the end: the evaluation is then left, and done anew when the run goes on.
        Raises TrainingError where the validation loss is not finite.
        """
        progress, text = self.state.progress, None
        if progress.pending is None:
            return True
        is_due = self.config.sample.tokens > 0 and self.world.is_main
        try:
            row = progress.pending | self.evaluate(lambda: interrupt.received)
        except Stopped:
            return False
        with contextlib.suppress(Stopped):
            text = self.sample(lambda: interrupt.received) if is_due else None
        if self.world.any(is_due and text is None):
            return False
        progress.pending = None
        self.log(tracker, row)
        if text is not None:
            tracker.sample(progress.step, text)
            self.last_sample = text
        if progress.best_loss is None or row["val/loss"] < progress.best_loss:
            progress.best_loss, progress.best_step = row["val/loss"], progress.step
            self.save(tracker)
        self.mark = (time.perf_counter(), progress.tokens)
        return True

    def log(self, tracker: Tracker, row: dict[str, Any]) -> None:
        """Log the metrics of a step."""
        tracker.row(row)
        if row["step"] == 1:
            ln_vocab = math.log(self.state.model.vocab_size)
            tracker.say(f"loss at initialisation {row['train/loss']:.4f}, ln(vocab_size) {ln_vocab:.4f}")

    def has_histograms(self, step: int) -> bool:
        """Whether a step has histograms of weights and gradients."""
        every = self.config.tracker.histograms_every
        return every is not None and step % every == 0

    def measure(self, step: Step) -> dict[str, Any]:
        """The metrics of the last step. Raises TrainingError when they are not finite."""
        progress, scaler = self.state.progress, self.state.scaler
        row = {
            "step": progress.step,
            "tokens": progress.tokens,
            "train/loss": self.world.sum(step.loss).item(),
            "optim/lr": self.state.optimizers[0].param_groups[0]["lr"],
            "optim/grad_norm": step.grad_norm.item(),
            "optim/batch_tokens": step.tokens,
        }
        if scaler.is_enabled():
            row["optim/loss_scale"] = scaler.get_scale()
        is_skipped = scaler.is_enabled() and row["optim/loss_scale"] >= 1 and not math.isfinite(row["optim/grad_norm"])
        if is_skipped:  # float16 overflowed: no update, and the scale is halved
            del row["optim/grad_norm"]
        if not all(math.isfinite(row[key]) for key in ("train/loss", "optim/grad_norm") if key in row):
            raise self.not_finite(f"loss {row['train/loss']}, gradient norm {row['optim/grad_norm']}")
        then, tokens_then = self.mark
        row["perf/tokens_per_sec"] = (progress.tokens - tokens_then) / (time.perf_counter() - then)
        if self.peak_flops:
            flops = row["perf/tokens_per_sec"] * flops_per_token(self.state.model)
            row["perf/mfu"] = flops / (self.peak_flops * self.world.size)
        return row

    def not_finite(self, what: str) -> TrainingError:
        """A run that has left the numbers."""
        return TrainingError(
            f"step {self.state.progress.step}: {what}\n"
            f"  {what_is_saved(self.run_dir)}\n"
            "  debug=anomaly there names the first module that is not finite; a lower optimizer.lr or a longer warm-up "
            "may help"
        )

    def evaluate(self, stop: Callable[[], bool] = never) -> dict[str, float]:
        """The metrics of the validation. Raises TrainingError where the loss is not finite, and Stopped."""
        model, how = self.state.model, (self.device, self.autocast, self.world, stop)
        metrics = {"val/loss": self.validation.loss(model, *how)}
        if not math.isfinite(metrics["val/loss"]):
            raise self.not_finite(f"validation loss {metrics['val/loss']}")
        if self.exact_match is not None:
            metrics["val/exact_match"] = self.exact_match.share(model, *how)
        return metrics

    def sample(self, stop: Callable[[], bool] = never) -> str:
        """A text of the model's own. Raises Stopped."""
        config, step = self.config, self.state.progress.step
        return generate_text(self.state.model, self.tokenizer, config.sample, config.seed, step, stop)

    def save(self, tracker: Tracker) -> None:
        """Write a checkpoint of the last step, if there is none. Raises TrainingError where weights are not finite."""
        progress, keep = self.state.progress, self.config.checkpoint.keep
        if not self.world.is_main:
            return
        if self.saved_step == progress.step:  # before its evaluation, which may have found it the best
            checkpoint.settle(self.run_dir, progress.best_step, keep)
            return
        weights = [p.isfinite().all() for p in self.state.model.parameters()]
        if not torch.stack(weights).all():
            raise self.not_finite("the update left weights that are not finite")
        about = {"fingerprint": self.fingerprint, "tokenizer": self.train_file.vocabulary}
        checkpoint.save(self.run_dir, self.state, about=about, logs=tracker.sync(), keep=keep)
        self.saved_step = progress.step
