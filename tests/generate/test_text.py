"""Text that is written token by token."""

import pytest
import torch

from gpt.generate.text import TextStream
from gpt.tokens.tokenizer import END_OF_TEXT, get_tokenizer

TEXT = "naïve — 日本語 🙂, e\u0301\n"


def written(tokenizer, ids):
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    return pieces, stream.end()


def test_a_character_comes_with_the_last_of_its_bytes():
    tokenizer = get_tokenizer("bytes")
    pieces, rest = written(tokenizer, tokenizer.encode(TEXT))
    assert "".join(pieces) == TEXT and rest == ""
    assert len(pieces) == len(TEXT.encode())
    assert [piece for piece in pieces if piece] == list(TEXT)


def test_gpt2_tokens_within_characters(gpt2_vocabulary):
    tokenizer = get_tokenizer("gpt2")
    pieces, rest = written(tokenizer, tokenizer.encode(TEXT))
    assert "".join(pieces) == TEXT and rest == ""
    assert "" in pieces  # a token that is a part of a character


@pytest.mark.parametrize("seed", range(20))
def test_any_ids_give_the_text_of_all_of_them(seed):
    tokenizer = get_tokenizer("bytes")
    ids = torch.randint(257, (200,), generator=torch.Generator().manual_seed(seed)).tolist()  # mostly no UTF-8
    for some in (ids, [256, *ids], [256, 256], [0xE2, 0x82], []):
        pieces, rest = written(tokenizer, some)
        assert "".join(pieces) + rest == tokenizer.decode(some).removeprefix(END_OF_TEXT)
