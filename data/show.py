"""Describe prepared data: python -m data.show data=stdlib [documents=3] [png=FILE] [verify=true]

Where it comes from, counts, a few documents, the most frequent tokens, the lengths of documents; both distributions as
a plot too. With verify=true it reads all tokens again instead, and says of each file whether they are what was written.
Takes the overrides of data.prepare, and prepares nothing.
"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tiktoken
from rich.console import Console
from rich.table import Table

from data.manifest import MANIFEST, read_manifest, recorded_shards
from data.preparation import open_prepared, parts, prepared_directory
from gpt.cli import command
from gpt.cli.arguments import split_arguments
from gpt.cli.compose import compose
from gpt.errors import InputError
from gpt.tokens.shard import DAMAGED, read_shard
from gpt.tokens.tokenfile import TokenFile, open_tokens
from gpt.tokens.tokenizer import get_tokenizer, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COUNTED = 100_000_000  # tokens of which frequencies are counted, spread over all
BLOCK = 1_000_000
MAX_SHOWN = 120  # tokens of a document
N_COMMON = 12  # tokens in the list of the most frequent


def show(files: dict[str, TokenFile], directory: Path, n_documents: int, png: Path) -> None:
    """Print all, and draw the plot."""
    console = Console(highlight=False, markup=False)
    first = next(iter(files.values()))
    tokenizer = get_tokenizer(first.tokenizer, first.chars)

    # Where it comes from.
    for line in _provenance(directory, first):
        console.print(line, soft_wrap=True)

    # Documents: how many, how long, and a few of them.
    lengths = {}
    for split, file in files.items():
        lengths[split] = file.doc_lengths()
    console.print(_counts(files, lengths))
    read = first.reader()
    for start, length in _spread_documents(first, next(iter(lengths.values())), n_documents):
        n_shown = min(length, MAX_SHOWN)
        ids = read(start, start + n_shown)
        text = printable(tokenizer.decode(ids.tolist()))
        if n_shown < length:
            text += f" … {length - n_shown:,} more"
        heading = f"document at token {start:,}, {length:,} tokens"
        console.print(f"\n{heading}\n  {text}", soft_wrap=True)

    # Tokens: which are frequent, and how many never occur.
    frequencies = _count_tokens(first)
    console.print(_most_frequent(frequencies, tokenizer))
    n_unseen = np.count_nonzero(frequencies == 0)
    console.print(
        f"{n_unseen:,} of {first.vocab_size:,} tokens of the vocabulary do not occur in what was counted",
    )

    # Both distributions as a plot.
    _draw(png, directory.name, frequencies, lengths)
    console.print(f"plot  {png}", soft_wrap=True)


def _provenance(directory: Path, file: TokenFile) -> list[str]:
    """Return lines about the origin of the data, as far as its manifest has it."""
    tokens = f"tokenizer {file.tokenizer}, vocabulary {file.vocab_size:,}, stored as {file.dtype}"
    if not (directory / MANIFEST).exists():
        return [str(directory), tokens]

    # Its source, and the versions that made it.
    manifest = read_manifest(directory)
    origin = f"from {manifest['source']}: {manifest['of']}"
    if manifest["revision"]:
        origin += f" at {manifest['revision']}"
    versions = [f"Python {manifest['python']}"]
    for name, version in manifest["versions"].items():
        versions.append(f"{name} {version}")
    return [
        str(directory),
        origin,
        tokens,
        f"made with {', '.join(versions)}",
    ]


def _counts(files: dict[str, TokenFile], lengths: dict[str, np.ndarray]) -> Table:
    """Return a table of tokens, documents and their lengths, by split."""
    # A column for each split; its keys are the names of the rows.
    columns = []
    for split, file in files.items():
        n_bytes = sum(Path(shard.path).stat().st_size for shard in file.shards)
        n_tokens = lengths[split]
        some_length = n_tokens if len(n_tokens) else np.zeros(1)  # without documents, all is 0
        column = {
            "tokens": file.n_tokens,
            "shards": len(file.shards),
            "bytes on disk": n_bytes,
            "documents": len(n_tokens),
            "shortest": int(some_length.min()),
            "median length": int(np.median(some_length)),
            "longest": int(some_length.max()),
        }
        columns.append(column)

    table = Table("", *files, box=None)
    for name in columns[0]:
        cells = [f"{column[name]:>14,}" for column in columns]
        table.add_row(name, *cells)
    return table


def _spread_documents(file: TokenFile, lengths: np.ndarray, n: int) -> list[tuple[int, int]]:
    """Return first token and length of n documents, spread over all."""
    offsets = file.doc_offsets()
    n = min(n, len(offsets))
    positions = np.arange(n) * len(offsets)
    chosen = positions // max(1, n)
    starts = offsets[chosen].tolist()
    sizes = lengths[chosen].tolist()
    return list(zip(starts, sizes, strict=True))


def _count_tokens(file: TokenFile) -> np.ndarray:
    """Return the frequency of each token, (vocab_size,)."""
    # Blocks are spread over the file: its parts can be of different kinds.
    read = file.reader()
    frequencies = np.zeros(file.vocab_size, np.int64)
    n_blocks = math.ceil(file.n_tokens / BLOCK)
    n_counted = min(n_blocks, MAX_COUNTED // BLOCK)
    counted = np.arange(n_counted) * n_blocks // n_counted
    for block in counted.tolist():
        start = block * BLOCK
        stop = min(file.n_tokens, start + BLOCK)
        ids = read(start, stop)
        frequencies += np.bincount(ids, minlength=file.vocab_size)
    return frequencies


def _most_frequent(frequencies: np.ndarray, tokenizer: tiktoken.Encoding) -> Table:
    """Return a table of the most frequent tokens."""
    table = Table("token", "id", "share", box=None)
    total = frequencies.sum()
    by_frequency = np.argsort(-frequencies, kind="stable")
    for i in by_frequency[:N_COMMON].tolist():
        raw = tokenizer.decode_bytes([i])
        token = raw.decode(errors="replace")
        share = frequencies[i] / total
        table.add_row(ascii(token), str(i), f"{share:.2%}")
    return table


def _draw(
    path: Path,
    title: str,
    frequencies: np.ndarray,
    lengths: dict[str, np.ndarray],
) -> None:
    """Draw the frequencies of tokens by rank, and the lengths of documents."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(
        figsize=(8, 7),
        layout="constrained",
    )
    above, below = figure.subplots(2, 1)
    above.set_title(title)
    _draw_frequencies(above, frequencies)
    _draw_lengths(below, lengths)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None})
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error}",
            "choose another with png=FILE",
        ) from error


