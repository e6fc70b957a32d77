"""Each bad row is reported once with its location and reason, and no other row is lost."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_output import errors_of, jsonl, output_of, reasons_of

from koe5_onnx import InputError
from koe5_onnx.bulk import lines


def texts_of(folder):
    return output_of(folder).column("text").to_pylist()


JSONL = (
    b'{"text": "first", "n": 1}\n'
    b'{"text": null, "n": "not a number"}\n'
    b"\n"
    b'{"text": 5}\n'
    b'{"text": {"a": 1}}\n'
    b'{"body": "x"}\n'
    b'["text"]\n'
    b"{bad\n"
    b'{"text": "\xff"}\n'
    b'{"text": "\\ud83d alone"}\n'
    b'{"text": "ok", "n": 2, "other": "\\udc00"}\n'
    b'{"text": "\\ud83d\\ude00"}\n' + b"[" * 100_000 + b"\n"
    b'{"n": ' + b"1" * 5000 + b"}\n"
    b'{"text": "last", "n": 3}'
)


@pytest.mark.parametrize("shard_rows", [1, 2, 3, 100])
def test_jsonl(embed, tmp_path, put, shard_rows):
    put("in.jsonl", JSONL)
    summary = embed("in.jsonl", shard_rows=shard_rows, max_bad_share=1)
    found = reasons_of(tmp_path / "out")
    assert [(row, line) for row, line, _ in found] == [
        (1, 2), (2, 4), (3, 5), (4, 6), (5, 7), (6, 8), (7, 9), (8, 10), (9, 11), (11, 13), (12, 14),
    ]  # fmt: skip
    reasons = [reason for _, _, reason in found]
    assert reasons[:5] == [
        "expected text, found null",
        "expected text, found number",
        "expected text, found object",
        "no column 'text'",
        "expected a JSON object, found list",
    ]
    assert reasons[5].startswith("not JSON (")
    assert reasons[6] == "not UTF-8: byte 10 is 0xff"
    assert reasons[7] == reasons[8].replace("DC00", "D83D") == "not valid Unicode (lone surrogate U+D83D)"
    assert all(reason.startswith("not JSON (") for reason in reasons[9:])
    assert (summary.rows, summary.bad_rows) == (3, 11)
    # Bad rows do not affect the types.
    assert output_of(tmp_path / "out").drop_columns("embedding").to_pylist() == [
        {"text": "first", "n": 1},
        {"text": "😀", "n": None},
        {"text": "last", "n": 3},
    ]


@pytest.mark.parametrize("shard_rows", [1, 3, 100])
def test_csv(embed, tmp_path, put, shard_rows):
    put(
        "in.csv",
        b'text,n\r\ngood,1\r\n"never closed,2\r\nafter it,3\r\n"a" b,4\r\nx,y,z\r\nx\r\n'
        b'\xb0\xa1,5\r\nok,\xff\r\nlone\rCR,6\r\n"over\r\nlines",7\r\nlast,8',
    )
    summary = embed("in.csv", shard_rows=shard_rows, max_bad_share=1)
    found = reasons_of(tmp_path / "out")
    assert [(row, line) for row, line, _ in found] == [
        (1, 3),
        (3, 5),
        (4, 6),
        (5, 7),
        (6, 8),
        (7, 9),
        (8, 10),
    ]
    assert [reason.split(" (")[0].split(":")[0] for _, _, reason in found] == [
        "not CSV", "not CSV", "3 fields", "1 fields", "not UTF-8", "not UTF-8", "not CSV",
    ]  # fmt: skip
    assert texts_of(tmp_path / "out") == ["good", "after it", "over\r\nlines", "last"]
    assert summary.bad_rows == 7


@pytest.mark.parametrize("shard_rows", [1, 3, 100])
def test_parquet(embed, tmp_path, shard_rows):
    texts = pa.array([b"a", None, b"\xff\xfe", "나".encode(), b"\xed\xa0\xbd", b"c"]).cast(pa.binary())
    # Arrow does not validate these bytes, and neither do other writers of Parquet.
    column = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": column, "id": range(6)}), tmp_path / "in/a.parquet")
    pq.write_table(pa.table({"text": pa.nulls(2), "id": [6, 7]}), tmp_path / "in/b.parquet")
    summary = embed("in", shard_rows=shard_rows, max_bad_share=1)
    assert [(row["file"], row["row"], row["line"]) for row in errors_of(tmp_path / "out")] == [
        ("a.parquet", 1, None), ("a.parquet", 2, None), ("a.parquet", 4, None),
        ("b.parquet", 0, None), ("b.parquet", 1, None),
    ]  # fmt: skip
    assert errors_of(tmp_path / "out")[1]["reason"] == "not UTF-8: byte 0 is 0xff"
    assert output_of(tmp_path / "out").column("id").to_pylist() == [0, 3, 5]
    assert (summary.rows, summary.bad_rows) == (3, 5)


def test_values_that_no_column_holds_are_bad_rows(embed, tmp_path, put):
    # The type float64 is inferred from earlier rows, and cannot represent the second to last number.
    numbers = [*[0.5] * 512, *[1] * 88, 2**60 + 1, 2]
    put("in.jsonl", jsonl(*({"text": f"{place}", "n": number} for place, number in enumerate(numbers))))
    summary = embed("in.jsonl", shard_rows=100)
    assert (summary.rows, summary.bad_rows) == (601, 1)
    ((row, line, reason),) = reasons_of(tmp_path / "out")
    assert (row, line) == (600, 601)
    assert reason.startswith("column 'n': Integer value 1152921504606846977 is outside")
    assert output_of(tmp_path / "out").column("n").to_pylist() == [*[0.5] * 512, *[1.0] * 88, 2.0]


@pytest.mark.slow
def test_rows_of_any_length_in_bounded_memory(embed, tmp_path, put, monkeypatch):
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 1 << 20)
    monkeypatch.setattr("koe5_onnx.bulk.records.MAX_RECORD_BYTES", 1 << 20)
    put("in.jsonl", jsonl({"text": "a"}, {"text": "b" * (3 << 20)}, {"text": "c"}))
    put("in.csv", b'text\na\n"' + (b"b" * 1000 + b"\n") * 2000 + b'"\n' + b"c" * (2 << 20) + b"\nd\n")
    embed("in.jsonl", "jsonl-out")
    assert reasons_of(tmp_path / "jsonl-out") == [(1, 2, "the line is longer than 1 MiB")]
    assert texts_of(tmp_path / "jsonl-out") == ["a", "c"]
    embed("in.csv", "csv-out")
    found = reasons_of(tmp_path / "csv-out")
    assert found[0] == (1, 3, "not CSV (the row is longer than 1 MiB; check for an unclosed quote)")
    assert found[-1][2] == "the line is longer than 1 MiB"


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.parquet"])
def test_strict_stops_at_the_first(embed, tmp_path, put, name):
    put("in.jsonl", jsonl({"text": "a"}, {"text": "b"}, {"text": None}, {"text": 1}))
    put("in.csv", b"text\na\nb\nc,d\n\xff\n")
    pq.write_table(pa.table({"text": ["a", "b", None, None]}), tmp_path / "in.parquet")
    places = {
        "in.parquet": "row 2: expected text",
        "in.jsonl": "line 3: expected text",
        "in.csv": "line 4: 2 fields",
    }
    with pytest.raises(InputError, match=f"{name}, {places[name]}.*Fix the row, or run without --strict"):
        embed(name, shard_rows=2, strict=True)
    assert [path.name for path in (tmp_path / "out").glob("*part*")] == ["part-00000000.parquet"]
    assert not (tmp_path / "out/_SUCCESS").exists()
    summary = embed(name, shard_rows=2)
    assert (summary.rows, summary.bad_rows, summary.shards_before) == (2, 2, 1)
    with pytest.raises(InputError, match="an earlier run of this job found a bad row"):
        embed(name, shard_rows=2, strict=True)


def test_nothing_but_bad_rows(embed, tmp_path, put):
    put("in.jsonl", jsonl({"text": None, "id": 1}, {"text": 2}))
    with pytest.raises(
        InputError, match=r"2 of the 2 rows are bad, .* of 0.5. in.jsonl, line 1: .* found null"
    ):
        embed("in.jsonl")
    assert not (tmp_path / "out/_job.json").exists()
    summary = embed("in.jsonl", max_bad_share=1)
    assert (summary.rows, summary.bad_rows) == (0, 2)
    assert output_of(tmp_path / "out").column_names == ["text", "embedding"]
