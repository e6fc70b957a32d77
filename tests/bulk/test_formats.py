"""Every kind of input is read, other columns are kept, and the embeddings equal those of `encode`."""

from __future__ import annotations

import datetime as dt
import errno
import gzip
import json
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_output import ARTIFACT, errors_of, jsonl, output_of, rows_of_shards

from koe5_onnx import Embedder, InputError, TextTooLongError, TruncationWarning
from koe5_onnx.bulk import plan, table_files
from koe5_onnx.bulk.table_files import open_table
from koe5_onnx.bulk.worker import RecentTexts
from koe5_onnx.embedder import Encoded

TEXTS = ["가나다", "", "고래는 포유류이다.", "a" * 40, "줄\n바꿈"]


def embeddings(table, name="embedding"):
    return np.array(table.column(name).to_pylist(), np.float32)


def parquet(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, path, **options)


COLUMNS = {
    "id": pa.array(range(5), pa.int16()),
    "when": pa.array([dt.datetime(2024, 1, day, tzinfo=dt.UTC) for day in range(1, 6)]),
    "nested": pa.array([{"a": [1, 2], "b": None}, None, {"a": [], "b": "x"}, {"a": None, "b": "y"}, None]),
    "kind": pa.array(["x", "y", "x", None, "x"]).dictionary_encode(),
    "raw": pa.array([b"\xff", b"", None, b"\x00", b"a"]),
    "amount": pa.array([1, 2, None, 4, 5], pa.decimal128(10, 2)),
}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), "dictionary"]
)
def test_parquet(embed, embedder, tmp_path, kind):
    texts = pa.array(TEXTS).dictionary_encode() if kind == "dictionary" else pa.array(TEXTS).cast(kind)
    given = pa.table({"text": texts, **COLUMNS})
    parquet(tmp_path / "in.parquet", given)
    summary = embed("in.parquet", shard_rows=2)
    assert (summary.rows, summary.bad_rows, summary.shards) == (5, 0, 3)
    out = output_of(tmp_path / "out")
    assert out.drop_columns("embedding").equals(given)
    field = pq.read_schema(tmp_path / "out/part-00000000.parquet").field("embedding")
    assert field.type == pa.list_(pa.field("element", pa.float32()), embedder.dim)
    np.testing.assert_array_equal(embeddings(out), embedder.encode_passages(TEXTS))


def test_decomposed_hangul_is_composed_and_counted(embed, embedder, tmp_path):
    decomposed = [unicodedata.normalize("NFD", text) for text in TEXTS]
    parquet(tmp_path / "in.parquet", pa.table({"text": decomposed}))
    summary = embed("in.parquet", shard_rows=2)
    out = output_of(tmp_path / "out")
    np.testing.assert_array_equal(embeddings(out), embedder.encode_passages(TEXTS))
    assert out["text"].to_pylist() == decomposed  # columns keep the caller's text
    changed = sum(a != b for a, b in zip(decomposed, TEXTS, strict=True))
    assert summary.composed == changed > 0
    assert json.loads((tmp_path / "out/_SUCCESS").read_text())["composed"] == changed


@pytest.mark.parametrize("row_group_size", [1, 3, 1000])
@pytest.mark.parametrize("shard_rows", [1, 7, 100, 5000])
def test_row_groups_and_shards_need_not_agree(embed, tmp_path, row_group_size, shard_rows):
    for number, rows in enumerate((60, 0, 1, 40)):
        ids = range(number * 1000, number * 1000 + rows)
        texts = [f"문서 {place}" for place in ids]
        parquet(
            tmp_path / f"in/{number}.parquet",
            {"text": pa.array(texts, pa.string()), "id": pa.array(ids, pa.int64())},
            row_group_size=row_group_size,
        )
    embed("in", shard_rows=shard_rows)
    out = output_of(tmp_path / "out")
    assert out.column("id").to_pylist() == [*range(60), 2000, *range(3000, 3040)]
    assert [f"문서 {place}" for place in out.column("id").to_pylist()] == out.column("text").to_pylist()
    full, rest = divmod(101, shard_rows)
    assert rows_of_shards(tmp_path / "out") == [shard_rows] * full + [rest] * bool(rest)


def test_parquet_files_may_lack_columns(embed, tmp_path):
    parquet(tmp_path / "in/a.parquet", {"text": ["가"], "x": pa.array([None], pa.null())})
    parquet(tmp_path / "in/b.parquet", {"y": [2.5], "text": ["나"], "x": [3]})
    embed("in")
    rows = output_of(tmp_path / "out").drop_columns("embedding").to_pylist()
    assert rows == [{"text": "가", "x": None, "y": None}, {"text": "나", "x": 3, "y": 2.5}]


