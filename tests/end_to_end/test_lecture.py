"""docs/lecture.md: every chapter of both lectures has a command, and all of them run."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from conftest import ROOT, call

PAGE = ROOT / "docs" / "lecture.md"
# The chapters of both videos in their order; those in which nothing is computed are put together with their neighbors.
CHAPTERS = """
Reading and exploring the data
Tokenization, train/validation split
Data loader: batches of chunks
Bigram model: loss and generation
Training the bigram model
Port to a script
Self-attention, version 1: averages by loops
Version 2: a matrix product
Version 3: softmax
Version 4: self-attention
Notes on attention: communication, sets, positions
Encoder and decoder blocks
Scaled attention
A single head
Multi-headed self-attention
Feed-forward
Residual connections
Layer norm
Scaling up, dropout
Encoder, decoder, or both
nanoGPT, batched multi-headed attention
ChatGPT: pretraining and finetuning
Exercise 1: all heads in parallel
Exercise 2: addition
Exercise 3: pretrain, then finetune on Tiny Shakespeare
Exercise 4: a feature of another paper
Exploring the OpenAI checkpoint
The GPT-2 module
Loading Hugging Face's parameters
The forward pass to logits
Sampling: prefix tokens and the loop
Device
Data batches and cross entropy
One batch overfitted
Data loader lite
Sharing wte and lm_head
Initialization
Section 2: make it fast
Tensor cores, TF32
float16 and bfloat16
torch.compile
Flash attention
Nice numbers: 50,257 → 50,304
AdamW and gradient clipping
Learning rate: warm-up and cosine
Batch-size schedule, weight decay, fused AdamW
Gradient accumulation
Distributed data parallel
Datasets: FineWeb-Edu
Validation split, validation loss, sampling
HellaSwag
Results: the GPT-2 and GPT-3 reproduction
llm.c
Summary and follow-ups
""".strip().splitlines()
NOTHING_TO_RUN = {"Encoder, decoder, or both"}  # a remark, which the page says


class Step(NamedTuple):
    """A command of the page, or a block of Python, and its chapter."""

    chapter: str
    text: str
    is_python: bool


def steps() -> Iterator[Step]:
    """Yield what the page has one run, from top to bottom."""
    chapter = ""
    fence_or_heading = r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$"
    for heading, kind, body in re.findall(fence_or_heading, PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if heading:
            chapter = heading
        elif kind == "python":
            yield Step(chapter, body, is_python=True)
        elif not kind:
            for line in body.splitlines():
                yield Step(chapter, line, is_python=False)


def additions(arguments: list[str]) -> list[str]:
    """What the table at the top of the page adds to a command."""
    if "plan=true" in arguments:
        return []
    added = []
    for words, overrides in re.findall(r"^\| (`.+`) \| `(.+)` \|$", PAGE.read_text(), re.MULTILINE):
        for word in re.findall(r"`(.+?)`", words):
            beginning = word.removesuffix("NAME")
            if word in arguments or (beginning != word and any(a.startswith(beginning) for a in arguments)):
                added += overrides.split()
    return ["plan=true"] if "plan=true" in added else added


def test_every_chapter_of_the_lectures_has_a_command():
    assert re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE) == CHAPTERS
    assert set(CHAPTERS) - {step.chapter for step in steps()} == NOTHING_TO_RUN


@pytest.fixture
def home(tmp_path, text_file):
    """A directory with the files that the page names."""
    shutil.copy(text_file, tmp_path / "input.txt")
    lines = [json.dumps({"text": f"Document {number} of the web."}) for number in range(40)]
    (tmp_path / "fineweb.jsonl").write_text("\n".join(lines))
    endings = ["It purrs.", "It flies away.", "No.", "It barks."]
    (tmp_path / "hellaswag.jsonl").write_text(json.dumps({"ctx": "A cat sits.", "endings": endings, "label": 0}))
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_lectures_runs(home, monkeypatch):
    cache = home / "cache"
    names = {}
    for step in steps():
        if step.is_python:
            code = compile(step.text.replace("data/cache", str(cache)), f"docs/lecture.md, {step.chapter}", "exec")
            with monkeypatch.context() as there:
                there.chdir(home)
                exec(code, names)
            continue
        program, *arguments = shlex.split(step.text)
        assert program == "python", step.text
        if arguments[0] == "-m":
            del arguments[0]
        script, *overrides = arguments
        if script.startswith(("train.py", "data.")):
            overrides.append(f"data.cache_dir={cache}")
        done = call(*overrides, *additions(arguments), cwd=home, script=script)
        assert done.returncode == 0, (step.chapter, step.text, done.stdout[-500:], done.stderr)
