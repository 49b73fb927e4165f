"""JSON lines: an object a line, one of whose keys holds the text of a document."""

import functools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from data.pieces import MAX_DOCUMENT, REPLACE, SURROGATE, Cursor, Row, clean, decode
from data.sources import files
from data.sources.base import FileRows
from gpt.errors import InputError

ONE_OBJECT = "each line is to be one JSON object"


class JsonLines(FileRows):
    """The files of ``data.files``."""

    def share(self, cursor: Cursor) -> float:
        return self._extent.share(cursor["file"], cursor["byte"])

    @functools.cached_property
    def _extent(self) -> files.Extent:
        return files.Extent(self.paths)

    def rows(self, cursor: Cursor | None) -> Iterator[Row]:
        # A line is a row; empty lines are none.
        cursor = cursor or {"file": 0, "byte": 0, "line": 0}
        for number in range(cursor["file"], len(self.paths)):
            path = self.paths[number]
            with files.open_file(path, cursor["byte"]) as file:
                for raw in _lines(file):
                    line = cursor["line"] + 1
                    where = f"{path}, line {line}"
                    if len(raw) > MAX_DOCUMENT:
                        raise InputError(
                            f"{where} is longer than {MAX_DOCUMENT:,} bytes",
                            f"{ONE_OBJECT}, with one document",
                        )

                    # The next line, or the next file, is read from here.
                    after = {"file": number, "byte": cursor["byte"] + len(raw), "line": line}
                    if raw.strip():
                        yield Row(self._text_of(raw, where), None, cursor, after)
                    cursor = after
            cursor = {"file": number + 1, "byte": 0, "line": 0}

    def _text_of(self, raw: bytes, where: str) -> str:
        """Return the text in a line. Raises InputError, with ``where``, when there is none."""
        # An object that has the column.
        column = self.data.column
        record = _parse(clean(decode(raw, self.data.invalid_utf8, where)), where)
        if not isinstance(record, dict) or column not in record:
            columns = ", ".join(record) if isinstance(record, dict) else "no object"
            raise InputError(
                f"{where}: no column {column}",
                f"there: {columns}; choose one with data.column=…",
            )

        # A text that UTF-8 can hold.
        text = record[column]
        if not isinstance(text, str | None):
            raise InputError(
                f"{where}: column {column} holds no text: {text!r:.40}",
                "choose another with data.column=…",
            )
        if text and self.data.invalid_utf8 == "refuse" and SURROGATE.search(text):
            raise InputError(
                f"{where}: half a character, as \\ud83d without what follows",
                REPLACE,
            )
        return clean(text or "")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines, and of one that is too long as much as tells that it is."""
    while raw := file.readline(MAX_DOCUMENT + 1):
        yield raw


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply", ONE_OBJECT) from error
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}", ONE_OBJECT) from error
