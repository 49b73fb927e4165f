"""Describe prepared data: python -m data.show data=stdlib [documents=3] [png=FILE] [verify=true]

Where it comes from, counts, a few documents, the most frequent tokens, the lengths of documents; both distributions as
a plot too. With verify=true it reads all tokens again instead, and says of each file whether they are what was written.
Takes the overrides of data.prepare, and prepares nothing.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from rich.console import Console
from rich.table import Table

from data.manifest import MANIFEST, read_manifest, recorded_shards
from data.preparation import open_prepared, prepared_directory
from gpt.cli import command
from gpt.errors import InputError
from gpt.tokens.tokenfile import DAMAGED, TokenFile, open_tokens, read_shard
from gpt.tokens.tokenizer import get_tokenizer, printable

MAX_COUNTED = 100_000_000  # tokens of which frequencies are counted, spread over all
BLOCK = 1_000_000
MAX_SHOWN = 120  # tokens of a document
N_COMMON = 12  # tokens in the list of the most frequent


def show(files: dict[str, TokenFile], directory: Path, n_documents: int, png: Path) -> None:
    """Print all, and draw the plot."""
    console = Console(highlight=False, markup=False)
    train = files["train"]
    tokenizer = get_tokenizer(train.tokenizer, train.chars)
    for line in _provenance(directory, train):
        console.print(line, soft_wrap=True)

    # Documents: how many, how long, and a few of them.
    lengths = {split: file.doc_lengths() for split, file in files.items()}
    console.print(_counts(files, lengths))
    for start, length in _spread_documents(train, lengths["train"], n_documents):
        ids = train.reader()(start, start + min(length, MAX_SHOWN))
        text = printable(tokenizer.decode(ids.tolist()))
        if length > MAX_SHOWN:
            text += f" … {length - MAX_SHOWN:,} more"
        console.print(f"\ndocument at token {start:,}, {length:,} tokens\n  {text}", soft_wrap=True)

    # Tokens: which are frequent, and how many never occur.
    frequencies = _count_tokens(train)
    console.print(_most_frequent(frequencies, tokenizer))
    n_unseen = int((frequencies == 0).sum())
    console.print(f"{n_unseen:,} of {train.vocab_size:,} tokens of the vocabulary do not occur in what was counted")
    _draw(png, directory.name, frequencies, lengths)
    console.print(f"plot  {png}", soft_wrap=True)


def _provenance(directory: Path, train: TokenFile) -> list[str]:
    """Return lines about the origin of the data, as far as its manifest has it."""
    lines = [str(directory), f"tokenizer {train.tokenizer}, vocabulary {train.vocab_size:,}, stored as {train.dtype}"]
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory)
        revision = f" at {manifest['revision']}" if manifest["revision"] else ""
        lines.insert(1, f"from {manifest['source']}: {manifest['of']}{revision}")
        versions = [f"{name} {version}" for name, version in manifest["versions"].items()]
        lines.append(f"made with Python {manifest['python']}, {', '.join(versions)}")
    return lines


def _counts(files: dict[str, TokenFile], lengths: dict[str, np.ndarray]) -> Table:
    """Return a table of tokens, documents and their lengths, by split."""
    # A column for each split; its keys are the names of the rows.
    columns = []
    for split, file in files.items():
        shards = [Path(shard.path) for shard in file.shards]
        n_tokens = lengths[split]
        has_documents = len(n_tokens) > 0
        columns.append(
            {
                "tokens": file.n_tokens,
                "shards": len(shards),
                "bytes on disk": sum(path.stat().st_size for path in shards),
                "documents": len(n_tokens),
                "shortest": int(n_tokens.min()) if has_documents else 0,
                "median length": int(np.median(n_tokens)) if has_documents else 0,
                "longest": int(n_tokens.max(initial=0)),
            }
        )
    table = Table("", *files, box=None)
    for name in columns[0]:
        table.add_row(name, *[f"{column[name]:>14,}" for column in columns])
    return table


def _spread_documents(file: TokenFile, lengths: np.ndarray, n: int) -> list[tuple[int, int]]:
    """Return first token and length of n documents, spread over all."""
    offsets = file.doc_offsets()
    n = min(n, len(offsets))
    chosen = np.arange(n) * len(offsets) // max(1, n)
    return list(zip(offsets[chosen].tolist(), lengths[chosen].tolist(), strict=True))


def _count_tokens(file: TokenFile) -> np.ndarray:
    """Return the frequency of each token, (vocab_size,)."""
    # Blocks are spread over the file: its parts can be of different kinds.
    read = file.reader()
    frequencies = np.zeros(file.vocab_size, np.int64)
    n_blocks = -(-file.n_tokens // BLOCK)  # rounded up
    n_counted = min(n_blocks, MAX_COUNTED // BLOCK)
    for block in (np.arange(n_counted) * n_blocks // n_counted).tolist():
        ids = read(block * BLOCK, min(file.n_tokens, (block + 1) * BLOCK))
        frequencies += np.bincount(ids, minlength=file.vocab_size)
    return frequencies


def _most_frequent(frequencies: np.ndarray, tokenizer: tiktoken.Encoding) -> Table:
    table = Table("token", "id", "share", box=None)
    for i in np.argsort(-frequencies, kind="stable")[:N_COMMON].tolist():
        token = tokenizer.decode_bytes([i]).decode(errors="replace")
        share = frequencies[i] / frequencies.sum()
        table.add_row(ascii(token), str(i), f"{share:.2%}")
    return table


def _draw(path: Path, title: str, frequencies: np.ndarray, lengths: dict[str, np.ndarray]) -> None:
    """Draw the frequencies of tokens by rank, and the lengths of documents."""
    import matplotlib.figure

    # Above: Zipf's law, if the tokens are words.
    figure = matplotlib.figure.Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    ranks = np.arange(1, len(frequencies) + 1)
    above.loglog(ranks, np.sort(frequencies)[::-1], lw=1)
    above.set(title=title, xlabel="rank of the token", ylabel="times in training data")

    # Below: a histogram of both splits in bins of equal width on a logarithmic axis.
    longest = max(2, *[int(n_tokens.max(initial=1)) for n_tokens in lengths.values()])
    edges = np.geomspace(1, longest + 1, 60)
    bins = np.unique(edges.astype(int))
    for split, n_tokens in lengths.items():
        below.hist(n_tokens, bins=bins, histtype="step", label=f"{split}, {len(n_tokens):,} documents")
    if any(len(n_tokens) for n_tokens in lengths.values()):  # nothing has no logarithm
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


def verify(directory: Path) -> None:
    """Read all tokens again, and print of each file whether they are what was written.

    Raises InputError for files that are not, and where there is no prepared data.
    """
    # The manifest is one witness, the attributes of each file are the other.
    recorded = recorded_shards(directory)
    altered = []
    for split in ("train", "val"):
        for shard in open_tokens(directory / f"{split}.h5").shards:
            path = Path(shard.path)
            _, damage = read_shard(path, recorded.get(path.name, {}))
            outcome = f"ALTERED: {damage}" if damage else "as written"
            print(f"{path}  {shard.n_tokens:,} tokens  {outcome}", flush=True)
            if damage:
                altered.append(path.name)
    if altered:
        raise InputError(f"altered since it was written: {', '.join(altered)}", DAMAGED)


def main() -> None:
    from gpt.cli.compose import compose, parse  # above data/: only the command needs it

    # The arguments of this command, and the overrides of the config.
    own: dict[str, Any] = {"documents": 3, "png": None, "verify": False}
    overrides = []
    for override in parse(sys.argv[1:]):
        if override.key_or_group in own:
            own[override.key_or_group] = override.value()
        else:
            overrides.append(override.input_line)
    if type(own["documents"]) is not int or own["documents"] < 0:
        raise InputError(f"documents={own['documents']} makes no sense", "allowed: a whole number, 0 or more")
    if type(own["verify"]) is not bool:
        raise InputError(f"verify={own['verify']} makes no sense", "allowed: true or false")
    data = compose(overrides).data
    directory = prepared_directory(data)
    if own["verify"]:
        verify(directory)
        return

    png = f"outputs/data/{directory.name}.png" if own["png"] is None else own["png"]
    if not (isinstance(png, str) and png.endswith(".png")):
        raise InputError(f"png={png} is no PNG file", "allowed: png=FILE.png")
    train, val = open_prepared(data, directory)
    show({"train": train, "val": val}, directory, own["documents"], Path(png).expanduser())


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
