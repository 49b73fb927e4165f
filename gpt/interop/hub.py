"""GPT-2's weights on Hugging Face's hub, fetched into its cache."""

from pathlib import Path

from gpt.config.load import model_option
from gpt.errors import InputError
from gpt.interop.hf import CONFIG, NAME, WEIGHTS
from gpt.interop.pretrained import Header
from gpt.tokens.tokenizer import VOCAB_SIZES

SCHEME = "hf:"
OWNER = "openai-community"  # OpenAI's weights, as Hugging Face has converted them
# The names on the hub, with our options of the same size.
MODELS = {"gpt2": "gpt2_124m", "gpt2-medium": "gpt2_355m", "gpt2-large": "gpt2_774m", "gpt2-xl": "gpt2_1558m"}


def is_hub(source: str) -> bool:
    """Return whether a source is on the hub; one that begins so may also be a folder here: hf:FOLDER."""
    return source.startswith(SCHEME) and not Path(source.removeprefix(SCHEME)).expanduser().is_dir()


def name_of(source: str) -> str:
    """Return the name of a source on the hub. Raises InputError for one that is not GPT-2."""
    name = source.removeprefix(SCHEME)
    if name not in MODELS:
        listed = ", ".join(SCHEME + known for known in MODELS)
        raise InputError(f"{source} is not known", f"allowed: {listed}, or a folder here with {CONFIG} and {WEIGHTS}")
    return name


def read_header(source: str) -> Header:
    """Return the header of weights on the hub, which is known without fetching them. Raises InputError."""
    return Header(
        source=source,
        format=NAME,
        model=model_option(MODELS[name_of(source)]),
        vocab_size=VOCAB_SIZES["gpt2"],
        tokenizer="gpt2",
        chars=None,
    )


def fetch(source: str) -> Path:
    """Return the folder with the weights, fetched now if they are not in Hugging Face's cache. Raises InputError."""
    from huggingface_hub import snapshot_download

    # The library raises errors of its own, of its HTTP client, and of the disk.
    repository = f"{OWNER}/{name_of(source)}"
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:
        raise InputError(
            f"{source} cannot be fetched: {type(error).__name__}",
            f"fetch {CONFIG} and {WEIGHTS} by hand from https://huggingface.co/{repository}/tree/main into a folder, "
            f"and give the folder in place of {source}",
        ) from error
