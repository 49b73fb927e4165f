"""Keys and values of the tokens that decoding has read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.config.model import ModelConfig


class LayerCache:
    """Keys and values of one attention layer for the tokens read so far, at most ``seq_len`` of them."""

    def __init__(self, batch: int, n_head: int, seq_len: int, head_dim: int, like: Tensor):
        self.keys = like.new_empty(batch, n_head, seq_len, head_dim)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, D) and return all of them, (B, H, length, D) each."""
        end = self.length + k.size(2)
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class WindowCache:
    """The same for a layer with a window: what lies before it is forgotten."""

    def __init__(self, batch: int, n_head: int, window: int, head_dim: int, like: Tensor):
        self.window = window
        self.keys = like.new_empty(batch, n_head, 0, head_dim)
        self.values = torch.empty_like(self.keys)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, D) and return them after those that the first of them attends to."""
        keys = torch.cat([self.keys, k.to(self.keys.dtype)], dim=2)
        values = torch.cat([self.values, v.to(self.values.dtype)], dim=2)
        # The next token is in its own window.
        begin = max(0, keys.size(2) - (self.window - 1))
        self.keys = keys[:, :, begin:]
        self.values = values[:, :, begin:]
        return keys, values


@dataclass(slots=True)
class KVCache:
    """The caches of all layers, and the number of tokens that were read."""

    layers: list[LayerCache | WindowCache]
    length: int = 0


def build_cache(config: ModelConfig, batch: int, like: Tensor) -> KVCache:
    """An empty cache for ``batch`` sequences, in the type and on the device of ``like``."""
    layers = []
    for window in config.windows:
        shape = (batch, config.kv_heads, window or config.seq_len, config.head_dim)
        layers.append(WindowCache(*shape, like) if window else LayerCache(*shape, like))
    return KVCache(layers)
