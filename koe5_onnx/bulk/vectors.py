"""Embeddings to columns of the output: what each output dtype holds, and how it is read back.

float32   the embeddings, bit for bit
float16   rounded to half precision
int8      round(127 * x / max |x|) of each row; x is about value * scale, with the column NAME_scale, float32
binary    one bit a component, 1 where it is above 0, eight to a byte, the first component in the highest bit
          (numpy.packbits; "ubinary" of sentence-transformers)

The scale of int8 is a row's own, so nothing is cut off whatever the model and nothing is calibrated. Cosine
does not see it: a vector store that compares bytes by cosine needs the first column alone.
benchmarks/NOTES.md has what each costs in retrieval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from koe5_onnx import InputError

Array = npt.NDArray[np.float32]
Columns = dict[str, npt.NDArray[np.generic]]
"""Name to what it has of each row: one value, or a row of values."""

CONVENTIONS: Mapping[str, str] = {
    "float32": "the embedding",
    "float16": "the embedding, rounded to half precision",
    "int8": "value * scale is about the embedding, with the scale of the row; compare by cosine",
    "binary": "a bit a component, 1 above 0, first component in the highest bit of the first byte; "
    "compare by Hamming distance",
}
OUTPUT_DTYPES = tuple(CONVENTIONS)
"""What `--output-dtype` may be."""


def require_dtype(dtype: str) -> None:
    """Refuse an unknown output dtype.

    Raises:
        InputError: It is none of OUTPUT_DTYPES.
    """
    if dtype not in OUTPUT_DTYPES:
        raise InputError(f"the output dtype is {dtype!r}: expected one of {', '.join(OUTPUT_DTYPES)}")


def column_names(name: str, dtype: str) -> list[str]:
    """The columns that an output dtype has, the vectors first."""
    return [name, f"{name}_scale"] if dtype == "int8" else [name]


def arrow_fields(name: str, dtype: str, dim: int) -> list[pa.Field]:
    """The same as fields of a schema."""
    sample = _COLUMNS[dtype](np.zeros((1, dim), np.float32), name)
    return [pa.field(column, _array(values).type) for column, values in sample.items()]


def to_arrow(embeddings: Array, name: str, dtype: str) -> list[pa.Array]:
    """The columns of float32[n, dim], in the order of `column_names`."""
    return [_array(values) for values in _COLUMNS[dtype](embeddings, name).values()]


def unpack(bits: npt.NDArray[np.uint8], dim: int) -> npt.NDArray[np.float32]:
    """Binary vectors uint8[n, bytes] as float32[n, dim] of +1 and -1, to be compared with float queries."""
    return np.asarray(np.unpackbits(bits, axis=1, count=dim), np.float32) * 2 - 1


def _array(values: npt.NDArray[np.generic]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _float32(embeddings: Array, name: str) -> Columns:
    return {name: embeddings}


def _float16(embeddings: Array, name: str) -> Columns:
    return {name: embeddings.astype(np.float16)}


def _int8(embeddings: Array, name: str) -> Columns:
    scale = np.abs(embeddings).max(axis=1, initial=0) / np.float32(127)
    # A row of zeros, which no trained model gives, stays one.
    values = np.rint(embeddings / np.where(scale, scale, 1)[:, None]).astype(np.int8)
    return {name: values, f"{name}_scale": scale.astype(np.float32)}


def _binary(embeddings: Array, name: str) -> Columns:
    return {name: np.packbits(embeddings > 0, axis=1)}


_COLUMNS: Mapping[str, Callable[[Array, str], Columns]] = {
    "float32": _float32,
    "float16": _float16,
    "int8": _int8,
    "binary": _binary,
}
