"""Datasets of Hugging Face's hub, and parquet files: the same reading, through the library datasets."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder, IterableDataset, load_dataset_builder
from huggingface_hub import HfApi

from data.pieces import Cursor, Row, clean, decode
from data.sources import files
from data.sources.base import FileRows, Rows, Source
from data.sources.jsonl import JsonLines
from gpt.config.schema import DataConfig, HubConfig
from gpt.console import say
from gpt.errors import InputError, TrainingError

ROWS = 256  # read at a time
MAX_FOOTERS = 200  # parquet files that are asked how many rows they have, before the reading
PATIENCE = [1, 2, 4, 8, 16]  # seconds to wait between attempts at a network that does not answer
NETWORK = {"httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp"}  # libraries whose errors are no bugs
MISSING = {"DatasetNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"}
LOCAL_COPY = "or give a local copy: data.files=['DIR/*.parquet']"

datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is raised as well


class Parquet(FileRows):
    """The parquet files of ``data.files``."""

    n_rows: int | None = None  # of all that is read, where that is known
    cure = "each is to be a whole parquet file, with the same columns: fetch what is damaged again, or leave it out"

    def share(self, cursor: Cursor) -> float:
        return cursor["rows"] / self.n_rows if self.n_rows else 0

    def builder(self) -> DatasetBuilder:
        """Return the library's description of the dataset."""
        names = [str(path) for path in self.paths]
        return load_dataset_builder("parquet", data_files={"train": names})

    @property
    def splits(self) -> dict[str, str | None]:
        """The dataset's splits that are read, and ours for each, None where that follows from the hash."""
        return {"train": None}

    def parts(self) -> Iterator[tuple[str | None, IterableDataset]]:
        """Yield the datasets that are read one after the other, each with its split."""
        builder = self.builder()
        if self.n_rows is None:
            self.n_rows = _count_rows(builder, list(self.splits))
        for name, split in self.splits.items():
            yield split, builder.as_streaming_dataset(name)

    def rows(self, cursor: Cursor | None) -> Iterator[Row]:
        """Yield the texts from ``cursor`` on, and go on after a failure of the network."""
        # Every row brings the cursor from which to go on after a failure.
        failures = 0
        while True:
            try:
                for row in self._rows(cursor):
                    cursor = row.after
                    failures = 0
                    yield row
                return
            except Exception as error:
                failures = _wait(error, failures, self.describe(), self.cure)

    def _rows(self, cursor: Cursor | None) -> Iterator[Row]:
        # ``state`` is the library's at the beginning of a table, ``row`` counts within it, ``rows`` in all.
        cursor = cursor or {"part": 0, "state": None, "row": 0, "rows": 0}
        for number, (split, dataset) in enumerate(self.parts()):
            if number < cursor["part"]:
                continue
            dataset = dataset.with_format("arrow")
            if cursor["state"]:
                dataset.load_state_dict(cursor["state"])

            # Row by row; the library's state is that after a whole table.
            for table in dataset.iter(ROWS):
                for text in self._texts(table, cursor["row"]):
                    after = cursor | {"row": cursor["row"] + 1, "rows": cursor["rows"] + 1}
                    after.pop("skip", None)
                    yield Row(text, split, cursor, after)
                    cursor = after
                state = _position(dataset.state_dict())
                cursor = cursor | {"state": state, "row": 0}
            cursor = cursor | {"part": number + 1, "state": None, "row": 0}

    def _texts(self, table: pa.Table, first: int) -> Iterator[str]:
        """Yield the text column from a row on. Raises InputError if there is none."""
        # The column must be there, and hold texts.
        name = self.data.column
        if name not in table.column_names:
            raise InputError(
                f"data={self.data.name} has no column {name}",
                f"there: {', '.join(table.column_names)}; choose one with data.column=…",
            )
        kind = table.schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
            raise InputError(
                f"column {name} holds {kind}, no text",
                "choose another with data.column=…",
            )

        # As bytes, because files can hold texts that are not UTF-8.
        column = table[name].slice(first).cast(pa.large_binary())
        for raw in column.to_pylist():
            yield clean(decode(raw or b"", self.data.invalid_utf8, f"a text in column {name}"))


