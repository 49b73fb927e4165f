"""GPT-2 (Radford et al. 2019) and its switches, its initialization, and its FLOPs per token."""

import contextlib
import hashlib
import math
from collections.abc import Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt.config.model import ModelConfig
from gpt.layers.attention import Attention, Shared
from gpt.layers.cache import KVCache, LayerCache, WindowCache, build_cache
from gpt.layers.masks import Layout, layout_window, window_mask
from gpt.layers.mlp import MLP
from gpt.layers.norm import build_norm
from gpt.layers.positions import rotations, sinusoids


class Block(nn.Module):
    """Transformer block, normalized before each part (GPT-2) or after each sum (Vaswani et al. 2017, GPT-1)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.gives_values = config.value_residual and layer == 0
        self.ln_1 = build_norm(config, config.n_embd)
        self.attn = Attention(config, layer)
        # Parts side by side have one norm (GPT-J; PaLM, section 2).
        self.ln_2 = None if config.parallel_block else build_norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.residual_lambda = nn.Parameter(torch.empty(1)) if config.residual_lambdas else None
        self.x0_lambda = nn.Parameter(torch.empty(1)) if config.x0_lambdas else None

    def forward(
        self, x: Tensor, shared: Shared, cache: LayerCache | WindowCache | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states (B, T, C) -> (B, T, C); the block that gives them, the values of its attention too."""
        if self.residual_lambda is not None:
            x = self.residual_lambda * x
        if self.x0_lambda is not None:
            x = x + self.x0_lambda * shared.x0
        # Each part adds to the residual stream; the norms stand before or after the sums.
        if self.ln_2 is None:
            normed = self.ln_1(x)
            attended, values = self.attn(normed, shared, cache)
            x = x + attended + self.mlp(normed)
        elif self.pre_norm:
            attended, values = self.attn(self.ln_1(x), shared, cache)
            x = x + attended
            x = x + self.mlp(self.ln_2(x))
        else:
            attended, values = self.attn(x, shared, cache)
            x = self.ln_1(x + attended)
            x = self.ln_2(x + self.mlp(x))
        return (x, values) if self.gives_values else x


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
            self.register_buffer("sinusoids", sinusoids(config.seq_len, config.n_embd), persistent=False)
        turned = None
        if config.position == "rotary":
            turned = rotations(config.seq_len, config.head_dim, config.rope_theta, config.rope_fraction)
        self.register_buffer("rotations", turned, persistent=False)
        self.drop = nn.Dropout(config.dropout)

        # Tables of values (modded-nanogpt); they are only looked up, and need no padding.
        tables = range(config.value_embeddings)
        self.wve = nn.ModuleList(nn.Embedding(vocab_size, config.kv_width) for _ in tables)

        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = build_norm(config, config.n_embd) if config.norm == "pre" else nn.Identity()

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
        layer_caches = [None] * len(self.h)
        if cache is not None:
            positions = positions + cache.length
            layer_caches = cache.layers
        elif layout is not None:
            positions = layout.positions
        x = self.drop(self.embed(idx, positions))  # (B, T, C)
        shared = self._shared(x, positions, cache, layout)
        if cache is not None:
            cache.length += t

        # Training, evaluation and decoding make the same call, so that hooks and wrappers of a block see all of them.
        values = [table(idx) for table in self.wve]
        for block, layer_cache, table in zip(self.h, layer_caches, self.config.value_tables, strict=True):
            if values:
                shared = shared._replace(value_embedding=None if table is None else values[table])
            x = block(x, shared, cache=layer_cache)
            if block.gives_values:
                x, first_values = x
                shared = shared._replace(first_values=first_values)
        return self.ln_f(x)

    def _shared(self, x: Tensor, positions: Tensor, cache: KVCache | None, layout: Layout | None) -> Shared:
        """What all blocks get beside their input: masks, rotations, and the embedding."""
        config = self.config
        mask = None if layout is None else layout.mask
        in_window = None
        if config.window is not None and layout is not None:
            in_window = layout_window(layout, config.window)
        elif config.window is not None:
            kept = 0 if cache is None else min(cache.length, config.window - 1)
            in_window = window_mask(config.window, positions.size(-1), kept, x.device)

        rotation = None
        if self.rotations is not None:
            rotation = self.rotations[:, positions]  # (2, T, D / 2) or (2, B, T, D / 2)
            if layout is not None:
                rotation = rotation.unsqueeze(2)
        x0 = x if config.x0_lambdas else None
        return Shared(mask, in_window, rotation, x0)

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
        if self.config.logit_softcap is None:
            return F.linear(hidden, self.lm_head.weight, self.padding)
        return self.finish_logits(F.linear(hidden, self.lm_head.weight))

    def finish_logits(self, products: Tensor) -> Tensor:
        """Products of hidden states and the head -> logits: capped, and -inf in the columns of padding."""
        cap = self.config.logit_softcap
        if cap is not None:
            products = cap * torch.tanh(products / cap)
        return products if self.padding is None else products + self.padding

    def new_cache(self, batch: int, dtype: torch.dtype) -> KVCache:
        """An empty key-value cache for ``batch`` sequences."""
        like = torch.empty(0, dtype=dtype, device=self.wte.weight.device)
        return build_cache(self.config, batch, like)


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


# What learned factors are at the start: of a block's input and of x0 (modded-nanogpt), of a layer's own values and of
# what is mixed into them (Zhou et al. 2024; modded-nanogpt).
FACTORS = {"residual_lambda": 1.0, "x0_lambda": 0.0, "value_lambdas": 0.5, "embedding_lambdas": 0.5}


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
    if config.zero_init_projections:
        residual_std = 0.0
    for name, p in model.named_parameters():
        if p.dim() < 2:  # norms begin as the identity
            _, _, kind = name.rpartition(".")
            p.fill_(FACTORS.get(kind, 1.0 if kind == "weight" else 0.0))
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
    6 L C T, because it is causal: for GPT-2 124M its FLOPs, and its MFU at equal speed, are 6 % lower.) In a layer with
    a window, T is the window.
    """
    config = model.config
    # A tied table is a matrix product too, as the head.
    n = parameter_count(model)
    if config.position == "learned":
        n -= model.wpe.weight.numel()
    if not config.tie_head:
        n -= model.wte.weight.numel()
    n -= sum(table.weight.numel() for table in model.wve)
    attended = sum(window or config.seq_len for window in config.windows)
    return 6 * n + 12 * config.n_embd * attended
