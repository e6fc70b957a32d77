"""Rows of the input: the good ones as a table, the bad ones with a reason.

A row is bad if it cannot be parsed, does not fit the schema, or has no valid text. An empty text is valid.
With overflow="error", `worker` also finds bad rows: those whose text is above the token limit.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from koe5_onnx import InputError
from koe5_onnx.bulk.lines import MAX_RECORD_BYTES
from koe5_onnx.text.encoding import decode

Place = tuple[str, int, int | None]
"""The first three fields of a BadRow."""


@dataclass(frozen=True)
class BadRow:
    """A row of the input that has no embedding."""

    file: str
    """Path of the file relative to the input folder."""
    row: int
    """Row number in the file, from 0. Empty lines and the header of a CSV file are not counted."""
    line: int | None
    """Number of its first line in a text file, from 1; None for parquet and Arrow."""
    reason: str

    def __str__(self) -> str:
        """Return the position and the reason on one line."""
        where = f"row {self.row}" if self.line is None else f"line {self.line}"
        return f"{self.file}, {where}: {self.reason}"


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of the input."""

    count: int
    """Number of rows, good and bad."""
    table: pa.Table
    """Good rows, with the columns of the plan."""
    texts: list[str]
    """Texts of the good rows."""
    places: list[Place]
    """Positions of the good rows in the input."""
    bad: list[BadRow]

    @classmethod
    def of(cls, rows: Sequence[Place], found: Sequence[tuple[str, str | None]], table: pa.Table) -> Rows:
        """Separate good rows from bad ones.

        Args:
            rows: The position of each row.
            found: The text of each row and None, or an empty text and the reason why the row is bad.
            table: The good rows.
        """
        pairs = list(zip(rows, found, strict=True))
        return cls(
            count=len(pairs),
            table=table,
            texts=[text for text, reason in found if reason is None],
            places=[place for place, (_, reason) in pairs if reason is None],
            bad=[BadRow(*place, reason) for place, (_, reason) in pairs if reason is not None],
        )


def join(parts: Sequence[Rows]) -> Rows:
    """Join consecutive parts, at least one."""
    return Rows(
        count=sum(part.count for part in parts),
        table=pa.concat_tables([part.table for part in parts]),
        texts=[text for part in parts for text in part.texts],
        places=[place for part in parts for place in part.places],
        bad=[row for part in parts for row in part.bad],
    )


def too_many_bad(bad: int, rows: str, max_share: float, first: object, advice: str) -> InputError:
    """Return the error for more bad rows than the maximum share. `rows` is what it is a share of."""
    return InputError(
        f"{bad:,} of {rows} are bad, which is more than the maximum share of {max_share:g}. {first}. {advice}"
    )


class Text:
    r"""Source of a row's text: a column, a field of a struct ("a.b"), or several of these in a template.

    Args:
        column: Name of the column or field.
        template: Text with names in braces, such as "{title}\n{body}", which replaces `column`. A null column
            counts as an empty text, unless all columns of the template are null.

    Raises:
        InputError: The template is invalid.
    """

    def __init__(self, column: str, template: str | None = None) -> None:
        self._template = template
        try:
            parts = [("", column, "", None)] if template is None else list(string.Formatter().parse(template))
        except ValueError as error:
            raise InputError(f"the text template {template!r} is invalid ({error})") from error
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self.names = [name for _, name in self._parts if name is not None]
        if not self.names or not all(self.names) or any(spec or conversion for *_, spec, conversion in parts):
            raise InputError(f"the text template is {template!r}: expected column names in braces")

    def of_fields(self, fields: Mapping[str, Any]) -> tuple[str, str | None]:
        """Return the text of a record and None, or an empty text and the reason why it has none."""
        if self._template is None and (missing := self.missing(fields)):
            return "", f"no column {missing!r}"
        return self.of_values([_value(fields, name) for name in self.names])

    def of_values(self, values: Sequence[Any]) -> tuple[str, str | None]:
        """Return the text of the values of `names` and None, or an empty text and the reason."""
        if self._template is None:
            return _text_of(values[0])
        nulls_are_empty = any(value is not None for value in values)
        texts: list[str] = []
        for name, value in zip(self.names, values, strict=True):
            text, reason = _text_of("" if value is None and nulls_are_empty else value)
            if reason is not None:
                return "", f"column {name!r}: {reason}"
            texts.append(text)
        left = iter(texts)
        return "".join(literal + (next(left) if name else "") for literal, name in self._parts), None

    def missing(self, names: Container[str]) -> str | None:
        """Return a name for which neither a column nor a struct is in `names`; None if there is none."""
        found = (name for name in self.names if name not in names and name.partition(".")[0] not in names)
        return next(found, None)

    def require_columns(self, names: Collection[str], subject: object, hint: str = "") -> None:
        """Check that no column of the text is `missing`. The message names `subject` and ends with `hint`.

        Raises:
            InputError: A column is missing.
        """
        if (missing := self.missing(names)) is not None:
            raise InputError(
                f"{subject} has no column {missing!r}, only {sorted(names)}. "
                f"Name one with --text-column{hint}"
            )


def _value(fields: Mapping[str, Any], name: str) -> Any:
    head, _, rest = name.partition(".")
    if name in fields or not isinstance(inner := fields.get(head), Mapping):
        return fields.get(name)
    return _value(inner, rest)


def _text_of(value: Any) -> tuple[str, str | None]:
    if isinstance(value, str):
        return value, None
    if not isinstance(value, bytes):
        found = "null" if value is None else _JSON_NAMES.get(type(value), type(value).__name__)
        return "", f"expected text, found {found}"
    if len(value) > MAX_RECORD_BYTES:
        return "", f"the text is longer than {MAX_RECORD_BYTES >> 20} MiB"
    return decode(value)


_JSON_NAMES: dict[type, str] = {
    dict: "object",
    list: "array",
    bool: "boolean",
    int: "number",
    float: "number",
}