class Hub(Parquet):
    """A dataset of Hugging Face's hub, in whatever format it has there."""

    cure = "see data.config, data.split; a dataset that is a script has data.revision=refs/convert/parquet"

    def __init__(self, data: HubConfig, cache_dir: Path):
        Rows.__init__(self, data, cache_dir)
        if not data.path:
            raise InputError(
                f"data={data.name} names no dataset",
                "give data.path=OWNER/NAME of one on the hub",
            )

    @classmethod
    def open(cls, data: DataConfig, cache_dir: Path) -> Source:
        """Return the dataset on the hub or, with ``data.files``, a local copy, read as the hub's own files are."""
        if not data.files:
            return cls(data, cache_dir)
        is_parquet = all(name.endswith(".parquet") for name in data.files)
        return Parquet(data, cache_dir) if is_parquet else JsonLines(data, cache_dir)

    def inputs(self) -> Any:
        data = self.data
        return [
            data.path,
            data.config,
            data.split,
            data.val_split,
            data.revision,
            *self.choices,
        ]

    def describe(self) -> str:
        config = self.data.config or "default"
        splits = " and ".join(self.splits)
        return f"{self.data.path} ({config}, {splits})"

    def resolve(self) -> str | None:
        """Return the commit that is read: that of the journal, or the one that ``data.revision`` is now."""
        failures = 0
        while self.revision is None:
            try:
                self.revision = HfApi().dataset_info(self.data.path, revision=self.data.revision).sha
            except Exception as error:
                failures = _wait(error, failures, self.data.path, self.cure, PATIENCE[:2])  # nothing is lost yet
        return self.revision

    def builder(self) -> DatasetBuilder:
        return load_dataset_builder(self.data.path, self.data.config, revision=self.revision)

    @property
    def splits(self) -> dict[str, str | None]:
        if self.data.val_split and self.data.val_fraction == 1:  # nothing is for training
            return {self.data.val_split: "val"}
        if self.data.val_split:
            return {self.data.split: "train", self.data.val_split: "val"}
        return {self.data.split: None}

    def parts(self) -> Iterator[tuple[str | None, IterableDataset]]:
        if self.data.streaming:
            yield from super().parts()
            return

        # All of it, fetched first.
        builder = self.builder()
        builder.download_and_prepare()
        self.n_rows = sum(builder.info.splits[name].num_examples for name in self.splits)
        for name, split in self.splits.items():
            yield split, builder.as_dataset(name).to_iterable_dataset()


def _count_rows(builder: DatasetBuilder, splits: list[str]) -> int | None:
    """Return the number of rows in parquet files; None for another format, or too many files to ask.

    Raises InputError for a file that is none.
    """
    # The number is in the footer of each file.
    data_files = builder.config.data_files or {}
    names: list[str] = []
    for split in splits:
        names += map(str, data_files.get(split, []))
    are_parquet = all(name.endswith(".parquet") for name in names)
    if not names or len(names) > MAX_FOOTERS or not are_parquet:
        return None
    n_rows = 0
    for name in names:
        with fsspec.open(name, "rb") as file:
            try:
                n_rows += pq.read_metadata(file).num_rows
            except pa.ArrowInvalid as error:
                raise InputError(
                    f"{name} is no whole parquet file: {_first_line(error)}",
                    files.FETCH_AGAIN,
                ) from error
    return n_rows


def _position(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a stream's state how far the library had read ahead, which depends on where it was resumed."""
    rows = state["examples_iterable"]
    if rows.get("previous_state"):
        rows["examples_iterable"] = rows["previous_state"]
    return state


def _wait(
    error: Exception,
    failures: int,
    name: str,
    cure: str,
    patience: list[int] = PATIENCE,
) -> int:
    """Wait after a failure of the network; returns how many there were in a row.

    Raises TrainingError after too many of them, and any other failure as :func:`_explain` puts it.
    """
    # The libraries have no common class for errors of the network.
    library = type(error).__module__.partition(".")[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    is_network = isinstance(error, ConnectionError | TimeoutError) or library in NETWORK or status is not None
    is_offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    is_refused = status is not None and status < 500 and status != 429
    is_missing = type(error).__name__ in MISSING or is_refused

    # No failure of the network, or one that waiting does not mend.
    if not is_network or is_offline or is_missing:
        raise _explain(error, name, is_network and is_offline, is_missing, cure) from error
    if failures == len(patience):
        raise TrainingError(
            f"{name}: the hub cannot be reached: {_first_line(error)}\n"
            "  check the network (HF_ENDPOINT, HTTPS_PROXY) and give the command again, which goes on where it was;\n"
            f"  {LOCAL_COPY}"
        ) from error
    say(f"{name}: {_first_line(error)}; trying again in {patience[failures]} s")
    time.sleep(patience[failures])
    return failures + 1


def _explain(
    error: Exception,
    name: str,
    is_offline: bool,
    is_missing: bool,
    cure: str,
) -> Exception:
    """Return an error that tells the user what to do, or the error itself."""
    if is_offline:
        return InputError(
            f"{name} is on the hub, and HF_HUB_OFFLINE is set",
            f"unset it to fetch the data, {LOCAL_COPY}",
        )
    if is_missing:
        return InputError(
            f"{name} is not on the hub, or not for everyone: {_first_line(error)}",
            f"correct data.path and data.revision, log in (HF_TOKEN=…), {LOCAL_COPY}",
        )

    # The files are not what they should be: anything else is a bug.
    is_damaged = isinstance(error, OSError) and error.errno is None  # pyarrow's
    if is_damaged or isinstance(error, ValueError | RuntimeError | FileNotFoundError):
        return InputError(f"{name} cannot be read: {_first_line(error)}", cure)
    return error


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its name."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
