"""The plan of a run: its size, compute, memory, hours and curves, without training."""

import functools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpt.compare.tables import FittedTable, Grid
from gpt.config.budget import step_tokens
from gpt.config.schema import Config, ModelConfig
from gpt.console import plain_console
from gpt.device import device_name, pick_device
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.optimizer.groups import group_names
from gpt.parallelize import checkpoint_activations
from gpt.precision import AUTOCAST, autocast
from gpt.schedule import warmup
from gpt.tracker.peaks import peak_flops

ASSUMED_VOCABULARY = 128  # of a chars tokenizer without its text: what most alphabets are padded to
POINTS = 2000  # of the plotted curves
UNITS = {"years": 8766.0, "days": 24.0, "hours": 1.0, "minutes": 1 / 60}  # of time, in hours
# The GPUs that a plan shows, by torch's name for them.
GPUS = {
    "B200": "NVIDIA B200",
    "H200": "NVIDIA H200",
    "H100": "NVIDIA H100 80GB HBM3",
    "A100": "NVIDIA A100-SXM4-80GB",
    "L40S": "NVIDIA L40S",
    "RTX 4090": "NVIDIA GeForce RTX 4090",
}
COMMON_GPUS = ("H100", "A100")  # of these, those that the plan of a sweep shows
MATMUL_SIZE = 1024
MATMUL_REPEATS = 5
CPU = torch.device("cpu")


def plan(config: Config, vocab_size: int | None, directory: Path | None) -> None:
    """Print what a run would be; ``vocab_size`` is None while it is not known.

    A ``directory`` gets the same as a picture, and as JSON for programs.
    """
    model = _build_model(config, vocab_size)
    about = _figures(config, model)
    about["stages"] = config.stages
    about["memory_bytes"] = _memory(config, model)
    text = _describe(config, about, is_assumed=not vocab_size)
    print(text, flush=True)

    if directory is None:
        return
    picture = directory / "plan.png"
    _plot(config, picture)
    figures = directory / "plan.json"
    content = json.dumps(about, indent=1)
    figures.write_text(content + "\n")
    print(f"plot        {picture}")
    print(f"figures     {figures}")


def plan_jobs(jobs: list[tuple[str, Config, int | None]]) -> None:
    """Print a table of the jobs of a sweep (name, config, size of the vocabulary): each of them, and their sum."""
    figures = []
    for _, config, vocab_size in jobs:
        model = _build_model(config, vocab_size)
        figures.append(_figures(config, model))

    # Every job has the devices of the first one; of the known GPUs the table shows the common ones.
    devices = []
    for device in figures[0]["hours"]:
        if device.startswith("this ") or device in COMMON_GPUS:
            devices.append(device)

    # A row for each job, and one for their sum.
    rows = []
    hours = dict.fromkeys(devices, 0)
    total = {
        "steps": 0,
        "tokens": 0,
        "flops": 0,
        "hours": hours,
    }
    for (name, _, _), about in zip(jobs, figures, strict=True):
        parameters = f"{about['parameters']:,}"
        row = _job_row(name, parameters, about, devices)
        rows.append(row)
        for key in ("steps", "tokens", "flops"):
            total[key] += about[key]
        for device in devices:
            hours[device] += about["hours"][device]
    last = _job_row(f"{len(jobs)} jobs", "", total, devices)
    rows.append(last)

    mfu = jobs[0][1].plan_mfu
    title = f"plan of {len(jobs)} jobs; nothing is trained. Time at {mfu:.0%} of each device's peak"
    header = ["job", "parameters", "steps", "tokens", "FLOP", *devices]
    grid = Grid(title, header, rows, words={"job"})
    plain_console().print(FittedTable(grid, "a pipe"))


def _job_row(
    name: str,
    parameters: str,
    about: dict[str, Any],
    devices: list[str],
) -> list[str]:
    """Return the row of a job, or of the sum of all."""
    row = [
        name,
        parameters,
        f"{about['steps']:,}",
        f"{about['tokens']:,}",
        f"{about['flops']:.3g}",
    ]
    for device in devices:
        hours = about["hours"][device]
        row.append(_in_words(hours))
    return row


