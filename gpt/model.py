"""GPT-2 (Radford et al. 2019), its initialisation, and its FLOPs per token."""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpt.config.schema import ModelConfig


class KVCache:
    """Keys and values of one attention layer for the tokens seen so far, at most ``seq_len`` of them."""

    def __init__(self, batch: int, n_head: int, seq_len: int, head_dim: int, like: Tensor):
        self.keys = like.new_empty(batch, n_head, seq_len, head_dim)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, D) and return all that are held (B, H, length, D)."""
        end = self.length + k.size(2)
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(slots=True)
class Caches:
    """The caches of all layers, and how many tokens they hold."""

    layers: list[KVCache]
    length: int = 0


def naive_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    """Causal attention written out (Vaswani et al. 2017, eq. 1); q (B, H, T, D), k and v (B, H, S, D).

    The queries are the last T of the S positions. ``mask``, broadcast to (B, H, T, S), is what each one sees if given.
    """
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # (B, H, T, S)
    seen = past(q.size(-2), k.size(-2), q.device) if mask is None else mask
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return F.dropout(weights, dropout) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    """The same through torch's fused kernels."""
    t, s = q.size(-2), k.size(-2)
    if mask is None and t == s:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    # is_causal aligns the mask to the first key; cached decoding needs it aligned to the last.
    seen = past(t, s, q.device) if mask is None else mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)


def past(t: int, s: int, device: torch.device) -> Tensor:
    """What the last t of s positions see: themselves and what is before, (t, s)."""
    return torch.ones(t, s, dtype=torch.bool, device=device).tril(diagonal=s - t)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks & Gimpel 2016, section 2; openai/gpt-2 src/model.py)."""
    if torch.compiler.is_compiling():
        # (1 + tanh u) / 2 is sigmoid(2u), which takes half the time of tanh where torch.compile writes C++.
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


ATTENTION = {"naive": naive_attention, "sdpa": sdpa_attention}
ACTIVATION = {"gelu_tanh": gelu_tanh, "gelu_exact": F.gelu, "relu": F.relu}


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.attend = ATTENTION[config.attention]
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        b, t, c = x.size()
        q, k, v = (
            part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(c, dim=2)
        )
        if cache is not None:
            k, v = cache.append(k, v)
        y = self.attend(q, k, v, self.dropout if self.training else 0.0, mask)
        y = y.transpose(1, 2).reshape(b, t, c)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Feed-forward layer, four times as wide inside."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation = ACTIVATION[config.activation]
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class Block(nn.Module):
    """Transformer block, normalised before each part (GPT-2) or after each sum (Vaswani et al. 2017, GPT-1)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        if self.pre_norm:
            x = x + self.attn(self.ln_1(x), cache, mask)
            return x + self.mlp(self.ln_2(x))
        x = self.ln_1(x + self.attn(x, cache, mask))
        return self.ln_2(x + self.mlp(x))


