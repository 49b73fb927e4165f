"""The plan of a run: its size, compute, memory, hours and curves, without training."""

import functools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpt.compare.tables import Grid, as_table
from gpt.config.budget import step_tokens
from gpt.config.schema import Config, ModelConfig
from gpt.console import plain_console
from gpt.device import PEAK_FLOPS, device_name, peak_flops, pick_device
from gpt.loss import loss_sum
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.parallelize import checkpoint_activations
from gpt.precision import AUTOCAST, autocast
from gpt.schedule import warmup

ASSUMED_VOCABULARY = 128  # of a chars tokenizer without its text: what most alphabets are padded to
POINTS = 2000  # of the plotted curves
COMMON_GPUS = ("H100", "A100")  # of the known GPUs, those that the plan of a sweep shows
MATMUL_SIZE = 1024
MATMUL_REPEATS = 5
CPU = torch.device("cpu")


def plan(config: Config, vocab_size: int | None, run_dir: Path) -> None:
    """Print and plot what a run would be; ``vocab_size`` is None while it is not known."""
    model = _build_model(config, vocab_size)
    about = {**_figures(config, model), "stages": config.stages, "memory_bytes": _memory(config, model)}
    print(_describe(config, about, is_assumed=not vocab_size), flush=True)
    _plot(config, run_dir / "plan.png")
    (run_dir / "plan.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"plot        {run_dir / 'plan.png'}\nfigures     {run_dir / 'plan.json'}")


def plan_jobs(jobs: list[tuple[str, Config, int | None]]) -> None:
    """Print a table of the jobs of a sweep (name, config, size of the vocabulary): each of them, and their sum."""
    listed = []
    for name, config, vocab_size in jobs:
        listed.append((name, _figures(config, _build_model(config, vocab_size))))
    devices = [device for device in listed[0][1]["hours"] if device.startswith("this ") or device in COMMON_GPUS]

    # A row for each job.
    rows = []
    totals = dict.fromkeys(["steps", "tokens", "flops", *devices], 0)
    for name, about in listed:
        row = [name, f"{about['parameters']:,}", f"{about['steps']:,}", f"{about['tokens']:,}", f"{about['flops']:.3g}"]
        for device in devices:
            row.append(_in_words(about["hours"][device]))
            totals[device] += about["hours"][device]
        for key in ("steps", "tokens", "flops"):
            totals[key] += about[key]
        rows.append(row)

    # A row for their sum.
    last = [f"{len(listed)} jobs", "", f"{totals['steps']:,}", f"{totals['tokens']:,}", f"{totals['flops']:.3g}"]
    for device in devices:
        last.append(_in_words(totals[device]))
    rows.append(last)

    mfu = jobs[0][1].plan_mfu
    title = f"plan of {len(listed)} jobs; nothing is trained. Time at {mfu:.0%} of each device's peak"
    header = ["job", "parameters", "steps", "tokens", "FLOP", *devices]
    plain_console().print(as_table(Grid(title, header, rows, words={"job"})))


def _build_model(config: Config, vocab_size: int | None) -> GPT:
    """Build a model without memory."""
    with torch.device("meta"):
        return GPT(config.model, vocab_size or ASSUMED_VOCABULARY)


def _figures(config: Config, model: GPT) -> dict[str, Any]:
    """Return size, length, compute, and hours by device."""
    flops = flops_per_token(model) * config.total_tokens
    hours = {}
    for device, peak in _peak_flops_by_device(config).items():
        hours[device] = flops / (peak * config.plan_mfu) / 3600
    return {
        "parameters": parameter_count(model),
        "padded_vocab_size": model.padded_vocab_size,
        "flops_per_token": flops_per_token(model),
        "steps": config.total_steps,
        "tokens": config.total_tokens,
        "flops": flops,
        "micro_batch_size": config.micro_batch_size,
        "mfu": config.plan_mfu,
        "hours": hours,
    }


def _peak_flops_by_device(config: Config) -> dict[str, float]:
    """Return the peak FLOP/s at the run's precision, of this machine and of known GPUs, one for each rank."""
    precision = config.precision.name
    ranks = config.world_size
    device = pick_device(config.device)
    name = device_name(device)

    # The ranks share a CPU, and have a GPU each.
    here = peak_flops(precision, name) or _measure_flops(precision, device)
    peaks = {f"this {name}": here if device.type == "cpu" else ranks * here}
    for gpu in PEAK_FLOPS:
        if gpu not in name:
            peaks[gpu] = ranks * peak_flops(precision, gpu)
    return peaks


@functools.cache
def _measure_flops(precision: str, device: torch.device) -> float:
    """Measure the FLOP/s of a square matrix product, the best of a few, for a device without a known data sheet."""
    dtype = AUTOCAST.get(precision, torch.float32)
    a = torch.ones(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype)
    seconds = []
    for _ in range(MATMUL_REPEATS):
        begun = time.perf_counter()
        (a @ a).sum().item()
        seconds.append(time.perf_counter() - begun)
    return 2 * MATMUL_SIZE**3 / min(seconds)


def _memory(config: Config, model: GPT) -> dict[str, int]:
    """Return the bytes of a rank by part, in eager mode; torch.compile needs less."""
    activations = _saved_bytes(config, config.model, model.vocab_size)
    n_layer = config.model.n_layer
    if config.model.activation_checkpointing == "blocks" and n_layer:
        # One block at a time runs again, and then saves all that it computes.
        without = replace(config.model, activation_checkpointing="none")
        activations += (_saved_bytes(config, without, model.vocab_size) - activations) // n_layer

    # The optimizer keeps two averages per parameter; Muon keeps one of each matrix.
    n = 0
    averages = 0
    for name, parameter in model.named_parameters():
        is_matrix = name.startswith("h.") and "weight" in name and ".ln_" not in name
        n += parameter.numel()
        averages += (1 if is_matrix and config.optimizer.name == "muon" else 2) * parameter.numel()
    parts = {"parameters": 4 * n, "gradients": 4 * n, "optimizer": 4 * averages, "activations": activations}
    return parts | {"total": sum(parts.values())}


def _saved_bytes(config: Config, model_config: ModelConfig, vocab_size: int) -> int:
    """Return the bytes that one micro-batch saves for backward, extrapolated from up to two equal blocks."""
    n_layer = model_config.n_layer
    by_layers = []
    for count in range(min(n_layer, 2) + 1):
        by_layers.append(_measure_saved_bytes(config, replace(model_config, n_layer=count), vocab_size))
    if n_layer <= 2:
        return by_layers[-1]
    per_block = by_layers[2] - by_layers[1]
    return by_layers[2] + (n_layer - 2) * per_block


def _measure_saved_bytes(config: Config, model_config: ModelConfig, vocab_size: int) -> int:
    """Return the bytes that one micro-batch saves for backward, by a forward pass on tensors without data."""
    saved = []  # keeps the storages alive, so that no other gets the identity of one
    seen = set()

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            saved.append(storage)
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        # Parameters and buffers are there anyway.
        model = GPT(model_config, vocab_size)
        if model_config.activation_checkpointing == "blocks":
            checkpoint_activations(model)
        for tensor in (*model.parameters(), *model.buffers()):
            seen.add(tensor.untyped_storage()._cdata)
        ids = torch.zeros(config.micro_batch_size, config.model.seq_len, dtype=torch.int64)  # (batch, position)
        with autocast(config.precision.name, CPU):
            loss_sum(model, ids, ids)
        return sum(storage.nbytes() for storage in saved)


def _describe(config: Config, about: dict[str, Any], is_assumed: bool) -> str:
    """Return the plan as text; ``is_assumed`` of the size of the vocabulary."""
    schedule = config.schedule
    sizes = [size for _, size in config.stages]
    batch = f"{sizes[0]:,} tokens per step"
    if len(sizes) > 1:
        batch = f"{min(sizes):,} to {max(sizes):,} tokens per step"

    # The learning rate.
    peak = config.optimizer.lr
    warm = warmup(schedule.warmup_tokens, schedule.decay_until, about["tokens"])
    last = peak * schedule.multiplier(config.total_tokens, config.total_tokens)

    # Memory and hours, by rank and by device.
    note = " (assumed: the text is not there yet)" if is_assumed else ""
    is_alone = config.world_size == 1
    devices = "one device" if is_alone else f"{config.world_size} devices, a rank each"
    per_rank = "" if is_alone else " per rank"
    gigabytes = ", ".join(f"{part} {size / 1e9:.3g}" for part, size in about["memory_bytes"].items())
    lines = [
        f"plan of {config.name}; nothing is trained",
        f"model       {about['parameters']:,} parameters, padded vocabulary {about['padded_vocab_size']:,}{note}",
        f"run         {about['steps']:,} steps, {about['tokens']:,} tokens",
        f"batch       {batch}, {config.micro_batch_size} sequences of {config.model.seq_len} at a time",
        f"schedule    {schedule.name}: {peak:.3g} after {warm:,.0f} tokens, {last:.3g} at the end",
        f"compute     {about['flops_per_token'] / 1e9:.3g} GFLOP per token, {about['flops']:.3g} FLOP in all",
        f"memory      {gigabytes} GB{per_rank} (eager)",
        f"time        at {config.plan_mfu:.0%} of the {config.precision.name} peak of {devices}:",
    ]
    width = max(map(len, about["hours"]))
    for device, hours in about["hours"].items():
        lines.append(f"  {device:<{width}}  {_in_words(hours):>14}")
    return "\n".join(lines)


def _in_words(hours: float) -> str:
    """Return a time in the unit that reads best."""
    for unit, length in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:,.1f} {unit}"
    return f"{hours * 3600:,.1f} seconds"


def _plot(config: Config, path: Path) -> None:
    """Plot batch size and learning rate over the tokens of the run."""
    import matplotlib.figure
    from matplotlib.ticker import EngFormatter

    # Points at equal distances, and one where each stage of the batch begins.
    stages = config.stages
    total = config.total_tokens
    points = {total * i // POINTS for i in range(POINTS)}
    points.update(begin for begin, _ in stages)
    tokens = sorted(points)
    sizes = []
    rates = []
    for position in tokens:
        size = step_tokens(stages, position)
        sizes.append(size)
        rates.append(config.optimizer.lr * config.schedule.multiplier(position + size, total))

    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.set_title(f"plan of {config.name}")
    upper.plot(tokens, sizes, drawstyle="steps-post")
    upper.set_ylabel("tokens per step")
    lower.plot(tokens, rates)
    lower.set_ylabel("learning rate")
    lower.set_xlabel("tokens")
    for panel in (upper, lower):
        panel.set_ylim(0, None)
        panel.grid(alpha=0.3)

    # Ticks such as 500k and 0.0006.
    upper.yaxis.set_major_formatter(EngFormatter(sep=""))
    lower.yaxis.set_major_formatter("{x:g}")
    lower.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.savefig(path, dpi=120, metadata={"Software": None})
