"""Input columns: find their types, and convert records to a table of those types.

Parquet and Arrow files have a schema. CSV columns are all text, because guessing types would turn 007 into 7.
The schema of JSON lines comes from the good rows of all files, before any text is embedded. Integers mixed
with floats become float64, and objects become structs with all fields. A column whose values have no common
type becomes text, in which values other than strings are written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from koe5_onnx import InputError
from koe5_onnx.bulk.records import Record
from koe5_onnx.bulk.rows import Place, Rows, Text

_MAX_FIELDS = 1000
"""Maximum number of columns, and of fields per struct. Objects with more names probably use data as names,
for example IDs, so the schema would grow with every object."""
_AS_JSON = {b"koe5_onnx": b"json"}
"""Metadata of a text column whose values had no common type."""


class JsonColumns:
    """Find the schema of JSON objects incrementally.

    Args:
        text: Columns that contain the text of a row.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._types: dict[str, pa.DataType | None] = {}
        self._names: set[str] = set()

    def add(self, records: Sequence[Record], objects: Sequence[Mapping[str, Any]]) -> None:
        """Add records to the schema.

        Args:
            records: All records. Their names count towards the maximum number of names.
            objects: The fields of the good records, which determine the types.

        Raises:
            InputError: The records have too many different names.
        """
        self._names.update(name for record in records for name in record.fields)
        for name in dict.fromkeys(name for fields in objects for name in fields):
            values = [fields.get(name) for fields in objects]
            found = common_type(self._types.get(name, pa.null()), _type_of(values))
            self._types[name] = found if found is not None and _is_storable(found) else None
        if len(self._names) > _MAX_FIELDS:
            raise InputError(
                f"the JSON objects have more than {_MAX_FIELDS} different names. Move names that are data "
                "into a nested object, such as {..., 'data': {...}}"
            )

    def schema(self) -> pa.Schema:
        """Return the schema, with columns in the order of their first appearance.

        Raises:
            InputError: A column of the text is in none of the objects.
        """
        if self._names:
            self._text.require_columns(self._names, "the input")
        types = self._types or dict.fromkeys(self._text.names, pa.string())
        return pa.schema([self._field(name, found) for name, found in types.items()])

    @staticmethod
    def _field(name: str, found: pa.DataType | None) -> pa.Field:
        if found is None:
            return pa.field(name, pa.string(), metadata=_AS_JSON)
        return pa.field(name, pa.string() if pa.types.is_null(found) else found)


def common_type(a: pa.DataType | None, b: pa.DataType | None) -> pa.DataType | None:
    """Return the type to which Arrow promotes both types; None if there is none or one of them is None."""
    if a is None or b is None:
        return None
    schemas = [pa.schema([("it", a)]), pa.schema([("it", b)])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _type_of(values: Sequence[Any]) -> pa.DataType | None:
    """Return the common type of some JSON values; None if there is none."""
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return None


def _is_storable(found: pa.DataType) -> bool:
    """Return True if each struct in a type has a field, which parquet requires, and at most _MAX_FIELDS."""
    if pa.types.is_struct(found):
        return 0 < found.num_fields <= _MAX_FIELDS and all(_is_storable(field.type) for field in found)
    return not pa.types.is_list(found) or _is_storable(found.value_type)


def rows_of(records: Sequence[Record], file: str, first_row: int, schema: pa.Schema, text: Text) -> Rows:
    """Convert consecutive records of a file to rows of the schema. Records that do not fit are bad rows."""
    found = [text_of(record, text) for record in records]
    try:
        table = _table(_good(records, found), schema)
    except (pa.ArrowException, OverflowError):
        found = [
            (text, reason or _misfit(record, schema))
            for record, (text, reason) in zip(records, found, strict=True)
        ]
        table = _table(_good(records, found), schema)
    places: list[Place] = [(file, first_row + place, record.line) for place, record in enumerate(records)]
    return Rows.of(places, found, table)


def text_of(record: Record, text: Text) -> tuple[str, str | None]:
    """Return the text of a record and None, or an empty text and the reason why the row is bad."""
    return text.of_fields(record.fields) if record.reason is None else ("", record.reason)


def _good(records: Sequence[Record], found: Sequence[tuple[str, str | None]]) -> list[Mapping[str, Any]]:
    return [record.fields for record, (_, reason) in zip(records, found, strict=True) if reason is None]


def _misfit(record: Record, schema: pa.Schema) -> str | None:
    for field in schema:
        try:
            _column([record.fields], field)
        except (pa.ArrowException, OverflowError) as error:
            return f"column {field.name!r}: {error}"
    return None


def _table(objects: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([_column(objects, field) for field in schema], schema=schema)


def _column(objects: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    values = [fields.get(field.name) for fields in objects]
    if field.metadata == _AS_JSON:
        values = [
            value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for value in values
        ]
    return pa.array(values, field.type)