def test_jsonl(embed, embedder, tmp_path, put):
    objects = [
        {"id": 1, "text": TEXTS[0], "score": 1},
        {"id": 2, "text": TEXTS[1], "tags": ["a"]},
        {"text": TEXTS[2], "score": 2.5, "tags": [], "who": {"name": "x"}},
        {"id": 4, "text": TEXTS[3], "who": {"age": 3}, "mixed": "plain", "empty": {}},
        {"id": 5, "text": TEXTS[4], "mixed": {"가": [1, None]}, "nothing": None, "big": 2**70},
    ]
    put("in.jsonl", b"\xef\xbb\xbf" + jsonl(*objects).replace(b"\n", b"\r\n\r\n  \n")[:-5])
    embed("in.jsonl", shard_rows=2)
    out = output_of(tmp_path / "out")
    np.testing.assert_array_equal(embeddings(out), embedder.encode_passages(TEXTS))
    rows = out.drop_columns(["embedding", "text"]).to_pylist()
    absent = dict.fromkeys(("tags", "who", "mixed", "empty", "nothing", "big"))
    assert rows[0] == {"id": 1, "score": 1.0, **absent}
    assert [row["id"] for row in rows] == [1, 2, None, 4, 5]
    assert [row["tags"] for row in rows] == [None, ["a"], [], None, None]
    assert [row["who"] for row in rows][2:4] == [{"name": "x", "age": None}, {"name": None, "age": 3}]
    assert [row["mixed"] for row in rows][3:] == ["plain", '{"가": [1, null]}']
    assert [rows[3]["empty"], rows[4]["big"]] == ["{}", str(2**70)]
    assert out.schema.field("score").type == pa.float64()


def test_a_late_column_is_in_every_shard(embed, tmp_path, put):
    many = [{"text": f"글 {place}"} for place in range(600)]
    put("in/a.jsonl", jsonl(*many))
    put("in/b.jsonl", jsonl({"text": "끝", "late": "여기"}))
    embed("in", shard_rows=100)
    assert pq.read_schema(tmp_path / "out/part-00000000.parquet").names == ["text", "late", "embedding"]
    assert output_of(tmp_path / "out").column("late").to_pylist() == [None] * 600 + ["여기"]


CSV = (
    '\ufefftext,"id, or so",note\r\n'
    '"안녕, ""세상""\r\n두 번째 줄",007,\r\n'
    "\r\n"
    '"",1.50,"x"\r\n'
    '셋\u2028째,,5" pipe\n'
    "last,1,2"
)


def test_csv(embed, embedder, tmp_path, put):
    put("in.csv", CSV.encode())
    embed("in.csv", shard_rows=1)
    out = output_of(tmp_path / "out")
    texts = ['안녕, "세상"\r\n두 번째 줄', "", "셋\u2028째", "last"]
    assert out.drop_columns("embedding").to_pydict() == {
        "text": texts,
        "id, or so": ["007", "1.50", "", "1"],
        "note": ["", "x", '5" pipe', "2"],
    }
    np.testing.assert_array_equal(embeddings(out), embedder.encode_passages(texts))
    assert errors_of(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("name", "content"), [("in.csv", CSV.encode()), ("in.jsonl", jsonl({"text": "가"}, {"text": "나"}))]
)
@pytest.mark.parametrize("shard_rows", [1, 2, 100])
def test_gzip(embed, tmp_path, put, name, content, shard_rows):
    put(name, content)
    put(f"{name}.gz", gzip.compress(content))
    embed(name, "plain", shard_rows=shard_rows)
    embed(f"{name}.gz", "packed", shard_rows=shard_rows)
    assert output_of(tmp_path / "plain").equals(output_of(tmp_path / "packed"))


def test_a_long_line_and_a_long_field(embed, tmp_path, put):
    long = "가나 " * 200_000
    put("in.jsonl", jsonl({"text": "짧다"}, {"text": long}, {"text": "끝"}))
    put("in.csv", f'text\n짧다\n"{long}"\n끝\n'.encode())
    for name in ("in.jsonl", "in.csv"):
        summary = embed(name, f"{name}-out")
        assert (summary.rows, summary.truncated) == (3, 1)
        assert output_of(tmp_path / f"{name}-out").column("text").to_pylist() == ["짧다", long, "끝"]


def test_names_other_than_the_usual(embed, embedder, tmp_path, put):
    put("in.jsonl", jsonl({"contents": "가", "embedding": "mine", "text": 5}))
    with pytest.raises(
        InputError, match=r"already has a column 'embedding'\. Pass another name with --embedding-column"
    ):
        embed("in.jsonl", text_column="contents")
    embed("in.jsonl", text_column="contents", embedding_column="vector", prompt_name=None)
    out = output_of(tmp_path / "out")
    assert out.column_names == ["contents", "embedding", "text", "vector"]
    np.testing.assert_array_equal(embeddings(out, "vector"), embedder.encode(["가"]))


