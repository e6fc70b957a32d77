"""Values of each output dtype, and how to read them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_output import jsonl, output_of

from koe5_onnx import InputError
from koe5_onnx.bulk import OUTPUT_DTYPES, unpack
from koe5_onnx.bulk.vectors import column_names, require_dtype, to_arrow

TEXTS = [f"글 {row} " * (row + 1) for row in range(9)]


@pytest.fixture
def exact(embedder):
    return embedder.encode_passages(TEXTS)


@pytest.fixture
def column(embed, tmp_path, put):
    """Return a function that embeds TEXTS with an output dtype and returns a column as an array."""

    put("in.jsonl", jsonl(*({"text": text} for text in TEXTS)))

    def run(dtype, name="embedding"):
        embed("in.jsonl", f"out-{dtype}", output_dtype=dtype, shard_rows=4)
        found = output_of(tmp_path / f"out-{dtype}").column(name).combine_chunks()
        if not pa.types.is_fixed_size_list(found.type):
            return found.to_numpy()
        return found.flatten().to_numpy(zero_copy_only=False).reshape(len(found), found.type.list_size)

    return run


@pytest.mark.parametrize(
    ("dtype", "arrow", "width"),
    [
        ("float32", pa.float32(), 64),
        ("float16", pa.float16(), 64),
        ("int8", pa.int8(), 64),
        ("binary", pa.uint8(), 8),
    ],
)
def test_types_in_the_file(column, tmp_path, dtype, arrow, width):
    column(dtype)
    schema = pq.read_schema(tmp_path / f"out-{dtype}/part-00000000.parquet")
    assert schema.names == ["text", *column_names("embedding", dtype)]
    found = schema.field("embedding").type
    assert (pa.types.is_fixed_size_list(found), found.value_type, found.list_size) == (True, arrow, width)
    assert json.loads(schema.metadata[b"koe5_onnx"])["dtype"] == dtype


def test_float32_is_exact(column, exact):
    np.testing.assert_array_equal(column("float32"), exact)


def test_float16_is_rounded(column, exact):
    np.testing.assert_array_equal(column("float16"), exact.astype(np.float16))


def test_int8_and_its_scale(column, exact):
    values, scale = column("int8"), column("int8", "embedding_scale")
    assert (values.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (9,))
    assert (np.abs(values).max(axis=1) == 127).all()
    assert (values >= -127).all()
    # Values are rounded to the nearest step, and a step is the row's scale.
    assert (np.abs(values * scale[:, None] - exact) <= scale[:, None] * 0.5001).all()


def test_binary_is_the_signs(column, exact):
    bits = column("binary")
    np.testing.assert_array_equal(unpack(bits, 64), np.where(exact > 0, 1, -1))
    assert unpack(bits, 64).dtype == np.float32
    # The first component is the highest bit of the first byte.
    np.testing.assert_array_equal(bits[:, 0] >> 7, exact[:, 0] > 0)


def test_a_width_that_is_no_multiple_of_8():
    rows = np.array([[1, -1, 1, 0, 2, 3, -4, 5, -1, 1]], np.float32)
    (packed,) = to_arrow(rows, "binary")
    assert packed.to_pylist() == [[0b10101101, 0b01000000]]
    np.testing.assert_array_equal(
        unpack(np.array(packed.to_pylist(), np.uint8), 10)[0], np.where(rows[0] > 0, 1, -1)
    )


@pytest.mark.parametrize("dtype", OUTPUT_DTYPES)
def test_no_rows_and_rows_of_zeros(dtype):
    for rows in (0, 2):
        arrays = to_arrow(np.zeros((rows, 16), np.float32), dtype)
        assert [len(array) for array in arrays] == [rows] * len(column_names("v", dtype))


def test_the_scale_column_name_must_be_free(embed, put):
    put("in.jsonl", jsonl({"text": "x", "embedding_scale": 1}))
    with pytest.raises(InputError, match="already has a column 'embedding_scale'"):
        embed("in.jsonl", output_dtype="int8")
    assert embed("in.jsonl", output_dtype="float16").rows == 1


def test_other_names():
    with pytest.raises(
        InputError, match="output_dtype is 'fp16': expected one of float32, float16, int8, binary"
    ):
        require_dtype("fp16")
