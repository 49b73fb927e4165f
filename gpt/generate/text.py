"""Text of ids: the sample of a run as a whole, and a text that is still being written."""

import codecs
from collections.abc import Callable

import tiktoken
import torch

from gpt.config.schema import SampleConfig
from gpt.generate.decode import generate
from gpt.model import GPT
from gpt.signals import never
from gpt.tokens.order import derive_seed
from gpt.tokens.tokenizer import END_OF_TEXT, prompt_ids


def sample_seed(seed: int, step: int) -> int:
    """Return the seed of the sample at a step: the samples of a run do not begin with the same draws."""
    return derive_seed("sample", seed, step)


def generate_text(
    model: GPT,
    tokenizer: tiktoken.Encoding,
    sample: SampleConfig,
    seed: int,
    step: int,
    stop: Callable[[], bool] = never,
) -> str:
    """The sample that a run with this seed writes at this step: prompt and continuation. Raises Stopped."""
    prompt = torch.tensor([prompt_ids(tokenizer, sample.prompt)], device=model.wte.weight.device)  # (1, T)
    ids = generate(
        model,
        prompt,
        sample.tokens,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        seed=sample_seed(seed, step),
        stop=stop,
    )
    return tokenizer.decode(ids[0].tolist()).removeprefix(END_OF_TEXT)


class TextStream:
    """The text of ids that come one by one; all of it together is that of :func:`generate_text`.

    A token may hold a part of a character, which then comes with the last of its tokens.
    """

    def __init__(self, tokenizer: tiktoken.Encoding):
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_first = True

    def add(self, token: int) -> str:
        """Return the text that is complete with this token."""
        data = self.tokenizer.decode_single_token_bytes(token)
        # The end-of-text before a document is not part of it.
        if self._is_first and data == END_OF_TEXT.encode():
            data = b""
        self._is_first = False
        return self._decoder.decode(data)

    def end(self) -> str:
        """Return what stands for a character that was not completed."""
        return self._decoder.decode(b"", final=True)