def test_the_schema_says_what_the_vectors_are(embed, tmp_path, put):
    put("in.jsonl", jsonl({"text": "가"}))
    embed("in.jsonl", prompt_name="query", output_dtype="binary")
    found = json.loads(pq.read_schema(tmp_path / "out/part-00000000.parquet").metadata[b"koe5_onnx"])
    assert {
        "prompt_name": "query",
        "dtype": "binary",
        "dim": 64,
        "embedding_column": "embedding",
    }.items() <= found.items()
    assert "Hamming" in found["convention"]


@pytest.mark.parametrize(
    ("name", "content"), [("in.jsonl", b""), ("in.jsonl", b"\n\n"), ("in.csv", b"text,id\n")]
)
def test_no_rows(embed, tmp_path, put, name, content):
    put(name, content)
    summary = embed(name)
    assert (summary.rows, summary.shards) == (0, 0)
    assert json.loads((tmp_path / "out/_SUCCESS").read_text())["shards"] == {}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"in/readme.txt": b"x"}, "has no input files: expected files of one kind"),
        ({"in/a.csv": b"text\n", "in/b.jsonl": b""}, r"has files of 2 kinds \(csv, jsonl\)"),
        ({"in/a.parquet": b"PAR1 or not"}, "a.parquet is not a parquet file"),
        ({"in/a.jsonl": b'{"body": "x"}\n[]\n'}, r"the input has no column 'text', only \['body'\]"),
        ({"in/a.csv": b"body,id\nx,1\n"}, r"a.csv has no column 'text', only \['body', 'id'\]"),
        ({"in/a.csv": b"text,id,text\nx,1,2\n"}, "the header of .*a.csv has a name twice"),
        ({"in/a.csv": b""}, "expected the column names in the first line"),
        ({"in/a.csv": b"\xff,text\n"}, "expected the column names in the first line, in UTF-8"),
        ({"in/a.csv": "이름,text\n".encode("cp949")}, r"a.csv is not UTF-8\. Pass --encoding cp949, which"),
        ({"in/a.csv": b'"text\n'}, "the header of .*a.csv is not CSV"),
        ({"in/a.jsonl.gz": b"no gzip"}, "a.jsonl.gz is a damaged gzip file"),
        ({"in/a.jsonl.gz": gzip.compress(b'{"text": "x"}\n' * 9)[:-12]}, "a.jsonl.gz is a damaged gzip file"),
    ],
)
def test_invalid_inputs_are_rejected(embed, tmp_path, put, files, message):
    for name, content in files.items():
        put(name, content)
    with pytest.raises(InputError, match=message):
        embed("in")
    assert not (tmp_path / "out/_job.json").exists()


def test_invalid_parquet_is_rejected(embed, tmp_path):
    parquet(tmp_path / "in/a.parquet", {"text": [1, 2]})
    with pytest.raises(InputError, match=r"the column 'text' of .* is int64: expected text"):
        embed("in")
    parquet(tmp_path / "in/a.parquet", {"text": ["x"], "id": [1]})
    parquet(tmp_path / "in/b.parquet", {"text": ["x"], "id": ["one"]})
    with pytest.raises(InputError, match="the columns of the input files do not match"):
        embed("in")


def test_damage_and_disk_errors_in_parquet(embed, tmp_path, monkeypatch):
    parquet(tmp_path / "in.parquet", {"text": [f"글 {row}" for row in range(500)]}, compression="zstd")
    content = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "in.parquet").write_bytes(content[:99] + b"?" * 99 + content[198:])
    with pytest.raises(InputError, match=r"in.parquet is damaged after row 0 \(.*\)\. Download it again"):
        embed("in.parquet")

    def fail(_file, _first):
        yield from ()
        raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(table_files._ParquetFile, "batches", fail)
    with pytest.raises(OSError, match="the disk failed"):
        embed("in.parquet")


def test_hidden_files_of_other_programs_are_ignored(embed, tmp_path, put):
    parquet(tmp_path / "in/sub/b.parquet", {"text": ["나"]})
    parquet(tmp_path / "in/a.parquet", {"text": ["가"]})
    put("in/_SUCCESS", b"")
    put("in/_temporary/c.parquet", b"unfinished")
    put("in/.a.parquet.crc", b"")
    embed("in")
    assert output_of(tmp_path / "out").column("text").to_pylist() == ["가", "나"]


