"""The columns that go through: their types, and records to a table of those types.

Parquet files have a schema. CSV has none: all its columns are text, as guessing would turn 007 into 7. The
schema of JSON is found in all objects of all files before the first is embedded, so that a column may appear
as late as it likes: whole numbers and others together are float64, objects are structs with all fields, and
values without a common type are written as text, each that is not text itself as its JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from koe5_onnx import InputError
from koe5_onnx.bulk.records import Record
from koe5_onnx.bulk.rows import BadRow, Place, Rows, reason_against

_MAX_FIELDS = 1000
"""Of all objects, or of an object in a column: more are not columns but data, and a schema would not end."""
_AS_JSON = {b"koe5_onnx": b"json"}
"""Marks a text column of values that had no common type."""


class JsonColumns:
    """Finds the schema of JSON objects, some at a time.

    Args:
        text_column: The column of the texts, which is text whatever a bad row holds.
    """

    def __init__(self, text_column: str) -> None:
        self._text_column = text_column
        self._types: dict[str, pa.DataType | None] = {}
        self._names: set[str] = set()

    def add(self, records: Sequence[Record]) -> None:
        """Look at some objects; those of bad rows have no say.

        Raises:
            InputError: They have too many different names.
        """
        self._names.update(name for record in records for name in record.fields)
        objects = [record.fields for record in records if _against(record, self._text_column) is None]
        for name in dict.fromkeys(name for fields in objects for name in fields):
            values = [fields.get(name) for fields in objects]
            self._types[name] = self._common(self._types.get(name, pa.null()), _type_of(values))
        if len(self._names) > _MAX_FIELDS:
            raise InputError(
                f"the JSON objects have more than {_MAX_FIELDS} different names: nest what is data, "
                "as in {..., 'data': {...}}"
            )

    def schema(self) -> pa.Schema:
        """The columns, in the order of their first appearance.

        Raises:
            InputError: There are objects, and none has the column of the texts.
        """
        if self._names:
            require_column(self._names, self._text_column, "the input")
        types = self._types or {self._text_column: pa.string()}
        return pa.schema([self._field(name, found) for name, found in types.items()])

    def _field(self, name: str, found: pa.DataType | None) -> pa.Field:
        if name == self._text_column or (found is not None and pa.types.is_null(found)):
            return pa.field(name, pa.string())
        if found is None:
            return pa.field(name, pa.string(), metadata=_AS_JSON)
        return pa.field(name, found)

    @staticmethod
    def _common(a: pa.DataType | None, b: pa.DataType | None) -> pa.DataType | None:
        if a is None or b is None:
            return None
        schemas = [pa.schema([("it", a)]), pa.schema([("it", b)])]
        try:
            found = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except pa.ArrowException:
            return None
        return found if _is_storable(found) else None


def _type_of(values: Sequence[Any]) -> pa.DataType | None:
    """The type of some JSON values; None where they have no common one."""
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return None


def _is_storable(found: pa.DataType) -> bool:
    """Whether parquet has it: not an object without fields, nor one with a field for each key of a table."""
    if pa.types.is_struct(found):
        return 0 < found.num_fields <= _MAX_FIELDS and all(_is_storable(field.type) for field in found)
    return not pa.types.is_list(found) or _is_storable(found.value_type)


def csv_schema(headers: Iterable[Sequence[str]]) -> pa.Schema:
    """The columns of all headers: text."""
    names = dict.fromkeys(name for header in headers for name in header)
    return pa.schema([pa.field(name, pa.string()) for name in names])


def require_column(names: Iterable[str], text_column: str, subject: str | Path) -> None:
    """Check that the column of the texts is among the `names` of `subject`.

    Raises:
        InputError: It is not.
    """
    if text_column not in names:
        raise InputError(
            f"{subject} has no column {text_column!r}, only {sorted(names)}: name it with --text-column"
        )


def rows_of(
    records: Sequence[Record], file: str, first_row: int, schema: pa.Schema, text_column: str
) -> Rows:
    """Records as rows of the schema's types; those that do not fit are bad.

    Args:
        records: In order.
        file: Their file's name.
        first_row: The first one's row in it.
        schema: Of the plan.
        text_column: The column of the texts.
    """
    reasons = [_against(record, text_column) for record in records]
    try:
        table = _table(_good(records, reasons), schema)
    except (pa.ArrowException, OverflowError):
        reasons = [reason or _misfit(record, schema) for record, reason in zip(records, reasons, strict=True)]
        table = _table(_good(records, reasons), schema)
    places: list[Place] = [(file, first_row + place, record.line) for place, record in enumerate(records)]
    found = list(zip(places, reasons, strict=True))
    return Rows(
        count=len(records),
        table=table,
        texts=[fields[text_column] for fields in _good(records, reasons)],
        places=[place for place, reason in found if reason is None],
        bad=[BadRow(*place, reason) for place, reason in found if reason is not None],
    )


def _good(records: Sequence[Record], reasons: Sequence[str | None]) -> list[dict[str, Any]]:
    return [record.fields for record, reason in zip(records, reasons, strict=True) if reason is None]


def _against(record: Record, text_column: str) -> str | None:
    if record.reason is not None:
        return record.reason
    if text_column not in record.fields:
        return f"no column {text_column!r}"
    return reason_against(record.fields[text_column])


def _misfit(record: Record, schema: pa.Schema) -> str | None:
    for field in schema:
        try:
            _column([record.fields], field)
        except (pa.ArrowException, OverflowError) as error:
            return f"column {field.name!r}: {error}"
    return None


def _table(objects: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([_column(objects, field) for field in schema], schema=schema)


def _column(objects: Sequence[dict[str, Any]], field: pa.Field) -> pa.Array:
    values = [fields.get(field.name) for fields in objects]
    if field.metadata == _AS_JSON:
        values = [
            value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for value in values
        ]
    return pa.array(values, field.type)
