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

from data import files
from data.sources.base import FileRows, Rows
from data.sources.pieces import Cursor, Row, clean, decode
from gpt.config.schema import HubConfig
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
        """See :class:`data.sources.base.Source`."""
        return cursor["rows"] / self.n_rows if self.n_rows else 0

    def builder(self) -> DatasetBuilder:
        """What the library knows of the dataset."""
        return load_dataset_builder("parquet", data_files={"train": [str(path) for path in self.paths]})

    @property
    def splits(self) -> dict[str, str | None]:
        """The dataset's splits that are read, and what they are for, where that is not for the hash to say."""
        return {"train": None}

    def parts(self) -> Iterator[tuple[str | None, IterableDataset]]:
        """What is read one after the other, each with what it is for."""
        builder = self.builder()
        if self.n_rows is None:
            self.n_rows = count_rows(builder, list(self.splits))
        for split, part in self.splits.items():
            yield part, builder.as_streaming_dataset(split)

    def rows(self, cursor: Cursor | None) -> Iterator[Row]:
        """See :class:`data.sources.base.Rows`; goes on by itself where the network has failed for a moment."""
        failures = 0
        while True:
            try:
                for row in self._rows(cursor):
                    cursor, failures = row.after, 0
                    yield row
                return
            except Exception as error:
                failures = wait(error, failures, self.describe(), self.cure)

    def _rows(self, cursor: Cursor | None) -> Iterator[Row]:
        cursor = cursor or {"part": 0, "state": None, "row": 0, "rows": 0}
        for number, (split, dataset) in enumerate(self.parts()):
            if number < cursor["part"]:
                continue
            dataset = dataset.with_format("arrow")
            if cursor["state"]:
                dataset.load_state_dict(cursor["state"])
            for table in dataset.iter(ROWS):
                for text in self.texts(table, cursor["row"]):
                    after = cursor | {"row": cursor["row"] + 1, "rows": cursor["rows"] + 1}
                    after.pop("skip", None)
                    yield Row(text, split, cursor, after)
                    cursor = after
                cursor = cursor | {"state": position(dataset.state_dict()), "row": 0}
            cursor = cursor | {"part": number + 1, "state": None, "row": 0}

    def texts(self, table: pa.Table, first: int) -> Iterator[str]:
        """The text column from a row on. Raises InputError where there is none."""
        column = self.data.column
        if column not in table.column_names:
            raise InputError(
                f"data={self.data.name} has no column {column}",
                f"there: {', '.join(table.column_names)}; choose one with data.column=…",
            )
        kind = table.schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
            raise InputError(f"column {column} holds {kind}, no text", "choose another with data.column=…")
        for raw in table[column].slice(first).cast(pa.large_binary()).to_pylist():
            yield clean(decode(raw or b"", self.data.invalid_utf8, f"a text in column {column}"))


class Hub(Parquet):
    """A dataset of Hugging Face's hub, in whatever format it lies there."""

    cure = "see data.config, data.split; a dataset that is a script has data.revision=refs/convert/parquet"

    def __init__(self, data: HubConfig, cache_dir: Path):
        Rows.__init__(self, data, cache_dir)
        if not data.path:
            raise InputError(f"data={data.name} names no dataset", "give data.path=OWNER/NAME of one on the hub")

    def inputs(self) -> Any:
        """See :class:`data.sources.base.Source`."""
        d = self.data
        return [d.path, d.config, d.split, d.val_split, d.revision, *self.choices]

    def describe(self) -> str:
        """See :class:`data.sources.base.Source`."""
        return f"{self.data.path} ({self.data.config or 'default'}, {' and '.join(self.splits)})"

    def resolve(self) -> str | None:
        """See :class:`data.sources.base.Source`: asks the hub which commit ``data.revision`` is now."""
        failures = 0
        while self.revision is None:
            try:
                self.revision = HfApi().dataset_info(self.data.path, revision=self.data.revision).sha
            except Exception as error:
                failures = wait(error, failures, self.data.path, self.cure, PATIENCE[:2])  # nothing is lost yet
        return self.revision

    def builder(self) -> DatasetBuilder:
        """See :class:`Parquet`."""
        return load_dataset_builder(self.data.path, self.data.config, revision=self.revision)

    @property
    def splits(self) -> dict[str, str | None]:
        """See :class:`Parquet`."""
        train, val = self.data.split, self.data.val_split
        return {train: "train", val: "val"} if val else {train: None}

    def parts(self) -> Iterator[tuple[str | None, IterableDataset]]:
        """See :class:`Parquet`."""
        if self.data.streaming:
            yield from super().parts()
            return
        builder = self.builder()
        builder.download_and_prepare()
        self.n_rows = sum(builder.info.splits[split].num_examples for split in self.splits)
        for split, part in self.splits.items():
            yield part, builder.as_dataset(split).to_iterable_dataset()