def test_overflow(embed, tmp_path, put, recwarn):
    put("in.jsonl", jsonl({"text": "가 " * 600}, {"text": "나"}, {"text": None}, {"text": "다 " * 700}))
    summary = embed("in.jsonl", "cut")
    assert (summary.rows, summary.bad_rows, summary.truncated) == (2 + 1, 1, 2)
    assert not [warning for warning in recwarn if issubclass(warning.category, TruncationWarning)]
    summary = embed("in.jsonl", "refused", overflow="error", max_bad_share=0.75)
    assert (summary.rows, summary.bad_rows, summary.truncated) == (1, 3, 0)
    assert [row["row"] for row in errors_of(tmp_path / "refused")] == [0, 2, 3]
    assert "tokens, expected at most 512" in errors_of(tmp_path / "refused")[0]["reason"]
    with pytest.raises(
        InputError, match=r"in.jsonl, line 1: the text has \d+ tokens, expected at most 512"
    ) as caught:
        embed("in.jsonl", "strict", overflow="error", strict=True, shard_rows=2)
    assert not isinstance(caught.value, TextTooLongError)
    summary = embed("in.jsonl", "averaged", overflow="average")
    assert (summary.rows, summary.truncated) == (3, 0)
    with Embedder.open(ARTIFACT, threads=1, overflow="average") as averaging:
        expected = averaging.encode_passages(["가 " * 600, "나", "다 " * 700])
    np.testing.assert_array_equal(embeddings(output_of(tmp_path / "averaged")), expected)


def test_real_pages(embed, embedder, tmp_path, autorag):
    (tmp_path / "in.parquet").write_bytes(autorag.read_bytes())
    summary = embed("in.parquet", text_column="contents", shard_rows=500)
    given = pq.read_table(autorag).replace_schema_metadata()
    out = output_of(tmp_path / "out")
    assert summary.rows == len(out) == 720
    assert out.drop_columns("embedding").equals(given)
    with pytest.warns(TruncationWarning):
        expected = embedder.encode_passages(given.column("contents").to_pylist())
    np.testing.assert_array_equal(embeddings(out), expected)


@pytest.mark.parametrize("overflow", ["truncate", "error", "average"])
def test_dedupe_changes_no_row(embed, tmp_path, put, monkeypatch, overflow):
    """The texts repeat in later shards. The third is above the token limit, and the fourth is not in NFC."""
    texts = ["서울", "고래 " * 9, "긴 글 " * 300, unicodedata.normalize("NFD", "한국"), ""]
    put("in.jsonl", jsonl(*({"id": row, "text": texts[(row * 3 + row // 7) % 5]} for row in range(40))))
    embed("in.jsonl", "plain", shard_rows=8, overflow=overflow)
    embedded = []
    encode = Embedder.encode_with_info
    monkeypatch.setattr(
        Embedder,
        "encode_with_info",
        lambda self, texts, *given, **named: embedded.extend(texts) or encode(self, texts, *given, **named),
    )
    summary = embed("in.jsonl", shard_rows=8, overflow=overflow, dedupe=True)
    different = {texts[(row * 3 + row // 7) % 5] for row in range(40)}
    assert sorted(embedded) == sorted(different)
    assert summary.repeated == 40 - len(different)
    plain = {path.name: path.read_bytes() for path in (tmp_path / "plain").glob("part-*")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("part-*")} == plain
    for name in ("_SUCCESS", "_errors.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_the_window_of_dedupe_is_bounded():
    calls = []

    def encode(texts):
        calls.append(list(texts))
        rows = np.array([[len(text)] for text in texts], np.float32).reshape(-1, 1)
        return Encoded(rows, rows[:, 0].astype(np.int32), rows[:, 0] > 2, rows[:, 0] > 3)

    recent = RecentTexts(1, max_bytes=2 * 704)
    for texts in (["a", "bb", "a"], ["a", "ccc"], ["bb", "a"], ["dddd", "a", "dddd"]):
        found, _ = recent.encode(texts, encode)
        assert found.embeddings[:, 0].tolist() == [len(text) for text in texts]
        assert found.truncated.tolist() == [len(text) > 2 for text in texts]
    assert calls == [["a", "bb"], ["ccc"], ["bb"], ["dddd"]]


def test_planning_opens_one_file_at_a_time(embed, tmp_path, monkeypatch):
    """A folder may have more files than a process may open."""
    for number in range(5):
        parquet(tmp_path / f"in/{number}.parquet", {"text": TEXTS})
    opened = []

    def open_one(path, kind):
        assert all(file._file.closed for file in opened)
        opened.append(open_table(path, kind))
        return opened[-1]

    monkeypatch.setattr(plan, "open_table", open_one)
    assert embed("in").rows == 25
    assert len(opened) == 5
