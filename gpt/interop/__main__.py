"""Write weights in the formats of others: python -m gpt.interop SOURCE to=hf out=FOLDER [dtype=bf16]

SOURCE is the output directory of a run (its last checkpoint is taken), one of its checkpoints, or weights of others: a
Hugging Face folder of GPT-2 or Llama, llm.c's .bin, nanoGPT's ckpt.pt, or hf:gpt2, hf:gpt2-medium, hf:gpt2-large,
hf:gpt2-xl.

  to=hf     a folder for Hugging Face's transformers: model.safetensors, tokenizer, and a model card
  to=llmc   a .bin for llm.c
  out=PATH  the folder, or the file; it must not be there yet
  dtype     fp32, or bf16

A model that the format cannot hold is refused, by the key of its config.
"""

import os
import sys

from gpt.cli import command
from gpt.config.values import check_names, did_you_mean
from gpt.errors import InputError
from gpt.files import as_path

OWN = ("to", "out", "dtype")  # arguments with a value
USAGE = "python -m gpt.interop SOURCE to=hf out=FOLDER [dtype=bf16]"


def main() -> None:
    from gpt.interop.export import DTYPES, FORMATS, export

    sources, given = _read_arguments(sys.argv[1:])
    if len(sources) != 1:
        problem = f"{' and '.join(sources)}: one is taken" if sources else "no source of weights is given"
        raise InputError(problem, f"usage: {USAGE}")
    for key in ("to", "out"):
        if not given.get(key):
            raise InputError(f"{key}= is not given", f"usage: {USAGE}")
    dtype = given.get("dtype", "fp32")
    check_names("to", given["to"], list(FORMATS))
    check_names("dtype", dtype, list(DTYPES))
    out = as_path("out", given["out"])
    export(sources[0], given["to"], out, dtype)
    print(f"{given['to']:<11} {out}")


def _read_arguments(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the sources among the arguments, and the values of the keys. Raises InputError."""
    sources = []
    values: dict[str, str] = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if key in values:
            raise InputError(f"{key}={values[key]} and {argument}: two values", f"give one; usage: {USAGE}")
        if key in OWN and equals:
            values[key] = value
        elif not os.path.exists(argument) and (equals or argument.startswith("-")):
            hint = did_you_mean(key.lstrip("-"), list(OWN))
            raise InputError(f"{argument}: no such argument, and nothing is there", f"usage: {USAGE}{hint}")
        else:
            sources.append(argument)
    return sources, values


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
