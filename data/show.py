"""Say what prepared data holds: python -m data.show data=stdlib [documents=3] [png=FILE]

Where it comes from, counts, a few documents, the most frequent tokens, the lengths of documents; both distributions as
a plot too. Takes the overrides of data.prepare, and prepares nothing.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from rich.console import Console
from rich.table import Table

from data.manifest import MANIFEST, read_manifest
from data.preparation import open_prepared, prepared_directory
from gpt.cli import command
from gpt.errors import InputError
from gpt.tokens.tokenfile import TokenFile
from gpt.tokens.tokenizer import get_tokenizer, printable

COUNTED = 100_000_000  # tokens of which frequencies are counted, spread over all
BLOCK = 1_000_000
SHOWN = 120  # tokens of a document
COMMON = 12  # tokens in the list of the most frequent


def show(files: dict[str, TokenFile], directory: Path, n_documents: int, png: Path) -> None:
    """Print all, and draw the plot."""
    console, train = Console(highlight=False, markup=False), files["train"]
    tokenizer = get_tokenizer(train.tokenizer, train.chars)
    for line in provenance(directory, train):
        console.print(line, soft_wrap=True)
    lengths = {split: file.doc_lengths() for split, file in files.items()}
    console.print(counts(files, lengths))
    for start, length in spread(train, lengths["train"], n_documents):
        text = tokenizer.decode(train.reader()(start, start + min(length, SHOWN)).tolist())
        more = f" … {length - SHOWN:,} more" if length > SHOWN else ""
        console.print(f"\ndocument at token {start:,}, {length:,} tokens\n  {printable(text)}{more}", soft_wrap=True)
    frequencies = count_tokens(train)
    console.print(common(frequencies, tokenizer))
    unseen = int((frequencies == 0).sum())
    console.print(f"{unseen:,} of {train.vocab_size:,} tokens of the vocabulary do not occur in what was counted")
    draw(png, directory.name, frequencies, lengths)
    console.print(f"plot  {png}", soft_wrap=True)


def provenance(directory: Path, train: TokenFile) -> list[str]:
    """Where the data comes from, as far as its manifest says."""
    lines = [str(directory), f"tokenizer {train.tokenizer}, vocabulary {train.vocab_size:,}, stored as {train.dtype}"]
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory)
        revision = f" at {manifest['revision']}" if manifest["revision"] else ""
        lines.insert(1, f"from {manifest['source']}: {manifest['of']}{revision}")
        versions = [f"{name} {version}" for name, version in manifest["versions"].items()]
        lines.append(f"made with Python {manifest['python']}, {', '.join(versions)}")
    return lines


def counts(files: dict[str, TokenFile], lengths: dict[str, np.ndarray]) -> Table:
    """Tokens, documents and their lengths, by split."""
    table = Table("", *files, box=None)
    rows = {
        "tokens": lambda split: files[split].n_tokens,
        "shards": lambda split: len(files[split].shards),
        "bytes on disk": lambda split: sum(Path(shard.path).stat().st_size for shard in files[split].shards),
        "documents": lambda split: len(lengths[split]),
        "shortest": lambda split: int(lengths[split].min()) if len(lengths[split]) else 0,
        "median length": lambda split: int(np.median(lengths[split])) if len(lengths[split]) else 0,
        "longest": lambda split: int(lengths[split].max(initial=0)),
    }
    for name, value in rows.items():
        table.add_row(name, *(f"{value(split):>14,}" for split in files))
    return table


def spread(file: TokenFile, lengths: np.ndarray, n: int) -> list[tuple[int, int]]:
    """First token and length of n documents, spread over all."""
    offsets = file.doc_offsets()
    n = min(n, len(offsets))
    return [(int(offsets[i]), int(lengths[i])) for i in (np.arange(n) * len(offsets) // max(1, n)).tolist()]


def count_tokens(file: TokenFile) -> np.ndarray:
    """How often each token occurs, (vocab_size,)."""
    ids, frequencies = file.reader(), np.zeros(file.vocab_size, np.int64)
    blocks = -(-file.n_tokens // BLOCK)
    taken = min(blocks, COUNTED // BLOCK)
    for block in (np.arange(taken) * blocks // taken).tolist():
        held = ids(block * BLOCK, min(file.n_tokens, (block + 1) * BLOCK))
        frequencies += np.bincount(held, minlength=file.vocab_size)
    return frequencies


def common(frequencies: np.ndarray, tokenizer: tiktoken.Encoding) -> Table:
    """The most frequent tokens."""
    table = Table("token", "id", "share", box=None)
    for i in np.argsort(-frequencies, kind="stable")[:COMMON].tolist():
        shown = ascii(tokenizer.decode_bytes([i]).decode(errors="replace"))
        table.add_row(shown, str(i), f"{frequencies[i] / frequencies.sum():.2%}")
    return table


def draw(path: Path, title: str, frequencies: np.ndarray, lengths: dict[str, np.ndarray]) -> None:
    """The frequencies of tokens by rank, and the lengths of documents."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    above.loglog(np.arange(1, len(frequencies) + 1), np.sort(frequencies)[::-1], lw=1)
    above.set(title=title, xlabel="rank of the token", ylabel="times in training data")
    most = max(2, max(length.max(initial=1) for length in lengths.values()))
    bins = np.unique(np.geomspace(1, most + 1, 60).astype(int))
    for split, length in lengths.items():
        below.hist(length, bins=bins, histtype="step", label=f"{split}, {len(length):,} documents")
    if any(map(len, lengths.values())):  # nothing has no logarithm
        below.set(xscale="log", yscale="log")
    below.set(xlabel="tokens of the document", ylabel="documents")
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None})
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}", "choose another with png=FILE") from error


def main() -> None:
    from gpt.cli.compose import compose, parse  # above this room: only the command needs it

    own: dict[str, Any] = {
        o.key_or_group: o.value() for o in parse(sys.argv[1:]) if o.key_or_group in ("documents", "png")
    }
    n_documents = own.get("documents", 3)
    if type(n_documents) is not int or n_documents < 0:
        raise InputError(f"documents={n_documents} makes no sense", "allowed: a whole number, 0 or more")
    data = compose([a for a in sys.argv[1:] if a.partition("=")[0] not in own]).data
    directory = prepared_directory(data)
    png = own.get("png", f"outputs/data/{directory.name}.png")
    if not (isinstance(png, str) and png.endswith(".png")):
        raise InputError(f"png={png} is no PNG file", "allowed: png=FILE.png")
    files = dict(zip(("train", "val"), open_prepared(data, directory), strict=True))
    show(files, directory, n_documents, Path(png).expanduser())


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
