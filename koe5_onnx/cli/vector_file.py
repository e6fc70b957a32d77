"""Read stored vectors, and their texts, for the command line: .npy, .parquet, .jsonl or .csv.

Columns of nested records, like the payload of Qdrant's points, have names with dots: payload.text. A column
may also be named by its last part. Vectors may be lists of numbers or, as pgvector exports them, texts like
"[0.1,0.2]".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from koe5_onnx import InputError
from koe5_onnx.cli.input_file import read_records, text_of

Array: TypeAlias = npt.NDArray[Any]
SUFFIXES = (".npy", ".parquet", ".jsonl", ".csv")


def read_vectors(name: str) -> Array:
    """Read a .npy file with one vector per row, as a memory map.

    Raises:
        InputError: The file has another format, or its values are not real numbers.
    """
    try:
        found = np.asarray(np.load(name, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise InputError(f"{name} is not an array in NumPy's format ({error})") from error
    if found.dtype.kind not in "fiu":
        raise InputError(f"{name} has values of type {found.dtype}: expected floats or integers")
    return found


def read_columns(
    name: str, vector_column: str | None, text_column: str | None, encoding: str
) -> tuple[Array, list[str]]:
    """Read the vectors of a .parquet, .jsonl or .csv file and, if a column is named, their texts.

    Args:
        name: Path of the file.
        vector_column: Column of the vectors; None uses the only one that has vectors.
        text_column: Column of the texts; None reads no texts.
        encoding: Encoding of a .jsonl or .csv file, as in `input_file.read_texts`.

    Returns:
        float32[n, dim], and a list of n texts, which is empty if `text_column` is None.

    Raises:
        InputError: A row has no vector or no text, or two vectors have different lengths.
        MissingDependencyError: The file is .parquet and the extra bulk is not installed.
    """
    rows: list[npt.NDArray[np.float32]] = []
    texts: list[str] = []
    records = _parquet(name) if Path(name).suffix.lower() == ".parquet" else read_records(name, encoding)
    for where, nested in records:
        record = dict(_flat(nested))
        vector_column = vector_column or _only_vector(record, where)
        full_name = _full_name(record, vector_column)
        if not rows and full_name not in record:
            raise InputError(
                f"{where}: no column {vector_column!r}, only {', '.join(record)}. Name one of them with "
                "--vector-column"
            )
        vector = _numbers(record.get(full_name))
        if vector is None or (rows and len(vector) != len(rows[0])):
            expected = f"{len(rows[0])} numbers" if rows else "a vector"
            raise InputError(f"{where}: expected {expected} in {vector_column!r}. Remove the row")
        rows.append(np.asarray(vector, np.float32))
        if text_column is not None:
            texts.append(text_of(record, _full_name(record, text_column), where))
    if not rows:
        raise InputError(f"{name} has no rows: expected vectors")
    return np.stack(rows), texts


def _parquet(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Imported here because it requires pyarrow.
    from koe5_onnx.bulk.table_files import named_damage, open_table
    from koe5_onnx.stores import locate

    with closing(open_table(locate(name), "parquet")) as file, named_damage(f"{name} is damaged"):
        records = (record for batch in file.batches(0) for record in batch.to_pylist())
        yield from ((f"{name}, row {row}", record) for row, record in enumerate(records))


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _full_name(record: Mapping[str, Any], name: str) -> str:
    ends = [full for full in record if full.endswith(f".{name}")]
    return name if name in record or not ends else ends[0]


def _only_vector(record: Mapping[str, Any], where: str) -> str:
    names = [name for name, value in record.items() if _numbers(value) is not None]
    if len(names) != 1:
        found = f"found them in {', '.join(names)}" if names else f"found none in {', '.join(record)}"
        raise InputError(f"{where}: expected vectors in one column, {found}. Name one with --vector-column")
    return names[0]


def _numbers(value: Any) -> Sequence[float] | None:
    """Return the components of a vector; None if the value is not a vector."""
    if isinstance(value, str) and value[:1] + value[-1:] in ("[]", "{}"):
        value = value[1:-1].split(",")
    if not isinstance(value, list) or not value:
        return None
    try:
        return [float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        return None
