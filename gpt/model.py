"""GPT-2 (Radford et al. 2019), its initialization, and its FLOPs per token."""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt.config.schema import ModelConfig


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


@dataclass(slots=True)
class KVCache:
    """The caches of all layers, and the number of tokens in them."""

    layers: list[LayerCache]
    length: int = 0


def causal_mask(t: int, s: int, device: torch.device) -> Tensor:
    """True where one of the last ``t`` of ``s`` positions attends: to itself and to what is before it, (t, s)."""
    everywhere = torch.ones(t, s, dtype=torch.bool, device=device)
    return everywhere.tril(diagonal=s - t)


class Layout(NamedTuple):
    """The positions of the tokens in a batch, (B, T), and the mask of the tokens that each attends to, (B, 1, T, T)."""

    positions: Tensor
    mask: Tensor


def document_layout(documents: Tensor) -> Layout:
    """Let each document be read as if it stood alone; (B, T) gives the index in the row at which a token's begins."""
    t = documents.size(1)
    is_same = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
    mask = is_same & causal_mask(t, t, documents.device)
    return Layout(torch.arange(t, device=documents.device) - documents, mask)


def _naive_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    """Causal attention written out (Vaswani et al. 2017, eq. 1); q (B, H, T, D), k and v (B, H, S, D).

    The queries are the last T of the S positions. ``mask`` replaces the causal mask; it broadcasts to (B, H, T, S).
    """
    if mask is None:
        mask = causal_mask(q.size(-2), k.size(-2), q.device)
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # (B, H, T, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return F.dropout(weights, dropout) @ v


