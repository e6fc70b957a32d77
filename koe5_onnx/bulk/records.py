"""Text files to records: JSON lines and CSV, row by row, so that a bad row costs nothing but itself.

JSON lines: an object a line; lines of white space are no rows. CSV: comma, double quotes, a header; empty
lines are no rows; a quoted field may hold line ends. Where quoting is broken the row's first line is bad and
reading goes on after it, so that a quote that never closes does not take the rest of the file along.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from koe5_onnx import InputError
from koe5_onnx.bulk.lines import MAX_RECORD_BYTES, Lines, LineTooLongError
from koe5_onnx.bulk.rows import decode

_PART_RECORDS = 128
_PART_BYTES = 4 << 20


@dataclass(frozen=True)
class Record:
    """One row of a text file."""

    line: int
    """Line that it begins at, from 1."""
    offset: int
    """Bytes before it, unpacked."""
    fields: dict[str, Any]
    reason: str | None = None
    """Why it is bad whatever its text; None where its fields could be read."""


def in_parts(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records some at a time; how many depends on the first one's place, but on nothing before it."""
    part: list[Record] = []
    for record in records:
        if part and (len(part) == _PART_RECORDS or record.offset - part[0].offset > _PART_BYTES):
            yield part
            part = []
        part.append(record)
    if part:
        yield part


class RecordFile(Protocol):
    """An open text file."""

    lines: Lines

    def records(self) -> Iterator[Record]:
        """The rows from the position of `lines` on."""

    def close(self) -> None:
        """Close the file."""


class JsonLines:
    """A file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.lines = Lines(path)

    def close(self) -> None:
        """Close the file."""
        self.lines.close()

    def records(self) -> Iterator[Record]:
        """The rows from the position of `lines` on."""
        lines = self.lines
        while True:
            offset, number = lines.offset, lines.line + 1
            try:
                content = next(lines)
            except StopIteration:
                return
            except LineTooLongError as error:
                yield Record(number, offset, {}, str(error))
                continue
            if content.strip():
                yield Record(number, offset, *_object_of(content))


def _object_of(content: bytes) -> tuple[dict[str, Any], str | None]:
    text, reason = decode(content)
    if reason is not None:
        return {}, reason
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # digits and nesting have limits of their own
        return {}, f"not JSON ({error})"
    if not isinstance(found, dict):
        return {}, f"{type(found).__name__}: expected a JSON object"
    # Elsewhere than in the text, half a character would stop the writer of the shard.
    if "\\u" in text and (reason := _against_strings(found)) is not None:
        return {}, reason
    return found, None


def _against_strings(found: dict[str, Any]) -> str | None:
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half a character (U+{ord(error.object[error.start]):04X}): not Unicode"
    return None


class CsvFile:
    """A CSV file with a header.

    Raises:
        InputError: It has no header, or one with a name twice.
    """

    def __init__(self, path: Path) -> None:
        self.lines = Lines(path)
        self._feed = _Feed(self.lines)
        try:
            self.header = self._read_header(path)
        except InputError:
            self.close()
            raise
        self.start = (self.lines.offset, self.lines.line)

    def close(self) -> None:
        """Close the file."""
        self.lines.close()

    def records(self) -> Iterator[Record]:
        """The rows from the position of `lines` on, the header's end at the earliest."""
        if self.lines.offset < self.start[0]:
            self.lines.seek(*self.start)
        while (record := self._next()) is not None:
            if record.fields or record.reason is not None:
                yield record

    def _next(self) -> Record | None:
        """The next row; one without fields and reason is an empty line."""
        offset, number = self.lines.offset, self.lines.line + 1
        try:
            values = next(self._feed.parser())
        except StopIteration:
            return None
        except LineTooLongError as error:
            return Record(number, offset, {}, str(error))
        except csv.Error as error:
            self.lines.seek(*self._feed.after_first)
            return Record(number, offset, {}, f"not CSV ({error})")
        if len(values) != len(self.header):
            wrong = f"{len(values)} fields: expected {len(self.header)}, as in the header" if values else None
            return Record(number, offset, {}, wrong)
        if (reason := _against_bytes(values)) is not None:
            return Record(number, offset, {}, reason)
        return Record(number, offset, dict(zip(self.header, values, strict=True)))

    def _read_header(self, path: Path) -> list[str]:
        try:
            names = next(self._feed.parser(), [])
        except (csv.Error, LineTooLongError) as error:
            raise InputError(f"{path}: the header is not CSV ({error})") from error
        if not names or _against_bytes(names) is not None:
            raise InputError(f"{path}: expected a first line with the names of the columns, in UTF-8")
        if len(set(names)) < len(names):
            raise InputError(f"{path}: the header has a name twice: {', '.join(names)}")
        return names


class _Feed:
    """Lines for one row of CSV, as text; bytes that are not UTF-8 become lone surrogates."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._begun = 0
        self.after_first = (0, 0)
        """Position after the row's first line."""
        # The module's own limit, 128 KiB, is for the whole process: it is only ever raised.
        csv.field_size_limit(max(MAX_RECORD_BYTES, csv.field_size_limit()))

    def parser(self) -> Iterator[list[str]]:
        """A parser that is good for one row."""
        self._begun = self._lines.offset
        return csv.reader(self, strict=True)

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        first = self._lines.offset == self._begun
        content = next(self._lines)
        if first:
            self.after_first = (self._lines.offset, self._lines.line)
        if self._lines.offset - self._begun > MAX_RECORD_BYTES:
            raise csv.Error(f"a row of more than {MAX_RECORD_BYTES >> 20} MiB: a quote that never closes?")
        return content.decode("utf-8", "surrogateescape")


def _against_bytes(values: list[str]) -> str | None:
    return decode(",".join(values).encode("utf-8", "surrogateescape"))[1]
