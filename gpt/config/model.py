"""The keys of the group model, and the sizes that follow from them. Imports no torch.

Defaults, units and sources of the keys stand in conf/model/.
"""

from dataclasses import dataclass

from gpt.config.keys import choice, number, text

GATED = ("geglu", "swiglu")  # activations that take two matrices


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    name: str = text()

    # Sizes.
    n_layer: int = number(
        at_least=0, largest=1_000, reason="as many as the deepest published (DeepNet, Wang et al. 2022)"
    )
    n_head: int = number(at_least=1)
    n_kv_head: int | None = number(at_least=1)
    n_embd: int = number(at_least=1, largest=100_000, reason="GPT-3 has 12,288")
    mlp_width: int | None = number(at_least=1, largest=1_000_000, reason="four times the width of GPT-3 is 49,152")
    mlp_matched: bool
    seq_len: int = number(
        counts="tokens", at_least=1, largest=10_000_000, reason="as long as the longest published contexts (Gemini 1.5)"
    )
    vocab_multiple: int = number(at_least=1, largest=1_000_000, reason="large vocabularies have 256,000 tokens")

    # Parts.
    bias: bool
    dropout: float = number(at_least=0, below=1)
    tie_head: bool
    position: str = choice(["learned", "none", "rotary", "sinusoidal"])
    rope_theta: float = number(above=1)
    rope_fraction: float = number(above=0, at_most=1)
    norm: str = choice(["post", "pre"])
    norm_type: str = choice(["layernorm", "rmsnorm"])
    norm_weight: bool
    qk_norm: bool
    activation: str = choice(["geglu", "gelu_exact", "gelu_tanh", "relu", "relu2", "swiglu"])
    window: int | None = number(counts="tokens", at_least=1)
    window_pattern: str = text()
    attention_softcap: float | None = number(above=0)
    logit_softcap: float | None = number(above=0)
    z_loss: float = number(at_least=0)
    value_embeddings: int = number(at_least=0)
    value_residual: bool
    residual_lambdas: bool
    x0_lambdas: bool
    parallel_block: bool

    # How it is computed, and begins.
    attention: str = choice(["naive", "sdpa"])
    activation_checkpointing: str = choice(["blocks", "none"])
    init_std: float = number(above=0)
    residual_scaling: bool
    zero_init_projections: bool
    peak_lr: float = number(above=0)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def kv_width(self) -> int:
        """Width of the keys of a token, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def is_gated(self) -> bool:
        """True where the feed-forward multiplies by a gate, a third matrix."""
        return self.activation in GATED

    @property
    def inner_width(self) -> int:
        """Width inside the feed-forward."""
        width = self.mlp_width or 4 * self.n_embd
        return 2 * width // 3 if self.is_gated and self.mlp_matched else width

    @property
    def windows(self) -> list[int | None]:
        """The window of each layer; None: the whole context."""
        pattern = self.window_pattern
        windows = []
        for layer in range(self.n_layer):
            is_short = pattern[layer % len(pattern)] == "S"
            windows.append(self.window if is_short else None)
        return windows

    @property
    def value_tables(self) -> list[int | None]:
        """The table of value embeddings of each layer: in order in the first layers, and in order in the last."""
        tables: list[int | None] = [None] * self.n_layer
        for table in range(min(self.value_embeddings, self.n_layer)):
            tables[table] = table
            tables[self.n_layer - self.value_embeddings + table] = table
        return tables

    @property
    def block_matrices(self) -> int:
        """Number of parameters in the matrices of a block."""
        attention = 2 * self.n_embd + 2 * self.kv_width
        feed_forward = (3 if self.is_gated else 2) * self.inner_width
        return self.n_embd * (attention + feed_forward)
