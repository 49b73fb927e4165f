"""JSON lines: an object a line, one of whose keys holds the text of a document."""

import functools
import json
from collections.abc import Iterator

from data import files
from data.sources.base import FileRows
from data.sources.pieces import MAX_DOCUMENT, REPLACE, SURROGATE, Cursor, Row, clean, decode
from gpt.errors import InputError


class JsonLines(FileRows):
    """The files of ``data.files``."""

    def share(self, cursor: Cursor) -> float:
        """See :class:`data.sources.base.Source`."""
        return self.extent.share(cursor["file"], cursor["byte"])

    @functools.cached_property
    def extent(self) -> files.Extent:
        """The sizes of the files."""
        return files.Extent(self.paths)

    def rows(self, cursor: Cursor | None) -> Iterator[Row]:
        """See :class:`data.sources.base.Rows`."""
        cursor = cursor or {"file": 0, "byte": 0, "line": 0}
        for number in range(cursor["file"], len(self.paths)):
            path = self.paths[number]
            with files.opened(path, cursor["byte"]) as file:
                for raw in iter(lambda: file.readline(MAX_DOCUMENT + 1), b""):
                    if len(raw) > MAX_DOCUMENT:
                        raise InputError(
                            f"{path}, line {cursor['line'] + 1} is longer than {MAX_DOCUMENT:,} bytes",
                            "each line is to be one JSON object, with one document",
                        )
                    after = {"file": number, "byte": cursor["byte"] + len(raw), "line": cursor["line"] + 1}
                    if raw.strip():
                        yield Row(self.text_of(raw, f"{path}, line {after['line']}"), None, cursor, after)
                    cursor = after
            cursor = {"file": number + 1, "byte": 0, "line": 0}

    def text_of(self, raw: bytes, where: str) -> str:
        """The text in a line. Raises InputError, which says where, when there is none."""
        try:
            record = json.loads(clean(decode(raw, self.data.invalid_utf8, where)))
        except RecursionError as error:
            raise InputError(f"{where}: nested too deeply", "each line is to be one JSON object") from error
        except ValueError as error:
            raise InputError(f"{where}: not JSON: {error}", "each line is to be one JSON object") from error
        if not isinstance(record, dict) or self.data.column not in record:
            held = ", ".join(record) if isinstance(record, dict) else "no object"
            raise InputError(f"{where}: no column {self.data.column}", f"there: {held}; choose one with data.column=…")
        text = record[self.data.column]
        if not isinstance(text, str | None):
            raise InputError(
                f"{where}: column {self.data.column} holds no text: {text!r:.40}", "choose another with data.column=…"
            )
        if text and self.data.invalid_utf8 == "refuse" and SURROGATE.search(text):
            raise InputError(f"{where}: half a character, as \\ud83d without what follows", REPLACE)
        return clean(text or "")
