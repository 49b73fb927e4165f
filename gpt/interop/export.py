"""Writing weights in the formats of others."""

from pathlib import Path
from types import ModuleType

from gpt.errors import InputError
from gpt.interop import hf_export, llmc
from gpt.interop.read import read_header, read_pretrained

# What can be written. Each has check_holds(header) and write(pretrained, out, dtype).
FORMATS: dict[str, ModuleType] = {"hf": hf_export, "llmc": llmc}
DTYPES = ("fp32", "bf16")


def export(source: str, to: str, out: Path, dtype: str) -> None:
    """Write the weights of a source in another format. Raises InputError; what was there stays as it was."""
    # All that can be wrong comes before the tensors are read.
    if out.exists():
        raise InputError(f"out={out} is there already", "delete it, or give another name")
    kind = FORMATS[to]
    kind.check_holds(read_header(source))
    pretrained = read_pretrained(source)
    kind.check_holds(pretrained)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        kind.write(pretrained, out, dtype)
    except OSError as error:
        raise InputError(f"out={out} cannot be written: {error}", "make room, or give another place") from error
