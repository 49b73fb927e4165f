"""The model card of an exported folder, written from the config and the results of the run."""

from pathlib import Path
from typing import Any

from gpt.checkpoint.files import AVERAGES, read_state
from gpt.config.load import read
from gpt.config.schema import Config
from gpt.evaluation.metrics import METRICS
from gpt.interop.pretrained import Header
from gpt.rundir import read_about, read_result

CARD = "README.md"
FRONT = """---
library_name: transformers
pipeline_tag: text-generation
tags: [{kind}, gptlab]
---
"""
USE = """```python
from transformers import pipeline

generate = pipeline("text-generation", model="{name}")
print(generate({prompt!r}, max_new_tokens=50)[0]["generated_text"])
```
"""

LABELS = {"loss": "validation loss", "bpb": "bits per byte"}  # longer than in tables


def model_card(header: Header, name: str) -> str:
    """Return the card of a model: how to use it, what it is and, for a run of ours, how it was trained."""
    model = header.model
    words = {
        "layers, heads, width": f"{model.n_layer}, {model.n_head}, {model.n_embd}",
        "context": f"{model.seq_len:,} tokens",
        "vocabulary": _vocabulary(header),
    }
    sections = [f"# {name}", _use(header, name), "## Model", _table(words)]
    if header.checkpoint is not None:
        sections += _training(header)
    else:
        sections += [
            "## Training",
            f"Weights taken from {header.source} ({header.format}), which says no more of them.",
        ]
    kind = "llama" if model.position == "rotary" else "gpt2"
    return FRONT.format(kind=kind) + "\n" + "\n\n".join(sections) + "\n"


def _use(header: Header, name: str) -> str:
    """Return the lines of Python that use the model."""
    if not header.knows_tokens:
        return "The source of these weights did not say which tokenizer belongs to them, so no tokenizer is here."
    text = USE.format(name=name, prompt="The ")
    if header.tokenizer == "chars":
        text += "\nThe tokenizer knows the characters of the training text alone, and leaves out all others."
    return text.strip()


def _vocabulary(header: Header) -> str:
    """Return the vocabulary in words."""
    names = {
        None: "tokens",
        "gpt2": "tokens of GPT-2",
        "bytes": "bytes, and the end of a text",
        "chars": "characters",
    }
    return f"{header.vocab_size:,} {names[header.tokenizer]}"


def _training(header: Header) -> list[str]:
    """Return the sections about the training of a checkpoint."""
    run_dir = header.checkpoint.parents[1]
    config = read(run_dir / "config.yaml")
    progress = read_state(header.checkpoint)["progress"]
    words = {
        "started from": config.init_from and Path(config.init_from).name,
        "data": f"{config.data.name}, {_files(config)}" if config.data.files else config.data.name,
        "tokens": f"{progress['tokens']:,} in {progress['step']:,} steps",
        "tokens per step": f"{config.batch.global_tokens:,}",
        "optimizer": f"{config.optimizer.name}, weight decay {config.optimizer.weight_decay:g}",
        "learning rate": f"{config.optimizer.lr:g}, {config.schedule.name}",
        "precision": config.precision.name,
        "seed": str(config.seed),
        "code": _code(run_dir),
        "weights": header.average and f"an average over the steps ({AVERAGES[header.average]})",
        **_results(run_dir, progress, header.average),
    }
    known = {name: value for name, value in words.items() if value is not None}
    return ["## Training", _table(known)]


def _files(config: Config) -> str:
    """Return the names of the files that a run read; their places are nobody else's business."""
    return ", ".join(Path(name).name for name in config.data.files)


def _code(run_dir: Path) -> str | None:
    """Return the commit of the code at the run's last start, if it is known."""
    about = read_about(run_dir)
    code: dict[str, Any] | None = about["starts"][-1].get("git") if about else None
    if not code:
        return None
    return f"commit {code['commit'][:12]}" + (", with changes" if code.get("changed") else "")


def _results(run_dir: Path, progress: dict[str, Any], average: str | None) -> dict[str, str]:
    """Return what was measured of a checkpoint: all metrics at the end of its run, the loss at the best step.

    Those of an ``average`` of the weights are in result.json under its name.
    """
    result = read_result(run_dir) or {}
    names = [name for name in METRICS if not name.startswith(tuple(f"{other}_" for other in AVERAGES))]
    measured = {}
    if progress["step"] == result.get("step"):
        for name in names:
            key = f"{average}_{name}" if average else name
            measured[name] = result.get("val_loss" if key == "loss" else key)
    elif progress["step"] == progress.get("best_step") and not average:
        measured = {"loss": progress.get("best_loss")}
    words = {}
    for name, value in measured.items():
        if value is not None:
            metric = METRICS[name]
            unit = " nats per token" if name == "loss" else ""
            words[LABELS.get(name, metric.label)] = f"{value:{metric.format}}{unit}"
    return words


def _table(words: dict[str, str]) -> str:
    """Return names and values as a table."""
    rows = [f"| {name} | {value} |" for name, value in words.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
