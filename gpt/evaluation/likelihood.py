"""Log-likelihoods of continuations: how probable a model finds some tokens after others."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt.device import Compute
from gpt.layers.masks import Layout, causal_mask
from gpt.model import GPT, evaluating
from gpt.signals import Stopped

LOGITS = 2**25  # of them at a time: 128 MiB in float32
FILLED = 0.8  # least part of a row that is no padding
CONTEXT = 0  # the branch that all others follow


class Question(NamedTuple):
    """A context, and the continuations that are compared after it; each has at least one token."""

    context: list[int]
    continuations: list[list[int]]


class Likelihood(NamedTuple):
    """The log-probability (nats) of a continuation, and whether each of its tokens is the likeliest one."""

    log_probability: float
    is_greedy: bool


@dataclass(slots=True)
class _Row:
    """A row of a batch: a context once, and its continuations as branches that follow it."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    # Of each token that is predicted: where in the row that is done, its id, and its continuation.
    predictors: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    continuations: list[int] = field(default_factory=list)

    def read(self, ids: list[int], position: int, branch: int) -> None:
        """Add tokens that the model reads, from a position on."""
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.branches += [branch] * len(ids)


def log_likelihoods(
    questions: list[Question], model: GPT, compute: Compute, batch_tokens: int
) -> list[list[Likelihood]]:
    """Return the likelihoods of the continuations of each question, on all ranks.

    ``batch_tokens`` limits the tokens of a forward pass. A context that is too long for the model loses its beginning.
    Raises Stopped, on all ranks, once one of them is to stop.
    """
    rows = _rows(questions, model.config.seq_len)
    n_continuations = sum(len(question.continuations) for question in questions)
    sums = torch.zeros(n_continuations + 1, 2, dtype=torch.float64)  # log-probability, and tokens not the likeliest
    world = compute.world
    # Lengths change from batch to batch, and a compiled model would be compiled again for each. Autocast keeps the
    # weights that it has cast until it ends.
    with torch.no_grad(), evaluating(model), torch.compiler.set_stance("force_eager"), compute.autocast:
        batches = _batches(rows, batch_tokens)[world.rank :: world.size]
        for batch in compute.track(batches, len(batches)):
            if compute.stop():
                sums[-1] = 1
                break
            _measure(batch, model, compute.device, sums)

    # One collective for the sums, and for whether to stop, which no rank leaves out.
    *found, (stopped, _) = world.sum(sums).tolist()
    if stopped:
        raise Stopped
    likelihoods = iter(Likelihood(log_probability, misses == 0) for log_probability, misses in found)
    return [[next(likelihoods) for _ in question.continuations] for question in questions]


def _rows(questions: list[Question], seq_len: int) -> list[_Row]:
    """Return the rows of all questions: one for each, or several where it does not fit into the model's context."""
    rows = []
    n_continuations = 0
    for context, continuations in questions:
        # The last token of a continuation is predicted, but not read.
        numbered = list(enumerate(continuations, start=n_continuations))
        n_continuations += len(continuations)
        if len(context) + max(map(len, continuations)) - 1 <= seq_len:
            rows.append(_row(context, numbered))
            continue
        for number, ids in numbered:
            # One longer than the context is predicted in parts, each after the half of a context before it.
            size = len(ids) if len(ids) <= seq_len else max(1, seq_len // 2)
            for begin in range(0, len(ids), size):
                part = ids[begin : begin + size]
                before = context + ids[:begin]
                rows.append(_row(before[-(seq_len + 1 - len(part)) :], [(number, part)]))
    return rows


def _row(context: list[int], numbered: list[tuple[int, list[int]]]) -> _Row:
    """Return the row of a context and its continuations, each with its number."""
    row = _Row()
    row.read(context, 0, CONTEXT)
    for branch, (number, ids) in enumerate(numbered, start=CONTEXT + 1):
        # The context predicts the first token, and each token the next.
        begin = len(row.ids)
        row.predictors += [len(context) - 1, *range(begin, begin + len(ids) - 1)]
        row.targets += ids
        row.continuations += [number] * len(ids)
        row.read(ids[:-1], len(context), branch)
    return row


def _batches(rows: list[_Row], batch_tokens: int) -> list[list[_Row]]:
    """Return rows of similar lengths together, the longest first, so that too little memory shows at once."""
    batches: list[list[_Row]] = []
    width = 0
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        is_full = not batches or (len(batches[-1]) + 1) * width > batch_tokens
        if is_full or len(row.ids) < FILLED * width:
            batches.append([])
            width = len(row.ids)
        batches[-1].append(row)
    return batches


def _measure(rows: list[_Row], model: GPT, device: torch.device, sums: Tensor) -> None:
    """Add the log-probabilities of a batch of rows, and the tokens that are not the likeliest, to ``sums``."""
    ids = _padded([row.ids for row in rows], device)  # (B, T)
    layout = _layout(
        _padded([row.positions for row in rows], device),
        _padded([row.branches for row in rows], device),
    )
    hidden = model(ids, layout=layout).flatten(0, 1)  # (B * T, C)

    # Only what predicts a token passes through the head.
    width = ids.size(1)
    predictors = []
    targets = []
    continuations = []
    for number, row in enumerate(rows):
        predictors += [number * width + index for index in row.predictors]
        targets += row.targets
        continuations += row.continuations
    size = max(1, LOGITS // model.padded_vocab_size)
    for begin in range(0, len(targets), size):
        part = slice(begin, begin + size)
        # Log-probabilities in float32, whatever the precision of the model, and their sums in float64.
        target = torch.tensor(targets[part], device=device)
        logits = model.logits(hidden[predictors[part]]).float()  # (N, V)
        log_p = logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(1)
        misses = logits.argmax(1) != target
        columns = torch.stack([log_p.double(), misses.double()], dim=1).cpu()
        sums.index_add_(0, torch.tensor(continuations[part]), columns)


def _padded(lists: list[list[int]], device: torch.device) -> Tensor:
    """Return lists as the rows of one tensor, filled up with zeros at their ends."""
    rows = np.zeros((len(lists), max(map(len, lists))), np.int64)
    for row, values in zip(rows, lists, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(rows).to(device)


def _layout(positions: Tensor, branches: Tensor) -> Layout:
    """Let each token attend to what is before it in its own branch, and to the context; both (B, T)."""
    t = positions.size(1)
    is_same = branches[:, None, :, None] == branches[:, None, None, :]  # (B, 1, T, T)
    is_context = (branches == CONTEXT)[:, None, None, :]  # (B, 1, 1, T)
    return Layout(positions, (is_same | is_context) & causal_mask(t, t, positions.device))
