"""The command line of python -m gpt.generate."""

from dataclasses import dataclass
from pathlib import Path

from gpt.checkpoint.files import find_average
from gpt.cli.arguments import parse
from gpt.cli.command import directories_and_values
from gpt.errors import InputError

USAGE = "python -m gpt.generate DIR [prompt=TEXT] [tokens=N] [samples=N] [temperature=T] [top_k=K] [top_p=P] [seed=N]"
OF_SAMPLE = ("tokens", "temperature", "top_k", "top_p")  # keys of the config's section sample
OF_CONFIG = ("seed", "device")  # and outside the sections
OWN = (*OF_SAMPLE, *OF_CONFIG, "samples", "weights")
MOST_SAMPLES = 10_000  # of a prompt
FROM_FILE = "FILE:"  # as in nanoGPT's sample.py


@dataclass(slots=True)
class Arguments:
    """What a command line says. ``prompts`` is None where it has none; "" is the start of a document."""

    source: Path
    prompts: list[str] | None
    samples: int
    overrides: list[str]


def read_arguments(argv: list[str]) -> Arguments:
    """Return what the arguments say. Raises InputError."""
    # A prompt is text as typed: it may be empty, and hold what no path and no override can.
    typed = [argument.removeprefix("prompt=") for argument in argv if argument.startswith("prompt=")]
    others = [argument.removeprefix("checkpoint=") for argument in argv if not argument.startswith("prompt=")]
    if len(typed) > 1:
        raise InputError(f"{len(typed)} arguments prompt=", "several prompts are a list: 'prompt=[a,b]'")
    sources, values = directories_and_values(others, OWN, USAGE)
    if len(sources) > 1:
        raise InputError(f"{sources[1]}: one checkpoint writes, and {sources[0]} is given", f"usage: {USAGE}")

    # What the config of the run says too.
    overrides = []
    for key, value in values.items():
        if key in OF_SAMPLE:
            overrides.append(f"sample.{key}={value}")
        elif key in OF_CONFIG:
            overrides.append(f"{key}={value}")
    prompts = read_prompts(typed[0]) if typed else None
    source = find_average(sources[0], values["weights"]) if "weights" in values else sources[0]
    return Arguments(source, prompts, _number_of_samples(values), overrides)


def _number_of_samples(values: dict[str, str]) -> int:
    """Return how many continuations of each prompt are asked for: one, if nothing is said. Raises InputError."""
    text = values.get("samples", "1")
    number = int(text) if text.isdecimal() and len(text) <= len(str(MOST_SAMPLES)) else 0
    if not 1 <= number <= MOST_SAMPLES:
        raise InputError(f"samples={text} makes no sense", f"allowed: 1 to {MOST_SAMPLES:,}")
    return number


def read_prompts(text: str) -> list[str]:
    """Return the prompts that TEXT, FILE:PATH, or a list [a,b] of these mean. Raises InputError."""
    is_list = text.startswith("[") and text.endswith("]")
    if not is_list:
        return [_read_prompt(text)]
    (override,) = parse([f"prompt={text}"])
    prompts = []
    for item in override.value():
        if isinstance(item, list | dict):
            raise InputError(f"prompt={text}: {item} is no text", "a list of prompts is [a,b]; quoted: ['a, b','c']")
        prompts.append(_read_prompt("" if item is None else str(item)))
    if not prompts:
        raise InputError("prompt=[] has no prompt", "the start of a document is prompt=, without text")
    return prompts


def _read_prompt(text: str) -> str:
    """Return one prompt, from its file if it says so. Raises InputError."""
    if not text.startswith(FROM_FILE):
        return text
    path = Path(text.removeprefix(FROM_FILE)).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(f"prompt={text} cannot be read: {reason}", "FILE:PATH names a text file") from error
