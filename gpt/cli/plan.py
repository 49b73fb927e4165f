"""What a run would be, before it is one: size, memory, curves, hours."""

import functools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpt.compare.tables import Grid, as_table
from gpt.config.load import Config
from gpt.config.schema import ModelConfig
from gpt.console import plain_console
from gpt.device import PEAK_FLOPS, device_name, peak_flops, pick_device
from gpt.loss import loss_sum
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.parallelize import checkpoint_activations
from gpt.precision import AUTOCAST, autocast
from gpt.schedule import step_tokens, warmup

ASSUMED_VOCABULARY = 128  # of a chars tokenizer whose text is not there: what most alphabets are padded to
POINTS = 2000  # of the plotted curves
USUAL = ("H100", "A100")  # of the known GPUs, those that the plan of a sweep names
CPU = torch.device("cpu")


def plan(config: Config, vocab_size: int | None, run_dir: Path) -> None:
    """Say and draw what the run would be; ``vocab_size`` is None where it is not known yet. Trains nothing."""
    with torch.device("meta"):
        model = GPT(config.model, vocab_size or ASSUMED_VOCABULARY)
    about = {**figures(config, model), "stages": config.stages, "memory_bytes": memory(config, model)}
    print(describe(config, about, vocab_size), flush=True)
    draw(config, run_dir / "plan.png")
    (run_dir / "plan.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"plot        {run_dir / 'plan.png'}\nfigures     {run_dir / 'plan.json'}")


def plan_jobs(jobs: list[tuple[str, Config, int | None]]) -> None:
    """List the jobs of a sweep by name: what each would be, and all of them together. Trains nothing."""
    listed = []
    for name, config, vocab_size in jobs:
        with torch.device("meta"):
            listed.append((name, figures(config, GPT(config.model, vocab_size or ASSUMED_VOCABULARY))))
    devices = [name for name in listed[0][1]["hours"] if name.startswith("this ") or name in USUAL]
    rows = []
    for name, about in listed:
        hours = (in_words(about["hours"][device]) for device in devices)
        counts = (f"{about[key]:,}" for key in ("parameters", "steps", "tokens"))
        rows.append([name, *counts, f"{about['flops']:.3g}", *hours])
    steps, tokens, flops = (sum(about[key] for _, about in listed) for key in ("steps", "tokens", "flops"))
    hours = (in_words(sum(about["hours"][device] for _, about in listed)) for device in devices)
    rows.append([f"{len(listed)} jobs", "", f"{steps:,}", f"{tokens:,}", f"{flops:.3g}", *hours])
    title = f"plan of {len(listed)} jobs; nothing is trained. Time at {jobs[0][1].plan_mfu:.0%} of each device's peak"
    header = ["job", "parameters", "steps", "tokens", "FLOP", *devices]
    plain_console().print(as_table(Grid(title, header, rows, words={"job"})))


def figures(config: Config, model: GPT) -> dict[str, Any]:
    """Size, length, compute and hours by device."""
    flops = flops_per_token(model) * config.total_tokens
    return {
        "parameters": parameter_count(model),
        "padded_vocab_size": model.padded_vocab_size,
        "flops_per_token": flops_per_token(model),
        "steps": config.total_steps,
        "tokens": config.total_tokens,
        "flops": flops,
        "micro_batch_size": config.micro_batch_size,
        "mfu": config.plan_mfu,
        "hours": {name: flops / (peak * config.plan_mfu) / 3600 for name, peak in peaks(config).items()},
    }


def peaks(config: Config) -> dict[str, float]:
    """Peak FLOP/s at the run's precision: of this machine, and of GPUs that one could use, one for each rank."""
    precision, device, ranks = config.precision.name, pick_device(config.device), config.world_size
    name = device_name(device)
    known = {gpu: ranks * peak_flops(precision, gpu) for gpu in PEAK_FLOPS if gpu not in name}
    here = peak_flops(precision, name) or measured_flops(precision, device)
    return {f"this {name}": here if device.type == "cpu" else ranks * here} | known  # all ranks share a CPU


@functools.cache
def measured_flops(precision: str, device: torch.device) -> float:
    """FLOP/s of a square matrix product, the best of a few, where no data sheet is known."""
    size = 1024
    a = torch.ones(size, size, device=device, dtype=AUTOCAST.get(precision, torch.float32))
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        (a @ a).sum().item()
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)


def activation_bytes(config: Config, model_config: ModelConfig, vocab_size: int) -> int:
    """What one micro-batch saves for backward, found by a forward pass without data."""
    saved, seen = [], set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            saved.append(storage)  # held, so that its identity is not given to another
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model = GPT(model_config, vocab_size)
        if model_config.activation_checkpointing == "blocks":
            checkpoint_activations(model)
        held = [*model.parameters(), *model.buffers()]
        seen.update(tensor.untyped_storage()._cdata for tensor in held)
        ids = torch.zeros(config.micro_batch_size, config.model.seq_len, dtype=torch.int64)
        with autocast(config.precision.name, CPU):
            loss_sum(model, ids, ids)
        return sum(storage.nbytes() for storage in saved)


