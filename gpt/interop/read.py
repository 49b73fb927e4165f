"""Reading weights, whichever format they are in."""

from pathlib import Path
from types import ModuleType

from gpt.errors import InputError
from gpt.files import as_path
from gpt.interop import hf, hub, llmc, nanogpt, own
from gpt.interop.pretrained import Header, Pretrained

# What can be read. Each has matches(path), read_header(source, path), and read_tensors(path, header).
FORMATS: list[ModuleType] = [own, hf, llmc, nanogpt]
ALLOWED = (
    "allowed: the output directory of a run, a checkpoint, a Hugging Face folder of GPT-2 or Llama, llm.c's .bin, "
    f"nanoGPT's ckpt.pt, or {', '.join(hub.SCHEME + name for name in hub.MODELS)}"
)


def read_header(source: str) -> Header:
    """Read what weights say of themselves, and check them as far as that goes without reading all of them.

    Needs no torch, but for nanoGPT's ckpt.pt, and fetches nothing. Raises InputError.
    """
    if hub.is_hub(source):
        return hub.read_header(source)
    path = _find(source)
    return _format_of(source, path).read_header(source, path)


def fetch(source: str) -> None:
    """Fetch what is not on this machine, so that it can be read. Raises InputError if that is not possible."""
    if hub.is_hub(source):
        hub.fetch(source)


def read_pretrained(source: str) -> Pretrained:
    """Read weights and all that is known of them; those of a name on the hub are fetched if need be.

    Raises InputError.
    """
    path = hub.fetch(source) if hub.is_hub(source) else _find(source)
    kind = _format_of(source, path)
    header = kind.read_header(source, path)
    return Pretrained.of(header, kind.read_tensors(path, header))


def _find(source: str) -> Path:
    """Return the path of a source on this machine. Raises InputError where nothing is there."""
    if not source:
        raise InputError("an empty name is no source of weights", ALLOWED)
    path = as_path("source", source.removeprefix(hub.SCHEME))
    if source.startswith(hub.SCHEME) and not path.is_dir():
        hub.name_of(source)
    if not path.exists():
        raise InputError(f"{source}: nothing is there", ALLOWED)
    return path


def _format_of(source: str, path: Path) -> ModuleType:
    """Return the format of a file or a directory. Raises InputError for what is none of them."""
    for kind in FORMATS:
        if kind.matches(path):
            return kind
    raise InputError(f"{source} holds no weights that can be read", ALLOWED)
