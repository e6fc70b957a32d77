"""Read JSON lines and CSV row by row, so that a bad row does not affect other rows.

pyarrow's readers are not used: the one for JSON stops at a bad row, and none reports offsets for resuming.

JSON lines have one object per line, and blank lines are ignored. CSV has a header; empty lines are ignored,
and a quoted field may contain line ends. If the quoting of a CSV row is invalid, its first line is a bad row
and reading continues on the next line, so that an unclosed quote does not consume the rest of the file.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from koe5_onnx import InputError
from koe5_onnx.bulk.lines import MAX_RECORD_BYTES, Lines, LineTooLongError
from koe5_onnx.text.encoding import decode

_PART_RECORDS = 128
_PART_BYTES = 4 << 20


@dataclass(frozen=True)
class Record:
    """One row of a text file."""

    line: int
    """Number of its first line, from 1."""
    offset: int
    """Offset in the decompressed file, in bytes."""
    fields: dict[str, Any]
    reason: str | None = None
    """Reason why the row cannot be parsed; None if it can."""


def in_parts(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Group records into parts of at most _PART_RECORDS. A part ends after about _PART_BYTES."""
    part: list[Record] = []
    for record in records:
        if part and (len(part) == _PART_RECORDS or record.offset - part[0].offset > _PART_BYTES):
            yield part
            part = []
        part.append(record)
    if part:
        yield part


