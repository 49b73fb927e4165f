"""Continue a text with a trained model.

    python -m gpt.generate DIR [prompt=TEXT] [tokens=N] [samples=N] [KEY=VALUE] …

DIR, or checkpoint=DIR, is the output directory of a run (its last checkpoint is taken), or one of its checkpoints, such
as outputs/…/checkpoints/best. It may also be hf:gpt2 (-medium, -large, -xl), a folder of Hugging Face, llm.c's .bin,
or nanoGPT's ckpt.pt. Text is printed token by token. Keys that are not given are those of the run's config, or
else the defaults:

  prompt=TEXT       the text to continue; prompt=FILE:PATH takes a file's, prompt='[a,b]' continues several, and
                    prompt= begins a document. Without it, a terminal asks for one prompt after the other, and
                    anything else gets the run's sample.prompt
  samples=N         continuations of each prompt (1)
  tokens=N          tokens of each continuation (sample.tokens)
  temperature=T     divisor of the logits (sample.temperature)
  top_k=K           only the K likeliest tokens; null: all (sample.top_k)
  top_p=P           only the fewest likeliest tokens that have probability P; null: all (sample.top_p)
  seed=N            another text (seed); the same seed writes the same text
  weights=NAME      ema or average: an average of the weights that the run has kept
  device=NAME       auto, cpu, cuda or mps (device)

Of a prompt that is longer than the context, the model reads the end. Texts may be longer than the context, and
end-of-text does not end them.
"""

import sys
from typing import TYPE_CHECKING

from gpt.cli import command

if TYPE_CHECKING:
    from gpt.cli.generation import Arguments
    from gpt.config.schema import Config
    from gpt.notebook.model import LanguageModel


def main() -> None:
    from gpt.cli.generation import read_arguments

    arguments = read_arguments(sys.argv[1:])
    config, language_model = load(arguments)
    from gpt.device import cpu_threads  # torch, once the rest is right

    with cpu_threads(config.cluster.threads):
        if arguments.prompts is None and sys.stdin.isatty():
            ask_for_prompts(language_model, config, arguments.samples)
            return
        prompts = [config.sample.prompt or ""] if arguments.prompts is None else arguments.prompts
        write(language_model, config, prompts, arguments.samples)


def load(arguments: "Arguments") -> "tuple[Config, LanguageModel]":
    """Return the model that is to write, and the config that says how. Raises InputError."""
    from gpt.cli.evaluation import compose_for, find_model
    from gpt.errors import InputError

    header = find_model(str(arguments.source))
    config = compose_for(header, arguments.overrides)
    if config.sample.tokens == 0:
        raise InputError("sample.tokens=0: nothing is to be written", "give tokens=100, or any other number")
    from gpt.notebook.model import load_model  # torch, once the rest is right

    return config, load_model(header.source, config.device)


def ask_for_prompts(language_model: "LanguageModel", config: "Config", samples: int) -> None:
    """Continue what is typed, line by line, until the end of the input (Ctrl-D)."""
    import contextlib

    from gpt.errors import InputError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (lets a line be edited, and remembers earlier ones)

    print("Type a text to continue, or nothing to begin a document. Ctrl-D ends.", file=sys.stderr)
    n_written = 0
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        try:
            write(language_model, config, [prompt], samples, n_written)
        except InputError as error:  # a character that the model does not know
            print(error, file=sys.stderr)
        n_written += samples  # the same text again gets other continuations


def write(
    language_model: "LanguageModel", config: "Config", prompts: list[str], samples: int, n_before: int = 0
) -> None:
    """Print each prompt with its continuations, as they are drawn, after ``n_before`` others. Raises InputError."""
    from gpt.generate.rows import Row, decode_rows, in_order
    from gpt.generate.sampling import row_seed
    from gpt.generate.text import TextStream, sample_seed
    from gpt.tokens.tokenizer import prompt_ids

    # Every continuation has a seed by its number. The first one is the sample of the run at this step.
    tokenizer = language_model.tokenizer
    seed = sample_seed(config.seed, language_model.step)
    rows = []
    titles = []
    for number, prompt in enumerate(prompts, 1):
        ids = prompt_ids(tokenizer, prompt)
        say_what_is_read(len(ids), config.model.seq_len)
        for sample in range(1, samples + 1):
            rows.append(Row(ids, row_seed(seed, n_before + len(rows))))
            titles.append(f"--- prompt {number}, sample {sample}")

    pairs = in_order(decode_rows(language_model.model, rows, config.sample), config.sample.tokens)
    for title, row in zip(titles, rows, strict=True):
        if len(rows) > 1:
            print(title)
        text = TextStream(tokenizer)
        show("".join(map(text.add, row.ids)))
        for _ in range(config.sample.tokens):
            _, token = next(pairs)
            show(text.add(token))
        show(text.end() + "\n")


def say_what_is_read(n_tokens: int, seq_len: int) -> None:
    """Print a line where a prompt is longer than the context."""
    if n_tokens > seq_len:
        line = f"the prompt has {n_tokens:,} tokens: its last {seq_len:,} are read, the context of the model"
        print(line, file=sys.stderr)


def show(text: str) -> None:
    """Print text at once. A terminal gets a dot for every character that would control it."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else "·" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
