"""The training loop: from a config and prepared data to checkpoints, metrics, samples and a result."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt import checkpoint
from gpt.checkpoint import Progress, TrainState
from gpt.config import Config
from gpt.dataset import OrderedSampler, TokenDataset, micro_batches
from gpt.errors import TrainingError
from gpt.evaluate import Validation, bytes_and_gzip
from gpt.generate import generate
from gpt.interrupt import Interrupt
from gpt.loss import loss_sum
from gpt.model import GPT, flops_per_token, init_weights, parameter_count
from gpt.optim import build_optimizer
from gpt.order import Order, derive
from gpt.precision import autocast, cpu_threads, peak_flops, pick_device
from gpt.rundir import latest_checkpoint, locked
from gpt.schedule import lr_multiplier
from gpt.tokenfile import TokenFile, data_fingerprint
from gpt.tokenizer import END_OF_TEXT, get_tokenizer, prompt_ids
from gpt.tracker import Tracker, plot, read_metrics, write_result


class Trainer:
    """One run in one process.

    Raises InputError when config, data and the checkpoint to resume from do not fit together.
    """

    def __init__(self, config: Config, train: TokenFile, val: TokenFile, run_dir: Path):
        self.config, self.run_dir = config, run_dir
        self.device = pick_device(config.device)
        self.autocast = autocast(config.precision.name, self.device)
        self.peak_flops = peak_flops(config.precision.name, self.device)
        torch.set_float32_matmul_precision("highest")
        self.order = Order(config.seed, train.sha256, train.n_tokens, config.model.seq_len)
        self.fingerprint = data_fingerprint(train, val)
        self.dataset = TokenDataset(train, self.order, config.data.read)
        self.validation = Validation(
            val, config.data.read, config.model.seq_len, config.trainer.eval_tokens, config.micro_batch_size
        )
        self.tokenizer = get_tokenizer(train.tokenizer, train.chars)
        self.prompt = torch.tensor([prompt_ids(self.tokenizer, config.sample.prompt)], device=self.device)  # (1, T)
        self.state = self.build_state(train.vocab_size)
        self.logs = self.resume() if config.resume else {}  # bytes of each log that belong to where the run starts
        self.mark = (time.perf_counter(), self.state.progress.tokens)  # since when tokens per second are counted

    def build_state(self, vocab_size: int) -> TrainState:
        """Model and optimizer at step 0."""
        model = GPT(self.config.model, vocab_size)
        init_weights(model, self.config.seed)
        model.to(self.device)
        if self.config.compile:
            for block in model.h:
                block.compile()  # in place, so that parameters keep their names
        optimizer = build_optimizer(self.config.optimizer, model)
        return TrainState(model, optimizer, Progress(order_hash=self.order.empty_hash()))

    def resume(self) -> dict[str, int]:
        """Load the newest checkpoint; a run that was ended before its first one starts again."""
        path = latest_checkpoint(self.run_dir)
        return checkpoint.load(path, self.state) if path else {}

    def fit(self) -> dict[str, Any]:
        """Train to the end of the run, or to a signal; returns what result.json holds."""
        progress, total_steps = self.state.progress, self.config.total_steps
        begun = time.perf_counter()
        result = {"status": "failed"}
        with (
            locked(self.run_dir),
            cpu_threads(self.config.cluster.threads),
            Interrupt() as interrupt,
            Tracker(self.run_dir, self.logs, progress.step, total_steps) as tracker,
        ):
            try:
                self.introduce(tracker)
                batches, stopping = self.batches(), False
                while progress.step < total_steps and not stopping:
                    loss, grad_norm = self.train_step(batches)
                    stopping = interrupt.received  # asked once a step, so that a run that stops has saved
                    self.after_step(tracker, loss, grad_norm, stopping)
                result["status"] = "interrupted" if progress.step < total_steps else "done"
                result |= self.conclude(tracker, result["status"])
            except KeyboardInterrupt:
                result["status"] = "interrupted"
                raise
            finally:
                seconds = round(time.perf_counter() - begun, 3)
                write_result(self.run_dir, result | {"seconds": seconds})
        return result

    def batches(self) -> Iterator[Tensor]:
        """Micro-batches (micro_batch_size, seq_len + 1) from where the run stands to its end."""
        sampler = OrderedSampler(
            self.dataset,
            consumed=self.state.progress.samples,
            steps=self.config.total_steps - self.state.progress.step,
            batch_size=self.config.batch_size,
            micro_batch_size=self.config.micro_batch_size,
            rank=0,
            world_size=1,
        )
        return iter(micro_batches(sampler, self.config.data.num_workers, pin_memory=self.device.type == "cuda"))

    def train_step(self, batches: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns its loss (nats per token, before the update) and gradient norm, both ()."""
        config, model, optimizer, progress = self.config, self.state.model, self.state.optimizer, self.state.progress
        torch.manual_seed(derive("step", config.seed, progress.step, 0))  # all that dropout draws from
        tokens = config.batch.global_tokens
        lr = config.optimizer.lr * lr_multiplier(config.schedule, progress.tokens + tokens, config.total_tokens)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = torch.zeros((), device=self.device)
        for _ in range(config.batch_size // config.micro_batch_size):
            batch = next(batches).to(self.device, non_blocking=True)
            with self.autocast:
                share = loss_sum(model, batch[:, :-1], batch[:, 1:]) / tokens
            share.backward()
            loss += share.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        progress.order_hash = self.order.chain_hash(progress.order_hash, progress.samples, config.batch_size)
        progress.step += 1
        progress.tokens += tokens
        progress.samples += config.batch_size
        return loss, grad_norm

    def after_step(self, tracker: Tracker, loss: Tensor, grad_norm: Tensor, stopping: bool) -> None:
        """Log, evaluate and save where they are due."""
        config, progress = self.config, self.state.progress
        last = progress.step == config.total_steps
        evaluating = last or self.crosses(config.trainer.eval_every)
        logging = evaluating or progress.step == 1 or progress.step % config.trainer.log_every == 0
        saving = last or stopping or progress.step % config.checkpoint.every == 0
        if not (logging or saving):
            return
        row = self.measure(loss, grad_norm)
        best_so_far = evaluating and self.evaluate(row)
        if logging:
            tracker.row(row)
        if progress.step == 1:
            ln_vocab = math.log(self.state.model.vocab_size)
            tracker.say(f"loss at initialisation {row['train/loss']:.4f}, ln(vocab_size) {ln_vocab:.4f}")
        if evaluating and config.sample.tokens:
            tracker.sample(progress.step, self.sample())
        if saving or best_so_far:
            self.save(tracker, best_so_far)
        self.mark = (time.perf_counter(), progress.tokens)

    def crosses(self, every: int) -> bool:
        """Whether the last step reached or passed a multiple of ``every`` tokens."""
        tokens = self.state.progress.tokens
        return tokens // every > (tokens - self.config.batch.global_tokens) // every

    def measure(self, loss: Tensor, grad_norm: Tensor) -> dict[str, Any]:
        """The metrics of the last step. Raises TrainingError when they are not finite."""
        progress = self.state.progress
        row = {
            "step": progress.step,
            "tokens": progress.tokens,
            "train/loss": loss.item(),
            "optim/lr": self.state.optimizer.param_groups[0]["lr"],
            "optim/grad_norm": grad_norm.item(),
        }
        if not (math.isfinite(row["train/loss"]) and math.isfinite(row["optim/grad_norm"])):
            raise TrainingError(
                f"step {progress.step}: loss {row['train/loss']}, gradient norm {row['optim/grad_norm']}\n"
                "  the last checkpoint is older and intact; a lower optimizer.lr or a longer warm-up may help"
            )
        then, tokens_then = self.mark
        row["perf/tokens_per_sec"] = (progress.tokens - tokens_then) / (time.perf_counter() - then)
        if self.peak_flops:
            row["perf/mfu"] = row["perf/tokens_per_sec"] * flops_per_token(self.state.model) / self.peak_flops
        return row

    def evaluate(self, row: dict[str, Any]) -> bool:
        """Add the validation loss to a row; says whether it is the lowest so far."""
        progress = self.state.progress
        row["val/loss"] = self.validation.loss(self.state.model, self.device, self.autocast)
        if progress.best_loss is not None and row["val/loss"] >= progress.best_loss:
            return False
        progress.best_loss, progress.best_step = row["val/loss"], progress.step
        return True

    def sample(self) -> str:
        """A text of the model's own."""
        chosen, seed = self.config.sample, derive("sample", self.config.seed, self.state.progress.step)
        ids = generate(
            self.state.model, self.prompt, chosen.tokens, temperature=chosen.temperature, top_k=chosen.top_k, seed=seed
        )
        return self.tokenizer.decode(ids[0].tolist()).removeprefix(END_OF_TEXT)

    def save(self, tracker: Tracker, best_so_far: bool) -> None:
        """Write a checkpoint of the last step."""
        checkpoint.save(
            self.run_dir,
            self.state,
            fingerprint=self.fingerprint,
            logs=tracker.sync(),
            is_best=best_so_far,
            keep=self.config.checkpoint.keep,
        )

    def introduce(self, tracker: Tracker) -> None:
        """Say what is about to run."""
        config, model, progress = self.config, self.state.model, self.state.progress
        tracker.say(
            f"{config.model.name}: {parameter_count(model):,} parameters, vocabulary {model.vocab_size:,} padded to "
            f"{model.padded_vocab_size:,}, {flops_per_token(model) / 1e6:,.1f} MFLOP per token; "
            f"{config.precision.name} on {self.device}"
        )
        tracker.say(
            f"{config.data.name}: {self.dataset.file.n_tokens:,} training tokens, "
            f"{self.validation.n_targets:,} validation tokens"
        )
        accum = config.batch_size // config.micro_batch_size
        tracker.say(
            f"{config.total_steps:,} steps of {config.batch.global_tokens:,} tokens "
            f"({accum} × {config.micro_batch_size} sequences of {config.model.seq_len}) -> {self.run_dir}"
        )
        if progress.step:
            tracker.say(f"resuming after step {progress.step:,}")

    def conclude(self, tracker: Tracker, status: str) -> dict[str, Any]:
        """Draw the plot, say how the run ended, and gather its result."""
        progress, rows = self.state.progress, read_metrics(self.run_dir)
        val_losses = [row["val/loss"] for row in rows if "val/loss" in row]
        result = {
            "status": status,
            "step": progress.step,
            "tokens": progress.tokens,
            "initial_loss": rows[0]["train/loss"] if rows else None,
            "train_loss": rows[-1]["train/loss"] if rows else None,
            "val_loss": val_losses[-1] if val_losses else None,
            "best_val_loss": progress.best_loss,
            "best_step": progress.best_step,
            "parameters": parameter_count(self.state.model),
            "data_fingerprint": self.fingerprint,
            "data_order_hash": progress.order_hash,
        }
        if status == "done":
            n_bytes, gzip_loss = bytes_and_gzip(self.validation, self.tokenizer)
            result["val_loss_per_byte"] = result["val_loss"] * self.validation.n_targets / n_bytes
            result["gzip_loss_per_byte"] = gzip_loss
            tracker.say(
                f"validation loss {result['val_loss']:.4f} nats per token, {result['val_loss_per_byte']:.4f} per byte "
                f"(gzip -9 on the same bytes: {gzip_loss:.4f})"
            )
            if self.config.sample.tokens:
                shown = "".join(c if c.isprintable() or c == "\n" else "·" for c in self.sample())
                tracker.say("a sample:\n  " + shown.strip("\n").replace("\n", "\n  "))
        if self.config.tracker.plot and (path := plot(self.run_dir, self.config.name)):
            tracker.say(f"plot        {path}")
        tracker.say(f"checkpoint  {latest_checkpoint(self.run_dir)}")
        return result
