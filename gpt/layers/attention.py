"""Causal self-attention with all its switches."""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config.model import ModelConfig
from gpt.layers.cache import LayerCache, WindowCache
from gpt.layers.masks import causal_mask
from gpt.layers.norm import build_norm
from gpt.layers.positions import rotate


class Shared(NamedTuple):
    """What blocks get beside their input; None for what this model, or this block, has not."""

    mask: Tensor | None = None  # of what is attended to, broadcasting to (B, H, T, S); None: all that is before
    window_mask: Tensor | None = None  # the same in layers with a window
    rotation: Tensor | None = None  # of queries and keys (gpt.layers.positions.rotate)
    x0: Tensor | None = None  # the embedding, (B, T, C)
    first_values: Tensor | None = None  # the values of the first layer, (B, H, T, D)
    value_embedding: Tensor | None = None  # of the tokens, for the layer at hand, (B, T, H * D)


def naive_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Causal attention written out (Vaswani et al. 2017, eq. 1); q (B, H, T, D), k and v (B, H, S, D).

    The queries are the last T of the S positions. ``mask`` replaces the causal mask; it broadcasts to (B, H, T, S).
    """
    if mask is None:
        mask = causal_mask(q.size(-2), k.size(-2), q.device)
    k, v = _for_all_heads(q, k, v)
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # (B, H, T, S)
    if softcap is not None:  # Gemma 2
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return F.dropout(weights, dropout) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    """The same through torch's fused kernels."""
    t = q.size(-2)
    s = k.size(-2)
    is_causal = mask is None and t == s
    # is_causal aligns the mask to the first key; cached decoding needs it aligned to the last. One query, which is the
    # last position, attends to all.
    if mask is None and 1 < t < s:
        mask = causal_mask(t, s, q.device)
    is_grouped = q.size(1) != k.size(1)
    if is_grouped and mask is not None:
        # With a mask, the one kernel of a GPU that shares keys and values between heads keeps all scores.
        k, v = _for_all_heads(q, k, v)
        is_grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, enable_gqa=is_grouped
    )


def _for_all_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values for each head of queries: one of theirs serves several, one after the other (Ainslie 2023)."""
    group = q.size(1) // k.size(1)
    if group == 1:
        return k, v
    return k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)


ATTENTION = {"naive": naive_attention, "sdpa": sdpa_attention}


class Attention(nn.Module):
    """Causal multi-head self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int = 0):
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.has_window = config.windows[layer] is not None
        self.attend = ATTENTION[config.attention]
        if config.attention_softcap is not None:  # which no fused kernel of torch has
            self.attend = functools.partial(naive_attention, softcap=config.attention_softcap)

        # Queries, keys and values of all heads come from one matrix, as in GPT-2.
        width = config.n_embd
        self.widths = [width, config.kv_width, config.kv_width]
        self.c_attn = nn.Linear(width, sum(self.widths), bias=config.bias)
        self.c_proj = nn.Linear(width, width, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else None
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else None

        # Factors of the layer's own values, and of what is mixed into them.
        is_later = layer > 0
        has_table = config.value_tables[layer] is not None
        self.value_lambdas = nn.Parameter(torch.empty(2)) if config.value_residual and is_later else None
        self.embedding_lambdas = nn.Parameter(torch.empty(2)) if has_table else None

    def forward(
        self, x: Tensor, shared: Shared, cache: LayerCache | WindowCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, C) -> (B, T, C), and the layer's own values (B, H, T, D), which others may mix in."""
        q, k, v = map(self._split_heads, self.c_attn(x).split(self.widths, dim=2))
        if self.q_norm is not None:
            q = self.q_norm(q)
            k = self.k_norm(k)
        if shared.rotation is not None:
            q = rotate(q, shared.rotation)
            k = rotate(k, shared.rotation)
        own_values = v
        v = self._mix(v, shared)
        # With a cache, the queries attend to all that it holds.
        if cache is not None:
            k, v = cache.append(k, v)
        # Dropout of the attention weights takes place inside the kernel, which does not know the mode of the module.
        dropout = self.dropout if self.training else 0.0
        mask = shared.window_mask if self.has_window else shared.mask
        y = self.attend(q, k, v, dropout, mask)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(x.shape)
        return self.resid_dropout(self.c_proj(y)), own_values

    def _mix(self, v: Tensor, shared: Shared) -> Tensor:
        """Mix the first layer's values and the embeddings of the tokens into values (B, H, T, D)."""
        if self.value_lambdas is not None:  # Zhou et al. 2024
            v = self.value_lambdas[0] * v + self.value_lambdas[1] * shared.first_values
        if self.embedding_lambdas is not None:  # modded-nanogpt
            embedding = self._split_heads(shared.value_embedding).to(v.dtype)
            v = self.embedding_lambdas[0] * v + self.embedding_lambdas[1] * embedding
        return v

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H * D) -> (B, H, T, D)"""
        b, t, width = x.size()
        return x.view(b, t, width // self.head_dim, self.head_dim).transpose(1, 2)