def count_rows(builder: DatasetBuilder, splits: list[str]) -> int | None:
    """How many rows a dataset of parquet files has; None where only reading all of it would tell.

    Raises InputError for a file that is none.
    """
    data_files = builder.config.data_files or {}
    names = [str(name) for split in splits for name in data_files.get(split, [])]
    if not names or len(names) > MAX_FOOTERS or not all(name.endswith(".parquet") for name in names):
        return None
    n_rows = 0
    for name in names:
        with fsspec.open(name, "rb") as file:
            try:
                n_rows += pq.read_metadata(file).num_rows
            except pa.ArrowInvalid as error:
                raise InputError(f"{name} is no whole parquet file: {first_line(error)}", files.FETCH_AGAIN) from error
    return n_rows


def position(state: dict[str, Any]) -> dict[str, Any]:
    """Where a stream goes on, without how far the library had read ahead: that depends on where it was resumed."""
    rows = state["examples_iterable"]
    if rows.get("previous_state"):
        rows["examples_iterable"] = rows["previous_state"]
    return state


def wait(error: Exception, failures: int, what: str, cure: str, patience: list[int] = PATIENCE) -> int:
    """After a failure of the network, wait a while; returns how many there were in a row.

    Raises TrainingError after too many of them, and what is no failure of the network as :func:`explained` puts it.
    """
    library = type(error).__module__.partition(".")[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    is_network = isinstance(error, ConnectionError | TimeoutError) or library in NETWORK or status is not None
    is_offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    is_missing = type(error).__name__ in MISSING or (status is not None and status < 500 and status != 429)
    if not is_network or is_offline or is_missing:
        raise explained(error, what, is_network and is_offline, is_missing, cure) from error
    if failures == len(patience):
        raise TrainingError(
            f"{what}: the hub cannot be reached: {first_line(error)}\n"
            "  check the network (HF_ENDPOINT, HTTPS_PROXY) and give the command again, which goes on where it was;\n"
            f"  {LOCAL_COPY}"
        ) from error
    say(f"{what}: {first_line(error)}; trying again in {patience[failures]} s")
    time.sleep(patience[failures])
    return failures + 1


def explained(error: Exception, what: str, is_offline: bool, is_missing: bool, cure: str) -> Exception:
    """What the user can do about an error of the library, or the error itself."""
    if is_offline:
        return InputError(
            f"{what} is on the hub, and HF_HUB_OFFLINE is set", f"unset it to fetch the data, {LOCAL_COPY}"
        )
    if is_missing:
        return InputError(
            f"{what} is not on the hub, or not for everyone: {first_line(error)}",
            f"correct data.path and data.revision, log in (HF_TOKEN=…), {LOCAL_COPY}",
        )
    is_damaged = isinstance(error, OSError) and error.errno is None  # pyarrow's
    if is_damaged or isinstance(error, ValueError | RuntimeError | FileNotFoundError):
        return InputError(f"{what} cannot be read: {first_line(error)}", cure)
    return error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
