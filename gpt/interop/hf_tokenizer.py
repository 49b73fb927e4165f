"""Our tokenizers as the files that Hugging Face's tokenizers reads, with the same ids."""

import json
from pathlib import Path
from typing import Any

import tiktoken

from gpt.errors import InputError
from gpt.files import parse_object
from gpt.tokens.tokenizer import END_OF_TEXT, end_of_text, get_tokenizer

TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.json"
MERGES = "merges.txt"
FILES = (TOKENIZER, VOCABULARY)  # either of them says what the tokens are


def is_gpt2(folder: Path) -> bool:
    """Return whether the tokens of a folder are GPT-2's."""
    try:
        if (folder / VOCABULARY).exists():
            found = parse_object((folder / VOCABULARY).read_text(encoding="utf-8"))
        else:
            found = parse_object((folder / TOKENIZER).read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    expected = _vocabulary(get_tokenizer("gpt2"))
    is_same = isinstance(found, dict) and {END_OF_TEXT: expected[END_OF_TEXT], **found} == expected
    return is_same


def write_tokenizer(folder: Path, name: str, chars: str | None, seq_len: int) -> None:
    """Write the files of a tokenizer into a folder. Raises OSError."""
    tokenizer = get_tokenizer(name, chars)
    vocabulary = _vocabulary(tokenizer)
    merges = [] if name == "chars" else _merges(tokenizer)
    _write_json(folder / TOKENIZER, _tokenizer_json(tokenizer, vocabulary, merges))

    # What a program should know beside it.
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": seq_len}
    if end_of_text(tokenizer) is not None:
        about |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    if name == "gpt2":
        # Its own class, and the files by which older programs know it.
        about["tokenizer_class"] = "GPT2Tokenizer"
        _write_json(folder / VOCABULARY, vocabulary)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / MERGES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", about)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_json(
    tokenizer: tiktoken.Encoding,
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
) -> dict[str, Any]:
    """Return tokenizer.json: byte-pair merges of bytes, or of characters, which know none."""
    is_chars = tokenizer.name == "chars"
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": tokenizer.name == "gpt2",  # its pattern of pieces; single bytes need none
    }
    special = []
    if not is_chars:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        special = [{"id": tokenizer.eot_token, "content": END_OF_TEXT, **flags, "special": True}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": None if is_chars else byte_level,
        "post_processor": None if is_chars else byte_level,
        "decoder": {"type": "Fuse"} if is_chars else byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _vocabulary(tokenizer: tiktoken.Encoding) -> dict[str, int]:
    """Return the id of every token as Hugging Face writes it: bytes as visible characters, characters as they are."""
    if tokenizer.name == "chars":
        return {token.decode(): tokenizer.encode_single_token(token) for token in tokenizer.token_byte_values()}
    vocabulary = {_visible(token): tokenizer.encode_single_token(token) for token in tokenizer.token_byte_values()}
    vocabulary[END_OF_TEXT] = tokenizer.eot_token
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))


def _visible(token: bytes) -> str:
    """Return bytes as GPT-2's files write them: printable ones of Latin-1 as themselves, the others from 256 on.

    (openai/gpt-2, src/encoder.py, bytes_to_unicode)
    """
    return "".join(VISIBLE[byte] for byte in token)


def _visible_bytes() -> list[str]:
    """Return the character for each of the 256 bytes."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    characters = []
    others = 0
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + others))
            others += 1
    return characters


VISIBLE = _visible_bytes()


def _merges(tokenizer: tiktoken.Encoding) -> list[tuple[str, str]]:
    """Return the merges of a byte-pair encoding in their order, from the ranks of its tokens.

    A token was merged from the two parts into which the merges before it bring its bytes.
    """
    ranks = {token: tokenizer.encode_single_token(token) for token in tokenizer.token_byte_values()}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = _parts(ranks, token, rank)
            merges.append((_visible(left), _visible(right)))
    return merges


def _parts(ranks: dict[bytes, int], token: bytes, rank: int) -> list[bytes]:
    """Return the parts into which the merges before ``rank`` bring a token. Raises InputError if these are not two."""
    parts = [bytes([byte]) for byte in token]
    while True:
        # The pair of neighbors with the lowest rank is merged first.
        best = rank
        at = None
        for i in range(len(parts) - 1):
            pair = ranks.get(parts[i] + parts[i + 1], rank)
            if pair < best:
                best = pair
                at = i
        if at is None:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise InputError(f"token {token!r} is no pair of earlier tokens", "export a model whose tokenizer is ours")
    return parts