class RecordFile(ABC):
    """An open text file."""

    start = (0, 0)
    """Offset and line number of the first row, as arguments of `Lines.seek`."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def records(self) -> Iterator[Record]:
        """Yield the rows from the position of `lines` on, without empty lines."""
        while True:
            offset, number = self.lines.offset, self.lines.line + 1
            try:
                found = self._next()
            except StopIteration:
                return
            except LineTooLongError as error:
                found = {}, str(error)
            if found is not None:
                yield Record(number, offset, *found)

    def close(self) -> None:
        """Close the file."""
        self.lines.close()

    @abstractmethod
    def _next(self) -> tuple[dict[str, Any], str | None] | None:
        """Return the fields of the next row and None, or no fields and a reason; None for an empty line."""


class JsonLines(RecordFile):
    """A file of JSON lines."""

    def _next(self) -> tuple[dict[str, Any], str | None] | None:
        text, reason = decode(next(self.lines), self.lines.encoding)
        if reason is not None:
            return {}, reason
        return _object_of(text) if text.strip() else None


def _object_of(text: str) -> tuple[dict[str, Any], str | None]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
        return {}, f"not JSON ({error})"
    if not isinstance(found, dict):
        return {}, f"expected a JSON object, found {type(found).__name__}"
    # The parquet writer would fail on a lone surrogate in any column.
    if "\\u" in text and (reason := _against_strings(found)) is not None:
        return {}, reason
    return found, None


def _against_strings(found: dict[str, Any]) -> str | None:
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not valid Unicode (lone surrogate U+{ord(error.object[error.start]):04X})"
    return None


@dataclass(frozen=True)
class Dialect:
    """Special characters of a CSV file.

    Args:
        delimiter: Character between fields; None uses a tab for .tsv files and a comma for others.
        quote: Character around fields; "" if there is none. Within a field it is doubled.
        escape: Character before a quote or an escape in a quoted field, as Spark writes it, instead of a
            doubled quote.

    Raises:
        InputError: A value is not one character or is a line end, or two are the same.
    """

    delimiter: str | None = None
    quote: str = '"'
    escape: str | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.delimiter, self.quote or None, self.escape) if value is not None]
        if any(len(value) != 1 or value in "\r\n" for value in given) or len(set(given)) < len(given):
            raise InputError(
                f"the CSV delimiter, quote and escape are {self.delimiter!r}, {self.quote!r} and "
                f"{self.escape!r}: expected different single characters other than line ends"
            )


class CsvFile(RecordFile):
    """A CSV file with a header.

    Args:
        lines: Lines of the file.
        dialect: Special characters of the file.

    Raises:
        InputError: The header is missing or invalid, or has the same name twice.
    """

    def __init__(self, lines: Lines, dialect: Dialect) -> None:
        super().__init__(lines)
        self._feed = _Feed(lines, dialect)
        try:
            self.header = self._read_header()
        except InputError:
            self.close()
            raise
        self.start = (lines.offset, lines.line)

    def _next(self) -> tuple[dict[str, Any], str | None] | None:
        try:
            values = next(self._feed.parser())
        except csv.Error as error:
            self.lines.seek(*self._feed.after_first)
            return {}, f"not CSV ({error}{self._feed.hint})"
        if not values:
            return None
        if len(values) != len(self.header):
            return {}, f"{len(values)} fields: expected {len(self.header)}, as in the header"
        if self._feed.reason is not None:
            return {}, self._feed.reason
        return dict(zip(self.header, values, strict=True)), None

    def _read_header(self) -> list[str]:
        try:
            names = next(self._feed.parser(), [])
        except (csv.Error, LineTooLongError) as error:
            raise InputError(f"the header of {self.lines.location} is not CSV ({error})") from error
        if not names or self._feed.reason is not None:
            encoding = self.lines.encoding.upper()
            raise InputError(
                f"{self.lines.location} has no header: expected the column names in the first line, "
                f"in {encoding}"
            )
        if len(set(names)) < len(names):
            raise InputError(
                f"the header of {self.lines.location} has a name twice: {', '.join(names)}. "
                "Rename one of them"
            )
        return names


class _Feed:
    """Lines for the CSV parser, as text."""

    def __init__(self, lines: Lines, dialect: Dialect) -> None:
        self._lines, self._dialect = lines, dialect
        self._delimiter = dialect.delimiter or ("\t" if ".tsv" in lines.location.name.lower() else ",")
        quote, escape = re.escape(dialect.quote), re.escape(dialect.escape or "")
        self._marks = re.compile(f"{quote}|{escape}.", re.DOTALL) if quote and escape else None
        self._begun = 0
        self._is_quoted = False
        self.after_first = (0, 0)
        """Position after the row's first line."""
        self.reason: str | None = None
        """Reason why the row's bytes are invalid; None if they are valid."""
        self.hint = ""
        """Advice for the row's quoting."""
        # The default limit of 128 KiB applies to the whole process, so never lower a limit set elsewhere.
        csv.field_size_limit(max(MAX_RECORD_BYTES, csv.field_size_limit()))

    def parser(self) -> Iterator[list[str]]:
        """Return a parser for one row."""
        self._begun, self._is_quoted, self.reason, self.hint = self._lines.offset, False, None, ""
        quote = self._dialect.quote
        if not quote:
            return csv.reader(self, delimiter=self._delimiter, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(self, delimiter=self._delimiter, quotechar=quote, strict=True)

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        first = self._lines.offset == self._begun
        content = next(self._lines)
        if first:
            self.after_first = (self._lines.offset, self._lines.line)
        if self._lines.offset - self._begun > MAX_RECORD_BYTES:
            raise csv.Error(
                f"the row is longer than {MAX_RECORD_BYTES >> 20} MiB; check for an unclosed quote"
            )
        text, reason = decode(content, self._lines.encoding)
        if reason is not None:
            # The row is bad, but its end must be found.
            text, self.reason = content.decode(self._lines.encoding, "replace"), reason
        if self._marks is not None:
            return self._marks.sub(self._doubled, text)
        if self._dialect.escape is None and f"\\{self._dialect.quote}" in text:
            self.hint = "; if the file has \\ before quotes, as Spark writes it, pass --csv-escape '\\'"
        return text

    def _doubled(self, mark: re.Match[str]) -> str:
        """Return an escaped quote as a doubled one. The CSV parser would drop all escape characters."""
        found, quote, escape = mark[0], self._dialect.quote, self._dialect.escape
        if found == quote:
            before = mark.string[mark.start() - 1 : mark.start()]
            if self._is_quoted or before in ("", quote, self._delimiter):
                self._is_quoted = not self._is_quoted
        elif self._is_quoted and found[1:] in (quote, escape):
            return quote * 2 if found[1:] == quote else found[1:]
        return found
