"""Rows on their way from a file to a shard: the good ones as a table, the bad ones with the reason.

A row is bad where it has no text that can be embedded. An empty text is a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

Place = tuple[str, int, int | None]
"""The first three fields of a BadRow."""


@dataclass(frozen=True)
class BadRow:
    """A row of the input that has no embedding."""

    file: str
    """Name of the file below the input's folder."""
    row: int
    """Rows of that file before it; empty lines and a CSV file's header are no rows."""
    line: int | None
    """Line of a text file that it begins at, from 1; None in parquet files."""
    reason: str

    def __str__(self) -> str:
        """Where and why, on one line."""
        where = f"row {self.row}" if self.line is None else f"line {self.line}"
        return f"{self.file}, {where}: {self.reason}"


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of the input."""

    count: int
    """Rows of the input, good and bad."""
    table: pa.Table
    """The good ones, with the columns of the plan."""
    texts: list[str]
    """Their texts."""
    places: list[Place]
    """Where they are from."""
    bad: list[BadRow]

    @property
    def characters(self) -> int:
        """Characters of all texts."""
        return sum(map(len, self.texts))


def join(parts: Sequence[Rows]) -> Rows:
    """Parts that follow each other as one; at least one part."""
    return Rows(
        count=sum(part.count for part in parts),
        table=pa.concat_tables([part.table for part in parts]),
        texts=[text for part in parts for text in part.texts],
        places=[place for part in parts for place in part.places],
        bad=[row for part in parts for row in part.bad],
    )


def reason_against(value: Any) -> str | None:
    """Why `value` cannot be embedded; None where it can."""
    if value is None:
        return "null: expected text"
    if not isinstance(value, str):
        return f"{_JSON_NAMES.get(type(value), type(value).__name__)}: expected text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half a character (U+{ord(value[error.start]):04X}) at character {error.start}: not Unicode"
    return None


def decode(content: bytes) -> tuple[str, str | None]:
    """Bytes as text, and why they are none; bytes that are not UTF-8 come back as an empty text."""
    try:
        return content.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return "", f"not UTF-8: byte {error.start} is 0x{content[error.start]:02x}"


_JSON_NAMES: dict[type, str] = {
    dict: "object",
    list: "array",
    bool: "boolean",
    int: "number",
    float: "number",
}
