"""A trained model with its tokenizer: text in, text, numbers and hidden states out."""

from collections.abc import Iterable
from pathlib import Path

import tiktoken
import torch
from torch import Tensor, nn

from gpt.checkpoint.files import read_state
from gpt.config.schema import SampleConfig
from gpt.device import pick_device
from gpt.errors import InputError
from gpt.generate.text import generate_text
from gpt.interop.load import load_pretrained
from gpt.interop.pretrained import check_knows_tokens
from gpt.interop.read import read_pretrained
from gpt.loss import loss_sum
from gpt.model import GPT
from gpt.tokens.tokenizer import encode, get_tokenizer


class LanguageModel:
    """A model in evaluation mode, in float32.

    ``model`` is the torch module itself (:class:`gpt.model.GPT`), for hooks, gradients and everything else.
    """

    def __init__(self, model: GPT, tokenizer: tiktoken.Encoding, step: int):
        self.model = model
        self.tokenizer = tokenizer
        self.step = step

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises InputError for a character that is not in the alphabet of a chars tokenizer."""
        return encode(self.tokenizer, text).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: a list, or a tensor (T,)."""
        return self.tokenizer.decode([int(number) for number in ids])

    def generate(
        self,
        prompt: str | None = None,
        *,
        tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 1,
    ) -> str:
        """The prompt and its continuation by ``tokens`` tokens; without a prompt, a text from its beginning.

        Equal arguments give equal text. With the seed and the sample keys of the run it is the run's own sample.
        """
        # The ranges of the config's sample keys.
        if tokens < 0:
            raise InputError(f"tokens={tokens} makes no sense", "allowed: 0 or more")
        if not temperature > 0:  # not for nan either
            raise InputError(f"temperature={temperature} makes no sense", "allowed: above 0; top_k=1 is greedy")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k} makes no sense", "allowed: at least 1, or None for all tokens")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p={top_p} makes no sense", "allowed: above 0, up to 1, or None for all tokens")
        sample = SampleConfig(tokens=tokens, prompt=prompt, temperature=temperature, top_k=top_k, top_p=top_p)
        return generate_text(self.model, self.tokenizer, sample, seed, self.step)

    @torch.no_grad()
    def hidden_states(self, text: str) -> Tensor:
        """Hidden states of a text, (n_layer + 1, T, C): those of the embeddings, then those after each block.

        ``model.ln_f`` is not applied. Raises InputError for a text without tokens, or longer than the context.
        """
        ids = self._ids(text, at_least=1)  # (T,)
        seq_len = self.model.config.seq_len
        if len(ids) > seq_len:
            raise InputError(f"the text has {len(ids)} tokens", f"allowed: up to {seq_len}, the context of the model")
        # The embeddings leave through the dropout layer, which does nothing in evaluation.
        states = []

        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            states.append(output[0])  # (T, C)

        hooks = []
        for module in (self.model.drop, *self.model.h):
            hooks.append(module.register_forward_hook(keep))
        try:
            self.model(ids[None])
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(states)

    @torch.no_grad()
    def loss(self, text: str) -> float:
        """Mean loss in nats per token of a text, over all tokens but the first.

        Long texts are read in windows of ``seq_len`` tokens, as validation does. Raises InputError for a text of
        fewer than two tokens.
        """
        ids = self._ids(text, at_least=2)  # (T,)
        # Each target is predicted once; the context begins again with each window.
        inputs = ids[:-1].split(self.model.config.seq_len)
        targets = ids[1:].split(self.model.config.seq_len)
        total = 0.0
        for window, window_targets in zip(inputs, targets, strict=True):
            total += loss_sum(self.model, window[None], window_targets[None]).item()
        return total / (len(ids) - 1)

    def _ids(self, text: str, at_least: int) -> Tensor:
        ids = self.encode(text)
        if len(ids) < at_least:
            raise InputError(f"the text {text!r} has too few tokens: {len(ids)}", f"allowed: at least {at_least}")
        return torch.tensor(ids, device=self.model.wte.weight.device)


def load_model(source: str | Path, device: str = "cpu") -> LanguageModel:
    """The model of a run, a checkpoint, a folder of Hugging Face, ``hf:gpt2``, llm.c's .bin or nanoGPT's ckpt.pt.

    Raises InputError where it cannot be read, does not say its tokenizer, or the device is missing.
    """
    torch_device = pick_device(device)
    pretrained = read_pretrained(str(source))
    check_knows_tokens(pretrained)
    model = GPT(pretrained.model, pretrained.vocab_size)
    load_pretrained(model, pretrained)
    model.to(torch_device).eval()
    step = 0
    if pretrained.checkpoint is not None:
        step = read_state(pretrained.checkpoint)["progress"]["step"]
    return LanguageModel(model, get_tokenizer(pretrained.tokenizer, pretrained.chars), step)
