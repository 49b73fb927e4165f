"""The text files of the perplexity task. Imports no torch."""

from gpt.config.schema import Config
from gpt.errors import InputError
from gpt.files import as_path


def check(config: Config) -> None:
    """Check that there are files, and that the stride leaves each window something to predict. Raises InputError."""
    read_texts(config)
    stride = config.perplexity.stride
    seq_len = config.model.seq_len
    if stride is not None and stride > seq_len:
        raise InputError(
            f"perplexity.stride={stride} would leave tokens out: a window has model.seq_len={seq_len}",
            f"allowed: 1 to {seq_len}; null is half of it",
        )


def read_texts(config: Config) -> list[str]:
    """Return the texts of ``perplexity.files``. Raises InputError."""
    if not config.perplexity.files:
        raise InputError("the task perplexity has no text", "give files: perplexity.files=[a.txt]")
    texts = []
    for name in config.perplexity.files:
        path = as_path("perplexity.files", name)
        try:
            text = path.read_bytes().decode()  # as it is, with its line ends
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"perplexity.files: {path} cannot be read: {error}", "give files of UTF-8 text") from error
        if not text:
            raise InputError(f"perplexity.files: {path} is empty", "leave it out")
        texts.append(text)
    return texts