def _sdpa_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    """The same through torch's fused kernels."""
    t = q.size(-2)
    s = k.size(-2)
    if mask is None and t == s:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    # is_causal aligns the mask to the first key; cached decoding needs it aligned to the last. One query, which is the
    # last position, attends to all.
    if mask is None and t > 1:
        mask = causal_mask(t, s, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _gelu_tanh(x: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks & Gimpel 2016, section 2; openai/gpt-2 src/model.py)."""
    if torch.compiler.is_compiling():
        # (1 + tanh u) / 2 is sigmoid(2u), which takes half the time of tanh where torch.compile writes C++.
        scale = 2 * math.sqrt(2 / math.pi)
        return x * torch.sigmoid(scale * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


ATTENTION = {"naive": _naive_attention, "sdpa": _sdpa_attention}
ACTIVATION = {"gelu_tanh": _gelu_tanh, "gelu_exact": F.gelu, "relu": F.relu}


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.attend = ATTENTION[config.attention]
        # Queries, keys and values of all heads come from one matrix, as in GPT-2.
        width = config.n_embd
        self.c_attn = nn.Linear(width, 3 * width, bias=config.bias)
        self.c_proj = nn.Linear(width, width, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Hidden states (B, T, C) -> (B, T, C)."""
        c = x.size(2)
        q, k, v = self.c_attn(x).split(c, dim=2)  # (B, T, C) each
        q = self._split_heads(q)
        k = self._split_heads(k)
        v = self._split_heads(v)
        # With a cache, the queries attend to all that it holds.
        if cache is not None:
            k, v = cache.append(k, v)
        # Dropout of the attention weights takes place inside the kernel, which does not know the mode of the module.
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, dropout, mask)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(x.shape)
        return self.resid_dropout(self.c_proj(y))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, H, T, D)"""
        b, t, c = x.size()
        return x.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)


class MLP(nn.Module):
    """Feed-forward layer, four times as wide inside."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.n_embd
        self.activation = ACTIVATION[config.activation]
        self.c_fc = nn.Linear(width, 4 * width, bias=config.bias)
        self.c_proj = nn.Linear(4 * width, width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class Block(nn.Module):
    """Transformer block, normalized before each part (GPT-2) or after each sum (Vaswani et al. 2017, GPT-1)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        # Each part adds to the residual stream; the norms stand before or after the sums.
        if self.pre_norm:
            x = x + self.attn(self.ln_1(x), mask, cache)
            return x + self.mlp(self.ln_2(x))
        x = self.ln_1(x + self.attn(x, mask, cache))
        return self.ln_2(x + self.mlp(x))


def _sinusoids(seq_len: int, n_embd: int) -> Tensor:
    """Positions as sines and cosines (Vaswani et al. 2017, section 3.5) -> (seq_len, n_embd)."""
    frequencies = 10_000 ** (-torch.arange(0, n_embd, 2) / n_embd)  # (n_embd / 2,)
    angles = torch.arange(seq_len)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class GPT(nn.Module):
    """GPT-2 and its switches.

    ``vocab_size`` is the tokenizer's; the embedding has ``padded_vocab_size`` rows, that number rounded up to a
    multiple of ``config.vocab_multiple``. Padded rows are zero, and their logits are set to -inf, so
    they take no probability, receive no gradient and stay zero.
    """

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.padded_vocab_size = math.ceil(vocab_size / config.vocab_multiple) * config.vocab_multiple

        # Tokens and positions.
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.seq_len, config.n_embd)
        elif config.position == "sinusoidal":
            self.register_buffer("sinusoids", _sinusoids(config.seq_len, config.n_embd), persistent=False)
        self.drop = nn.Dropout(config.dropout)

        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias) if config.norm == "pre" else nn.Identity()

        # The head, and its bias where the vocabulary is padded.
        self.lm_head = nn.Linear(config.n_embd, self.padded_vocab_size, bias=False)
        if config.tie_head:
            self.lm_head.weight = self.wte.weight
        padding = None
        if self.padded_vocab_size > vocab_size:
            padding = torch.zeros(self.padded_vocab_size)
            padding[vocab_size:] = float("-inf")
        self.register_buffer("padding", padding, persistent=False)

    def forward(self, idx: Tensor, cache: KVCache | None = None, layout: Layout | None = None) -> Tensor:
        """Token ids (B, T) -> final hidden states (B, T, C).

        With ``cache`` (see :meth:`new_cache`) the ids continue the tokens in it. ``layout`` says where each token
        stands and which others it attends to, where that is not one text per row.
        """
        t = idx.size(1)
        positions = torch.arange(t, device=idx.device)  # (T,)
        mask = None
        layer_caches = [None] * len(self.h)
        if cache is not None:
            positions = positions + cache.length
            layer_caches = cache.layers
            cache.length += t
        elif layout is not None:
            positions, mask = layout

        # Training, evaluation and decoding make the same call, so that hooks and wrappers of a block see all of them.
        x = self.drop(self.embed(idx, positions))  # (B, T, C)
        for block, layer_cache in zip(self.h, layer_caches, strict=True):
            x = block(x, mask, cache=layer_cache)
        return self.ln_f(x)

    def embed(self, idx: Tensor, positions: Tensor) -> Tensor:
        """Token ids (B, T) at positions (T,) or (B, T) -> (B, T, C)."""
        tokens = self.wte(idx)
        if self.config.position == "learned":
            return tokens + self.wpe(positions)
        if self.config.position == "sinusoidal":
            # Scaled, or the sines would drown the tokens (Vaswani et al. 2017, section 3.4).
            scale = math.sqrt(self.config.n_embd)
            return tokens * scale + self.sinusoids[positions]
        return tokens

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., C) -> logits (..., padded_vocab_size), -inf in the columns of padding."""
        return F.linear(hidden, self.lm_head.weight, self.padding)

    def new_cache(self, batch: int, dtype: torch.dtype) -> KVCache:
        """An empty key-value cache for ``batch`` sequences."""
        config = self.config
        head_dim = config.n_embd // config.n_head
        like = torch.empty(0, dtype=dtype, device=self.wte.weight.device)
        layers = []
        for _ in self.h:
            layers.append(LayerCache(batch, config.n_head, config.seq_len, head_dim, like))
        return KVCache(layers)


@contextlib.contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Switch dropout off inside, and return to the earlier mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _parameter_generator(seed: int, name: str) -> torch.Generator:
    """A generator for one parameter alone, so that no weight depends on which other parameters exist."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    own_seed = int.from_bytes(digest[:8], "little", signed=True)
    return torch.Generator().manual_seed(own_seed)


@torch.no_grad()
def init_weights(model: GPT, seed: int) -> None:
    """Initialize as GPT-2: N(0, init_std), residual projections scaled by 1/sqrt(2 n_layer), biases zero.

    (Radford et al. 2019, section 2.3, and openai/gpt-2 src/model.py, which draws positions at 0.01; nanoGPT
    and this model draw them like all others.) Only the first ``vocab_size`` rows of ``wte`` and an untied head are
    drawn, so weights do not depend on ``vocab_multiple``; on the CPU, so they do not depend on the device either.
    """
    # Residual projections add up over 2 n_layer sums.
    config = model.config
    residual_std = config.init_std
    if config.residual_scaling and config.n_layer:
        residual_std /= math.sqrt(2 * config.n_layer)
    for name, p in model.named_parameters():
        if p.dim() < 2:  # norms begin as the identity
            p.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        std = residual_std if name.endswith("c_proj.weight") else config.init_std
        rows = model.vocab_size if name in ("wte.weight", "lm_head.weight") else p.size(0)
        weights = torch.empty(rows, p.size(1))
        weights.normal_(0.0, std, generator=_parameter_generator(seed, name))
        p.zero_()
        p[:rows].copy_(weights)


def parameter_count(model: GPT) -> int:
    """Number of parameters: a tied head once, padded rows and positions included."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: GPT) -> int:
    """Training FLOPs per token, forward and backward: 6 N + 12 L C T; N leaves out tables that are only looked up.

    (PaLM, Chowdhery et al. 2022, appendix B, as nanoGPT's estimate_mfu counts it. llm.c counts half of the attention,
    6 L C T, because it is causal: for GPT-2 124M its FLOPs, and its MFU at equal speed, are 6 % lower.)
    """
    config = model.config
    # A tied table is a matrix product too, as the head.
    n = parameter_count(model)
    if config.position == "learned":
        n -= model.wpe.weight.numel()
    if not config.tie_head:
        n -= model.wte.weight.numel()
    attention = 12 * config.n_layer * config.n_embd * config.seq_len
    return 6 * n + attention
