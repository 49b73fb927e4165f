"""Tokenizers by name, all of them tiktoken encodings: gpt2, bytes, chars."""

import numpy as np
import tiktoken

from gpt.errors import InputError

VOCAB_SIZES = {"bytes": 257, "gpt2": 50_257}  # end-of-text included; chars: as many as the text has
END_OF_TEXT = "<|endoftext|>"


def get_tokenizer(name: str, chars: str | None = None) -> tiktoken.Encoding:
    """Return the encoding called ``name``; ``chars`` is the alphabet of the chars tokenizer.

    Raises InputError when the GPT-2 vocabulary cannot be loaded.
    """
    # Two tokenizers of our own, made here.
    if name == "bytes":
        ranks = {bytes([i]): i for i in range(256)}
        # No merges: pieces of any length become single bytes; 32 characters at a time is fast.
        return tiktoken.Encoding(
            "bytes",
            pat_str=r"(?s:.{1,32})",
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: 256},
        )
    if name == "chars":
        ranks = {char.encode(): i for i, char in enumerate(chars)}
        return tiktoken.Encoding(
            "chars",
            pat_str=r"(?s:.)",
            mergeable_ranks=ranks,
            special_tokens={},
        )

    # tiktoken's, whose vocabularies it downloads and caches.
    if name not in tiktoken.list_encoding_names():
        raise InputError(f"tokenizer {name!r} is not known", "allowed: bytes, chars, gpt2")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # whatever the network library in use raises
        raise InputError(
            f"the vocabulary of tokenizer {name} could not be loaded: {type(error).__name__}",
            "it is downloaded once; offline, set TIKTOKEN_CACHE_DIR to a directory where tiktoken has cached it",
        ) from error


def end_of_text(tokenizer: tiktoken.Encoding) -> int | None:
    """Return the id between documents, or None if the vocabulary has none (chars)."""
    return tokenizer.eot_token if END_OF_TEXT in tokenizer.special_tokens_set else None


def byte_lengths(tokenizer: tiktoken.Encoding) -> np.ndarray:
    """Return the bytes of text of each id, (n_vocab,); end-of-text has none."""
    lengths = np.zeros(tokenizer.n_vocab, np.int64)
    special = {tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}
    for number in range(tokenizer.n_vocab):
        if number not in special:
            lengths[number] = len(tokenizer.decode_single_token_bytes(number))
    return lengths


def encode(tokenizer: tiktoken.Encoding, text: str) -> np.ndarray:
    """Encode text as ids (uint32), special tokens in it as plain text.

    Raises InputError for a character that is not in a chars tokenizer's alphabet, and for one that UTF-8 has not.
    """
    if tokenizer.name == "chars":
        alphabet = {char.decode() for char in tokenizer.token_byte_values()}
        unknown = sorted(set(text) - alphabet)
        if unknown:
            raise InputError(
                f"character {unknown[0]!r} is not in the alphabet of the data",
                f"its {len(alphabet)} characters: {''.join(sorted(alphabet))!r}",
            )
    try:
        return tokenizer.encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError as error:
        character = text[error.start]
        raise InputError(f"the text has {character!r}, and is no UTF-8", "give text in UTF-8") from error


def prompt_ids(tokenizer: tiktoken.Encoding, prompt: str | None) -> list[int]:
    """Return the ids that a sample continues; without a prompt, the start of a document.

    Raises InputError as :func:`encode` does.
    """
    if prompt:
        return encode(tokenizer, prompt).tolist()
    start = end_of_text(tokenizer)
    return [0 if start is None else start]  # id 0: the first of a sorted alphabet, in most texts the newline


def printable(text: str) -> str:
    """Return a text for the terminal, indented, with a dot for what cannot be shown."""
    visible = "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
    return visible.strip("\n").replace("\n", "\n  ")