def sinusoids(seq_len: int, n_embd: int) -> Tensor:
    """Positions as sines and cosines (Vaswani et al. 2017, section 3.5) -> (seq_len, n_embd)."""
    angles = torch.arange(seq_len)[:, None] * 10_000 ** (-torch.arange(0, n_embd, 2) / n_embd)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class GPT(nn.Module):
    """GPT-2 and its switches.

    ``vocab_size`` is what the tokenizer has; the embedding holds ``padded_vocab_size`` rows, that number
    rounded up to a multiple of ``config.vocab_multiple``. Padded rows are zero, and the head's bias puts -inf
    into their columns, so they take no probability, receive no gradient and stay zero.
    """

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.padded_vocab_size = math.ceil(vocab_size / config.vocab_multiple) * config.vocab_multiple
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.seq_len, config.n_embd)
        elif config.position == "sinusoidal":
            self.register_buffer("sinusoids", sinusoids(config.seq_len, config.n_embd), persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias) if config.norm == "pre" else nn.Identity()
        self.lm_head = nn.Linear(config.n_embd, self.padded_vocab_size, bias=False)
        if config.tie_head:
            self.lm_head.weight = self.wte.weight
        padding = None
        if self.padded_vocab_size > vocab_size:
            padding = torch.zeros(self.padded_vocab_size)
            padding[vocab_size:] = float("-inf")
        self.register_buffer("padding", padding, persistent=False)

    def forward(self, idx: Tensor, caches: Caches | None = None, documents: Tensor | None = None) -> Tensor:
        """Token ids (B, T) -> final hidden states (B, T, C).

        With ``caches`` (see :meth:`new_caches`) the ids continue what the caches hold. With ``documents`` (B, T), which
        says where in its row the document of each token starts, a document is read as if it stood alone.
        """
        t, mask = idx.size(1), None
        places = torch.arange(t, device=idx.device)
        if caches:
            places = places + caches.length
        elif documents is not None:
            mask = (documents[:, None, :, None] == documents[:, None, None, :]) & past(t, t, idx.device)
            places = places - documents
        x = self.drop(self.embed(idx, places))
        for i, block in enumerate(self.h):
            if caches:  # forward itself: the changing shapes of decoding would recompile a compiled block
                x = block.forward(x, caches.layers[i])
            elif self.config.activation_checkpointing == "blocks" and torch.is_grad_enabled():
                # It keeps x alone, and has the rest anew (Chen et al. 2016).
                x = checkpoint(block, x, None, mask, use_reentrant=False)
            else:
                x = block(x, None, mask)
        if caches:
            caches.length += idx.size(1)
        return self.ln_f(x)

    def embed(self, idx: Tensor, places: Tensor) -> Tensor:
        """Tokens (B, T) at places (T,) or (B, T) -> (B, T, C)."""
        if self.config.position == "learned":
            return self.wte(idx) + self.wpe(places)
        if self.config.position == "sinusoidal":
            # Scaled, or the sines would drown the tokens (Vaswani et al. 2017, section 3.4).
            return self.wte(idx) * math.sqrt(self.config.n_embd) + self.sinusoids[places]
        return self.wte(idx)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., C) -> logits (..., padded_vocab_size), -inf where no token stands."""
        return F.linear(hidden, self.lm_head.weight, self.padding)

    def new_caches(self, batch: int, dtype: torch.dtype) -> Caches:
        """Empty key-value caches for ``batch`` sequences."""
        like = torch.empty(0, dtype=dtype, device=self.wte.weight.device)
        c = self.config
        return Caches([KVCache(batch, c.n_head, c.seq_len, c.n_embd // c.n_head, like) for _ in self.h])


@contextlib.contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """The model without dropout, and afterwards in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for each parameter, so that no weight depends on which others exist."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@torch.no_grad()
def init_weights(model: GPT, seed: int) -> None:
    """GPT-2's initialisation: N(0, init_std), residual projections scaled by 1/sqrt(2 n_layer), biases zero.

    (Radford et al. 2019, section 2.3, and openai/gpt-2 src/model.py, which draws positions at 0.01; nanoGPT
    and this model draw them like all others.) Only the first ``vocab_size`` rows of ``wte`` and an untied head are
    drawn, so weights do not depend on ``vocab_multiple``; on the CPU, so they do not depend on the device either.
    """
    config = model.config
    for name, p in model.named_parameters():
        if p.dim() < 2:
            p.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        is_residual = config.residual_scaling and name.endswith("c_proj.weight")
        std = config.init_std / math.sqrt(2 * config.n_layer) if is_residual else config.init_std
        rows = model.vocab_size if name in ("wte.weight", "lm_head.weight") else p.size(0)
        drawn = torch.empty(rows, p.size(1)).normal_(0.0, std, generator=parameter_generator(seed, name))
        p.zero_()
        p[:rows].copy_(drawn)


def parameter_count(model: GPT) -> int:
    """Parameters, a tied head once, padded rows and positions included."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: GPT) -> int:
    """Training FLOPs per token, forward and backward: 6 N + 12 L C T, N without what is only looked up.

    (PaLM, Chowdhery et al. 2022, appendix B, as nanoGPT's estimate_mfu counts it.)
    """
    c = model.config
    n = parameter_count(model)
    if c.position == "learned":
        n -= model.wpe.weight.numel()
    if not c.tie_head:
        n -= model.wte.weight.numel()
    return 6 * n + 12 * c.n_layer * c.n_embd * c.seq_len
