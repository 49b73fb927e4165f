"""One optimizer step: the batch, its gradients, the update, and the metrics of the step."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpt.checkpoint.state import TrainState
from gpt.config.schema import Config
from gpt.device import Compute, device_name
from gpt.model import flops_per_token
from gpt.optimizer.build import set_rates
from gpt.tokens.loader import OrderedSampler, StepBatch, TokenDataset, count_targets, step_batches, unpack
from gpt.tokens.order import derive_seed
from gpt.tracker.histogram import histograms
from gpt.tracker.peaks import peak_flops


class Step(NamedTuple):
    """The outcome of an optimizer step on this rank."""

    loss: Tensor  # (), this rank's part of the loss of the whole batch before the update, in nats per token
    grad_norm: Tensor  # ()
    tokens: int  # of all ranks
    histograms: dict[str, Any]  # of the gradients before clipping and the updated parameters, if they are due


class Stepper:
    """Takes the optimizer steps of a run from where its state stands.

    ``loss_sum`` maps inputs, targets and documents of a micro-batch to its summed loss: :class:`gpt.loss.LossSum`, or
    what :mod:`gpt.parallelize` makes of it.
    """

    def __init__(self, config: Config, state: TrainState, dataset: TokenDataset, loss_sum: nn.Module, compute: Compute):
        self.config = config
        self.state = state
        self.dataset = dataset
        self.loss_sum = loss_sum
        self.compute = compute
        self.world = compute.world
        self.total_steps = config.total_steps
        self.total_tokens = config.total_tokens
        self.peak_flops = peak_flops(config.precision.name, device_name(compute.device))
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count tokens per second from here on."""
        self.clock = time.perf_counter()
        self.clock_tokens = self.state.progress.tokens

    def batches(self) -> Iterator[StepBatch]:
        """Return the data of every step from where the run stands to its end."""
        sampler = OrderedSampler(
            self.dataset,
            consumed=self.state.progress.samples,
            steps=self.total_steps - self.state.progress.step,
            stages=self.config.stages,
            micro_batch_size=self.config.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        return step_batches(sampler, self.config.data.num_workers, pin_memory=self.compute.device.type == "cuda")

    def train_step(self, batches: Iterator[StepBatch], with_histograms: bool = False) -> Step:
        """Take one optimizer step; ``with_histograms`` of its gradients and of the parameters after it."""
        state = self.state
        progress = state.progress
        # All that dropout draws from.
        torch.manual_seed(derive_seed("step", self.config.seed, progress.step, self.world.rank))
        batch = next(batches)
        tokens = batch.n_samples * self.config.model.seq_len
        multiplier = self.config.schedule.multiplier(progress.tokens + tokens, self.total_tokens)
        set_rates(self.config.optimizer, state.optimizers, multiplier, progress.tokens + tokens)

        # Forward and backward over this rank's micro-batches.
        loss = self._accumulate(batch, tokens)

        # The update. Gradients are looked at before they are clipped.
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
        recorded = {}
        if with_histograms:
            recorded |= histograms("gradients", state.model)
        max_norm = self.config.trainer.grad_clip or math.inf
        grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), max_norm)
        self._update(grad_norm)
        if with_histograms:
            recorded |= histograms("parameters", state.model)

        progress.order_hash = self.dataset.order.chain_hash(progress.order_hash, progress.samples, batch.n_samples)
        progress.step += 1
        progress.tokens += tokens
        state.averages.update(progress.tokens)
        progress.samples += batch.n_samples
        return Step(loss, grad_norm, tokens, recorded)

    def _accumulate(self, batch: StepBatch, tokens: int) -> Tensor:
        """Add up the gradients of the micro-batches of a step; returns this rank's part of the loss, ()."""
        loss = torch.zeros((), device=self.compute.device)
        is_masked = self.dataset.windows.is_masked
        micro_batches, n_targets = self._count_targets(batch.micro_batches, tokens)
        for micro_step, micro_batch in enumerate(micro_batches):
            micro_batch = micro_batch.to(self.compute.device, non_blocking=True)
            with self._synchronized(micro_step == batch.n_micro_batches - 1):
                with self.compute.autocast:
                    part = self.loss_sum(*unpack(micro_batch, is_masked)) / n_targets
                # DDP takes the mean over the ranks; this makes it the sum.
                self.state.scaler.scale(part * self.world.size).backward()
            loss += part.detach()
        return loss

    def _update(self, grad_norm: Tensor) -> None:
        """Let all optimizers take their step, or none of them after an overflow in float16."""
        # The scaler would skip the optimizer alone whose gradients are not finite; clipping spreads NaN to all.
        scaler = self.state.scaler
        is_overflow = scaler.is_enabled() and not math.isfinite(grad_norm.item())
        for optimizer in self.state.optimizers:
            if not is_overflow:
                scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()

    def _count_targets(self, micro_batches: Iterator[Tensor], tokens: int) -> tuple[Iterable[Tensor], int]:
        """Return the micro-batches of a step and the targets of all ranks: all tokens, if none is masked."""
        if self.dataset.windows.all_count:
            return micro_batches, tokens
        counted = list(micro_batches)
        n_targets = self.world.sum(sum(map(count_targets, counted)))
        return counted, max(1, int(n_targets.item()))

    def _synchronized(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Send gradients to the other ranks after the last micro-step alone; forward and backward belong inside."""
        if is_last or self.world.size == 1:
            return contextlib.nullcontext()
        return self.loss_sum.no_sync()

    def metrics(self, step: Step) -> dict[str, Any]:
        """Return the metrics of the last step; called on all ranks, which sum the loss.

        An overflow in float16, which skips the update, leaves out the norm.
        """
        scaler = self.state.scaler
        optimizer = self.config.optimizer
        multiplier = self.config.schedule.multiplier(self.state.progress.tokens, self.total_tokens)
        row = {
            "step": self.state.progress.step,
            "tokens": self.state.progress.tokens,
            "train/loss": self.world.sum(step.loss).item(),
            "optim/lr": optimizer.lr * multiplier,
            **{f"optim/lr/{name}": rate * multiplier for name, rate in optimizer.other_rates.items()},
            "optim/grad_norm": step.grad_norm.item(),
            "optim/batch_tokens": step.tokens,
        }
        if scaler.is_enabled():
            row["optim/loss_scale"] = scaler.get_scale()
            is_overflow = math.isfinite(row["train/loss"]) and not math.isfinite(row["optim/grad_norm"])
            if is_overflow and row["optim/loss_scale"] >= 1:  # a smaller scale does not help any more
                del row["optim/grad_norm"]
        tokens = self.state.progress.tokens - self.clock_tokens
        row["perf/tokens_per_sec"] = tokens / (time.perf_counter() - self.clock)
        if self.peak_flops:
            flops = row["perf/tokens_per_sec"] * flops_per_token(self.state.model)
            row["perf/mfu"] = flops / (self.peak_flops * self.world.size)
        return row