def _build_model(config: Config, vocab_size: int | None) -> GPT:
    """Build a model without memory."""
    with torch.device("meta"):
        return GPT(config.model, vocab_size or ASSUMED_VOCABULARY)


def _figures(config: Config, model: GPT) -> dict[str, Any]:
    """Return size, length, compute, and hours by device."""
    per_token = flops_per_token(model)
    flops = per_token * config.total_tokens
    # No device reaches its peak.
    hours = {}
    for device, peak in _peak_flops_by_device(config).items():
        reached = peak * config.plan_mfu
        hours[device] = flops / reached / 3600
    return {
        "parameters": parameter_count(model),
        "padded_vocab_size": model.padded_vocab_size,
        "flops_per_token": per_token,
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
    if device.type != "cpu":
        here *= ranks
    peaks = {f"this {name}": here}

    # Known GPUs, without a second row for the one of this machine.
    for gpu, full_name in GPUS.items():
        if full_name != name:
            peaks[gpu] = ranks * peak_flops(precision, full_name)
    return peaks


@functools.cache
def _measure_flops(precision: str, device: torch.device) -> float:
    """Measure the FLOP/s of a square matrix product, the best of a few, for a device without a known data sheet."""
    dtype = AUTOCAST.get(precision, torch.float32)
    shape = (MATMUL_SIZE, MATMUL_SIZE)
    a = torch.ones(shape, device=device, dtype=dtype)
    seconds = []
    for _ in range(MATMUL_REPEATS):
        begun = time.perf_counter()
        product = a @ a
        product.sum().item()  # waits until a GPU has the result
        ended = time.perf_counter()
        seconds.append(ended - begun)
    flops = 2 * MATMUL_SIZE**3
    return flops / min(seconds)


def _memory(config: Config, model: GPT) -> dict[str, int]:
    """Return the bytes of a rank by part, in eager mode; torch.compile needs less."""
    activations = _saved_bytes(config, config.model, model.vocab_size)
    n_layer = config.model.n_layer
    if config.model.activation_checkpointing == "blocks" and n_layer:
        # One block at a time runs again, and then saves all that it computes.
        without = replace(config.model, activation_checkpointing="none")
        all_blocks = _saved_bytes(config, without, model.vocab_size)
        activations += (all_blocks - activations) // n_layer

    n = 0
    kept = 0
    groups = group_names(model)
    for parameter in model.parameters():
        n += parameter.numel()
        kept += config.optimizer.kept_numbers(groups[parameter], tuple(parameter.shape))

    # Parameters, gradients and averages are float32 in every precision.
    parts = {
        "parameters": 4 * n,
        "gradients": 4 * n,
        "optimizer": 4 * kept,
        "activations": activations,
    }
    if config.trainer.n_averages:
        parts["averages"] = 4 * n * config.trainer.n_averages
    parts["total"] = sum(parts.values())
    return parts


def _saved_bytes(config: Config, model_config: ModelConfig, vocab_size: int) -> int:
    """Return the bytes that one micro-batch saves for backward, extrapolated from two blocks where all are equal."""
    n_layer = model_config.n_layer
    are_equal = len(set(model_config.windows)) == 1 and not model_config.value_embeddings
    if n_layer <= 2 or model_config.value_residual or not are_equal:
        return _measure_saved_bytes(config, model_config, vocab_size)
    one = replace(model_config, n_layer=1)
    two = replace(model_config, n_layer=2)
    bytes_of_one = _measure_saved_bytes(config, one, vocab_size)
    bytes_of_two = _measure_saved_bytes(config, two, vocab_size)
    per_block = bytes_of_two - bytes_of_one
    return bytes_of_two + (n_layer - 2) * per_block


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

    def restore(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(save, restore):
        # Parameters and buffers are there anyway.
        model = GPT(model_config, vocab_size)
        if model_config.activation_checkpointing == "blocks":
            checkpoint_activations(model)
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            seen.add(storage._cdata)

        # Autograd calls save() with every tensor that backward needs.
        shape = (config.micro_batch_size, config.model.seq_len)
        ids = torch.zeros(shape, dtype=torch.int64)
        with autocast(config.precision.name, CPU):
            hidden = model(ids)
        blocks = sum(storage.nbytes() for storage in saved)

    # The loss keeps the gradients of its input and of the head. Its many small parts would take seconds here.
    return blocks + hidden.nbytes + model.lm_head.weight.nbytes


def _describe(config: Config, about: dict[str, Any], is_assumed: bool) -> str:
    """Return the plan as text; ``is_assumed`` of the size of the vocabulary."""
    # Size and length.
    note = " (assumed: the text is not there yet)" if is_assumed else ""
    vocabulary = f"padded vocabulary {about['padded_vocab_size']:,}{note}"
    gigaflops = about["flops_per_token"] / 1e9
    lines = [
        f"plan of {config.name}; nothing is trained",
        f"model       {about['parameters']:,} parameters, {vocabulary}",
        f"run         {about['steps']:,} steps, {about['tokens']:,} tokens",
        f"batch       {_describe_batch(config)}",
        f"schedule    {_describe_schedule(config)}",
        f"compute     {gigaflops:.3g} GFLOP per token, {about['flops']:.3g} FLOP in all",
    ]

    # Memory of a rank, by part.
    parts = []
    for part, size in about["memory_bytes"].items():
        gigabytes = size / 1e9
        parts.append(f"{part} {gigabytes:.3g}")
    memory = ", ".join(parts)
    is_alone = config.world_size == 1
    per_rank = "" if is_alone else " per rank"
    lines.append(f"memory      {memory} GB{per_rank} (eager)")

    # Time, by device.
    devices = "one device" if is_alone else f"{config.world_size} devices, a rank each"
    precision = config.precision.name
    mfu = config.plan_mfu
    lines.append(f"time        at {mfu:.0%} of the {precision} peak of {devices}:")
    width = max(map(len, about["hours"]))
    for device, hours in about["hours"].items():
        name = device.ljust(width)
        duration = _in_words(hours)
        lines.append(f"  {name}  {duration:>14}")
    return "\n".join(lines)


def _describe_batch(config: Config) -> str:
    """Return the number of tokens per step, and of sequences per pass, in words."""
    sizes = [size for _, size in config.stages]
    smallest = min(sizes)
    largest = max(sizes)
    tokens = f"{smallest:,}"
    if len(sizes) > 1:
        tokens += f" to {largest:,}"
    sequences = config.micro_batch_size
    length = config.model.seq_len
    return f"{tokens} tokens per step, {sequences} sequences of {length} at a time"


def _describe_schedule(config: Config) -> str:
    """Return the peak of the learning rate, and its end, in words."""
    schedule = config.schedule
    total = config.total_tokens
    warm = warmup(schedule.warmup_tokens, schedule.decay_until, total)
    peak = config.optimizer.lr
    last = peak * schedule.multiplier(total, total)
    line = f"{schedule.name}: {peak:.3g} after {warm:,.0f} tokens, {last:.3g} at the end"
    others = [f"{group} {rate:.3g}" for group, rate in config.optimizer.other_rates.items()]
    return line + (f"; peak of {', '.join(others)}" if others else "")


def _in_words(hours: float) -> str:
    """Return a time in the unit that reads best."""
    # Two of a unit at least.
    for unit, length in UNITS.items():
        if hours >= 2 * length:
            number = hours / length
            return f"{number:,.1f} {unit}"
    seconds = hours * 3600
    return f"{seconds:,.1f} seconds" if seconds >= 1 else "< 1 second"


def _plot(config: Config, path: Path) -> None:
    """Plot batch size and learning rate over the tokens of the run."""
    import matplotlib.figure
    from matplotlib.ticker import EngFormatter

    # Points at equal distances, and one where each stage of the batch begins.
    stages = config.stages
    total = config.total_tokens
    points = {begin for begin, _ in stages}
    for i in range(POINTS):
        point = total * i // POINTS
        points.add(point)
    tokens = sorted(points)

    # Batch size and rate of the step that begins at each of them.
    sizes = []
    rates = []
    for position in tokens:
        size = step_tokens(stages, position)
        multiplier = config.schedule.multiplier(position + size, total)
        sizes.append(size)
        rates.append(config.optimizer.lr * multiplier)

    # The batch above the rate.
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
