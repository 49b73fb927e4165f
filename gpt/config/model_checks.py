"""Refusals of models whose keys do not fit together, with the nearest that do. Imports no torch."""

from gpt.config.model import ModelConfig
from gpt.config.values import nearest
from gpt.errors import InputError


def check_model(model: ModelConfig) -> None:
    """Check that widths divide, and that switches fit together. Raises InputError."""
    _check_heads(model)
    _check_positions(model)
    _check_windows(model)

    # The feed-forward.
    width = model.mlp_width or 4 * model.n_embd
    if model.is_gated and model.mlp_matched and width % 3:
        raise InputError(
            f"model.mlp_matched=true takes two thirds of the feed-forward's width, and {width} is not divisible by 3",
            f"nearest model.mlp_width that are: {nearest(width, 3)}",
        )

    # Blocks, and what passes by them.
    if model.parallel_block and model.norm == "post":
        raise InputError(
            "model.parallel_block=true has one norm before both parts, and model.norm=post one after each",
            "take model.norm=pre, or model.parallel_block=false",
        )
    if model.value_residual and model.n_layer < 2:
        raise InputError(
            f"model.value_residual=true mixes the first layer's values into later ones, of which "
            f"model.n_layer={model.n_layer} has none",
            "take model.n_layer of at least 2, or model.value_residual=false",
        )
    if 2 * model.value_embeddings > model.n_layer:
        raise InputError(
            f"model.value_embeddings={model.value_embeddings} tables are for as many first layers and as many last "
            f"ones, and model.n_layer={model.n_layer}",
            f"allowed with it: up to model.value_embeddings={model.n_layer // 2}",
        )


def _check_heads(model: ModelConfig) -> None:
    """Check that every head has an equal part, and every head of keys and values equally many. Raises InputError."""
    if model.n_embd % model.n_head:
        raise InputError(
            f"model.n_embd={model.n_embd} is not divisible by model.n_head={model.n_head}",
            f"nearest model.n_embd that is: {nearest(model.n_embd, model.n_head)}",
        )
    if model.n_head % model.kv_heads:
        divisors = [str(n) for n in range(1, model.n_head + 1) if model.n_head % n == 0]
        problem = "is more than" if model.kv_heads > model.n_head else "does not divide"
        raise InputError(
            f"model.n_kv_head={model.n_kv_head} {problem} model.n_head={model.n_head}",
            f"allowed with it: model.n_kv_head={', '.join(divisors)}",
        )


def _check_positions(model: ModelConfig) -> None:
    """Check that sines and cosines have their pairs. Raises InputError."""
    if model.position == "sinusoidal" and model.n_embd % 2:
        raise InputError(
            f"model.n_embd={model.n_embd} is odd, and model.position=sinusoidal takes sines and cosines in pairs",
            f"nearest model.n_embd that is even: {nearest(model.n_embd, 2)}",
        )
    if model.position != "rotary":
        return
    if model.head_dim % 2:
        raise InputError(
            f"model.position=rotary turns pairs, and a head of model.n_embd={model.n_embd} and "
            f"model.n_head={model.n_head} has {model.head_dim} numbers",
            f"nearest model.n_embd with even heads: {nearest(model.n_embd, 2 * model.n_head)}",
        )

    # A whole number of pairs turns.
    pairs = model.head_dim // 2
    turning = model.rope_fraction * pairs
    if abs(turning - round(turning)) > 1e-6:
        around = [n / pairs for n in (int(turning), int(turning) + 1) if n]
        raise InputError(
            f"model.rope_fraction={model.rope_fraction} of the {pairs} pairs of a head is no whole number of them",
            f"nearest model.rope_fraction that are: {' or '.join(map(str, around))}",
        )


def _check_windows(model: ModelConfig) -> None:
    """Check the letters of the pattern, and that a window hides something in some layer. Raises InputError."""
    pattern = model.window_pattern
    if not pattern or set(pattern) - set("LS"):
        raise InputError(
            f"model.window_pattern={pattern!r} has other letters than L and S",
            "allowed: L for a layer of the whole context, S for one with a window, such as SSSL",
        )
    if model.window is None:
        return
    if model.window >= model.seq_len:
        raise InputError(
            f"model.window={model.window} hides nothing in a context of model.seq_len={model.seq_len}",
            f"allowed with it: up to model.window={model.seq_len - 1}; null: no window",
        )
    if model.n_layer and not any(model.windows):
        raise InputError(
            f"model.window={model.window} is in no layer of model.window_pattern={pattern}",
            "give a layer the letter S, or model.window=null",
        )
