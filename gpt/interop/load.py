"""Weights in a model, and their hash."""

import hashlib

import torch

from gpt.interop.pretrained import Pretrained
from gpt.model import GPT


@torch.no_grad()
def load_pretrained(model: GPT, pretrained: Pretrained) -> None:
    """Give a model weights of its architecture.

    Positions beyond its context are left out, and rows of padding are zero.
    """
    for name, p in model.named_parameters():
        tensor = pretrained.tensors[name]
        rows = min(len(p), len(tensor))
        p[rows:] = 0
        p[:rows] = tensor[:rows]


def weights_hash(pretrained: Pretrained) -> str:
    """Return the sha256 of weights by name, shape and value in float32: the same, whichever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(pretrained.tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().contiguous().numpy().data)
    return digest.hexdigest()