def _draw_frequencies(axes: "Axes", frequencies: np.ndarray) -> None:
    """Draw how often each token occurs, by rank: Zipf's law, if the tokens are words."""
    ranks = np.arange(1, len(frequencies) + 1)
    descending = np.sort(frequencies)[::-1]
    axes.loglog(ranks, descending, lw=1)
    axes.set(
        xlabel="rank of the token",
        ylabel="times in the data",
    )


def _draw_lengths(axes: "Axes", lengths: dict[str, np.ndarray]) -> None:
    """Draw a histogram of both splits' documents, in bins of equal width on a logarithmic axis."""
    longest = 2
    n_documents = 0
    for n_tokens in lengths.values():
        longest_of_split = int(n_tokens.max(initial=1))
        longest = max(longest, longest_of_split)
        n_documents += len(n_tokens)

    # Whole numbers, each once.
    edges = np.geomspace(1, longest + 1, 60)
    bins = np.unique(edges.astype(int))
    for split, n_tokens in lengths.items():
        label = f"{split}, {len(n_tokens):,} documents"
        axes.hist(n_tokens, bins=bins, histtype="step", label=label)
    axes.set(
        xlabel="tokens of the document",
        ylabel="documents",
    )
    if n_documents:  # nothing has no logarithm
        axes.set(xscale="log", yscale="log")
    axes.legend()


def verify(directory: Path, splits: list[str]) -> None:
    """Read all tokens again, and print of each file whether they are what was written.

    Raises InputError for files that are not, and where there is no prepared data.
    """
    # The manifest is one witness, the attributes of each file are the other.
    recorded = recorded_shards(directory)
    altered = []
    for split in splits:
        file = open_tokens(directory / f"{split}.h5")
        for shard in file.shards:
            path = Path(shard.path)
            _, damage = read_shard(path, recorded.get(path.name, {}))
            outcome = "as written"
            if damage:
                outcome = f"ALTERED: {damage}"
                altered.append(path.name)
            print(f"{path}  {shard.n_tokens:,} tokens  {outcome}", flush=True)
    if altered:
        names = ", ".join(altered)
        raise InputError(f"altered since it was written: {names}", DAMAGED)


def main() -> None:
    own, overrides = split_arguments(sys.argv[1:], {"documents": 3, "png": None, "verify": False})
    n_documents = own["documents"]
    if type(n_documents) is not int or n_documents < 0:
        raise InputError(
            f"documents={n_documents} makes no sense",
            "allowed: a whole number, 0 or more",
        )
    if type(own["verify"]) is not bool:
        raise InputError(f"verify={own['verify']} makes no sense", "allowed: true or false")

    # With verify=true nothing else is shown.
    config = compose(overrides)
    data = config.data
    directory = prepared_directory(data)
    if own["verify"]:
        verify(directory, parts(data))
        return

    png = own["png"]
    if png is None:
        png = f"outputs/data/{directory.name}.png"
    if not (isinstance(png, str) and png.endswith(".png")):
        raise InputError(f"png={png} is no PNG file", "allowed: png=FILE.png")
    train, val = open_prepared(data, directory)
    files = {"val": val} if train is None else {"train": train, "val": val}
    show(files, directory, n_documents, Path(png).expanduser())


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