def saved_bytes(config: Config, model_config: ModelConfig, vocab_size: int) -> int:
    """What one micro-batch saves for backward; all blocks save the same, so that two tell what a thousand save."""
    n_layer = model_config.n_layer
    few = [activation_bytes(config, replace(model_config, n_layer=n), vocab_size) for n in range(min(n_layer, 2) + 1)]
    return few[-1] + (n_layer - 2) * (few[2] - few[1]) if n_layer > 2 else few[-1]


def memory(config: Config, model: GPT) -> dict[str, int]:
    """Bytes of a rank, by part. Without torch.compile, which needs less."""
    activations = saved_bytes(config, config.model, model.vocab_size)
    if config.model.activation_checkpointing == "blocks":  # and all that one block saves, when it runs again
        whole = saved_bytes(config, replace(config.model, activation_checkpointing="none"), model.vocab_size)
        activations += (whole - activations) // config.model.n_layer if config.model.n_layer else 0
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    n = sum(parameters.values())
    is_muon = config.optimizer.name == "muon"
    matrices = sum(
        p
        for name, p in parameters.items()
        if is_muon and name.startswith("h.") and "weight" in name and ".ln_" not in name
    )
    parts = {
        "parameters": 4 * n,
        "gradients": 4 * n,
        "optimizer": 8 * n - 4 * matrices,  # two averages per parameter, Muon's one
        "activations": activations,
    }
    return parts | {"total": sum(parts.values())}


def describe(config: Config, about: dict[str, Any], vocab_size: int | None) -> str:
    """The plan in words."""
    schedule, sizes = config.schedule, [size for _, size in config.stages]
    peak, micro = config.optimizer.lr, config.micro_batch_size
    warm = warmup(schedule.warmup_tokens, schedule.decay_until, about["tokens"])
    note = "" if vocab_size else " (assumed: the text is not there yet)"
    lr_end = peak * schedule.multiplier(config.total_tokens, config.total_tokens)
    batch = f"{sizes[0]:,} tokens per step" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,} tokens per step"
    gigabytes = {part: size / 1e9 for part, size in about["memory_bytes"].items()}
    width = max(map(len, about["hours"]))
    devices = "one device" if config.world_size == 1 else f"{config.world_size} devices, a rank each"
    per_rank = "" if config.world_size == 1 else " per rank"
    return "\n".join(
        [
            f"plan of {config.name}; nothing is trained",
            f"model       {about['parameters']:,} parameters, padded vocabulary {about['padded_vocab_size']:,}{note}",
            f"run         {about['steps']:,} steps, {about['tokens']:,} tokens",
            f"batch       {batch}, {micro} sequences of {config.model.seq_len} at a time",
            f"schedule    {schedule.name}: {peak:.3g} after {warm:,.0f} tokens, {lr_end:.3g} at the end",
            f"compute     {about['flops_per_token'] / 1e9:.3g} GFLOP per token, {about['flops']:.3g} FLOP in all",
            "memory      "
            + ", ".join(f"{part} {size:.3g}" for part, size in gigabytes.items())
            + f" GB{per_rank} (eager)",
            f"time        at {config.plan_mfu:.0%} of the {config.precision.name} peak of {devices}:",
            *(f"  {name:<{width}}  {in_words(hours):>14}" for name, hours in about["hours"].items()),
        ]
    )


def in_words(hours: float) -> str:
    """A time in the unit that reads best."""
    for unit, length in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:,.1f} {unit}"
    return f"{hours * 3600:,.1f} seconds"


def draw(config: Config, path: Path) -> None:
    """The batch and the learning rate over the tokens of the run."""
    import matplotlib.figure
    from matplotlib.ticker import EngFormatter

    stages, total = config.stages, config.total_tokens
    tokens = sorted({*(total * i // POINTS for i in range(POINTS)), *(begin for begin, _ in stages)})
    sizes = [step_tokens(stages, t) for t in tokens]
    rates = [
        config.optimizer.lr * config.schedule.multiplier(t + size, total) for t, size in zip(tokens, sizes, strict=True)
    ]
    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    axes[0].set_title(f"plan of {config.name}")
    for panel, values, label in ((axes[0], sizes, "tokens per step"), (axes[1], rates, "learning rate")):
        panel.plot(tokens, values, drawstyle="steps-post" if values is sizes else "default")
        panel.set(ylabel=label, ylim=(0, None))
        panel.yaxis.set_major_formatter("{x:g}" if values is rates else EngFormatter(sep=""))  # 0.0006, 500k
        panel.grid(alpha=0.3)
    axes[1].set_xlabel("tokens")
    axes[1].xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.savefig(path, dpi=120, metadata={"Software": None})
