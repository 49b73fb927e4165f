"""A look into a model: its parameters, its positions, and the neighbors of tokens."""

import io
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Self

import tiktoken
import torch.nn.functional as F

from gpt.device import Compute
from gpt.errors import InputError
from gpt.evaluation.task import Measurement, Subject, Task
from gpt.model import GPT, parameter_count
from gpt.tokens.tokenizer import encode

WORDS = [" the", " king", " Paris", " seven", " walked", " blue", "e", "A", "7", "("]
NEIGHBORS = 6


@dataclass
class Inspect(Task):
    """The lecture's first look at OpenAI's checkpoint, in text and a picture."""

    tokenizer: tiktoken.Encoding
    tokens: list[int]
    every: int = 0  # training never runs it

    @classmethod
    def build(cls, subject: Subject) -> Self:
        """Return the task for the tokens of ``inspect.tokens``, or for those of some words that are one token each.

        Raises InputError where they cannot be encoded.
        """
        tokens = []
        for text in subject.config.inspect.tokens:
            tokens += encode(subject.tokenizer, text).tolist()
        if not tokens:
            tokens = _common_tokens(subject.tokenizer)
        return cls(subject.tokenizer, tokens)

    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        # Text for the terminal, and a picture where positions are learned.
        lines = _describe_parameters(model)
        lines += ["", "nearest tokens, by the cosine of their rows in wte", *self._describe_neighbors(model)]
        pictures = {"wpe": _heat_map(model)} if model.config.position == "learned" else {}
        return Measurement(text="\n".join(lines), pictures=pictures)

    def _describe_neighbors(self, model: GPT) -> list[str]:
        """Return a line for each token: the tokens whose embeddings point most nearly in its direction."""
        directions = F.normalize(model.wte.weight[: model.vocab_size].detach().float(), dim=1)  # (V, C)
        lines = []
        for token in self.tokens:
            cosines = directions @ directions[token]  # (V,)
            cosines[token] = -2.0  # below all others: not itself
            nearest = cosines.topk(min(NEIGHBORS, model.vocab_size - 1))
            line = f"{self._name(token):>12}"
            for cosine, neighbor in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True):
                line += f"  {self._name(neighbor)} {cosine:.2f}"
            lines.append(line)
        return lines

    def _name(self, token: int) -> str:
        return repr(self.tokenizer.decode([token]))


def _common_tokens(tokenizer: tiktoken.Encoding) -> list[int]:
    """Return the ids of common words that are one token of this vocabulary."""
    tokens = []
    for word in WORDS:
        try:
            ids = encode(tokenizer, word).tolist()
        except InputError:  # a character that its alphabet does not have
            continue
        if len(ids) == 1:
            tokens += ids
    return tokens


def _describe_parameters(model: GPT) -> list[str]:
    """Return the names of parameters, those of all blocks in one line, with shapes and shares of the whole."""
    # Blocks are alike: one line stands for the same parameter of all of them.
    total = parameter_count(model)
    shapes = {}
    counts: dict[str, int] = defaultdict(int)
    blocks: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        general = re.sub(r"^h\.\d+\.", "h.*.", name)
        shapes[general] = tuple(parameter.shape)
        counts[general] += parameter.numel()
        blocks[general] += 1

    lines = [f"{total:,} parameters; h.* is each of {len(model.h)} blocks"]
    width = max(24, *map(len, shapes))
    for name, shape in shapes.items():
        times = f" × {blocks[name]}" if name.startswith("h.*.") else ""
        lines.append(f"{name:<{width}} {f'{shape}{times}':<22} {counts[name]:>14,} {counts[name] / total:>7.2%}")
    if model.config.tie_head:
        lines.append(f"{'lm_head.weight':<{width}} is wte.weight")
    return lines


def _heat_map(model: GPT) -> bytes:
    """Draw the position embeddings, each position a row, as a PNG file."""
    import matplotlib.figure  # half a second, so only when a picture is drawn

    # No interpolation: each number is a dot of its own.
    figure = matplotlib.figure.Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    positions = model.wpe.weight.detach().float().cpu().numpy()  # (T, C)
    image = axes.imshow(positions, aspect="auto", cmap="gray", interpolation="nearest")
    axes.set(title="wpe.weight: position embeddings", xlabel="channel", ylabel="position")
    figure.colorbar(image)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
