"""Convert embeddings to output columns.

float32   the embeddings, bit for bit
float16   the embeddings, rounded to half precision
int8      round(127 * x / max |x|) for each row, with the float32 column NAME_scale; x is about value * scale
binary    one bit per component, 1 if it is above 0; the first component is the highest bit of the first byte
          (numpy.packbits; "ubinary" in sentence-transformers)

int8 has one scale per row, so values are never clipped and no calibration is needed. Cosine similarity does
not depend on the scale, so a vector store that compares int8 vectors by cosine needs only the first column.
benchmarks/decisions/bulk.md has the retrieval quality of each dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from koe5_onnx import InputError
from koe5_onnx.artifact.matryoshka import to_bits, to_int8

Array = npt.NDArray[np.float32]

CONVENTIONS: Mapping[str, str] = {
    "float32": "the embedding",
    "float16": "the embedding, rounded to half precision",
    "int8": "value * scale of the row is about the embedding; compare by cosine",
    "binary": "one bit per component, 1 if above 0, first component in the highest bit of the first byte; "
    "compare by Hamming distance",
}
OUTPUT_DTYPES = tuple(CONVENTIONS)
"""Choices of `--output-dtype`."""


def require_dtype(dtype: str) -> None:
    """Check an output dtype.

    Raises:
        InputError: The dtype is not one of OUTPUT_DTYPES.
    """
    if dtype not in OUTPUT_DTYPES:
        raise InputError(f"output_dtype is {dtype!r}: expected one of {', '.join(OUTPUT_DTYPES)}")


def column_names(name: str, dtype: str) -> list[str]:
    """Return the column names of an output dtype, with the vectors first."""
    return [name, f"{name}_scale"] if dtype == "int8" else [name]


def arrow_fields(name: str, dtype: str, dim: int) -> list[pa.Field]:
    """Return the columns of an output dtype as fields of a schema."""
    columns = to_arrow(np.zeros((1, dim), np.float32), dtype)
    return [
        pa.field(name, column.type) for name, column in zip(column_names(name, dtype), columns, strict=True)
    ]


def to_arrow(embeddings: Array, dtype: str) -> list[pa.Array]:
    """Convert embeddings float32[n, dim] to columns, in the order of `column_names`."""
    if dtype == "int8":
        values, scale = to_int8(embeddings)
        return [_vectors(values), pa.array(scale)]
    if dtype == "binary":
        return [_vectors(to_bits(embeddings))]
    return [_vectors(embeddings.astype(dtype, copy=False))]


def unpack(bits: npt.NDArray[np.uint8], dim: int) -> npt.NDArray[np.float32]:
    """Convert binary vectors uint8[n, bytes] to float32[n, dim] of +1 and -1, for use with float queries."""
    return np.asarray(np.unpackbits(bits, axis=1, count=dim), np.float32) * 2 - 1


def _vectors(values: npt.NDArray[np.generic]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
