"""Files of other programs, with their encodings, dialects, compression, partitions and mixed types."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from bulk_output import errors_of, jsonl, output_of, reasons_of

from koe5_onnx import InputError, cli
from koe5_onnx.bulk import Dialect, rows

TEXTS = ["고래는 포유류이다.", "뷁 \u0a0a\u010a끝", "plain", '서울, "수도"\r\n두 번째 줄']
KOREAN = [text.replace("\u0a0a\u010a", "") for text in TEXTS]


def written(texts, kind):
    if kind == "csv":
        return "id,text\r\n" + "".join(
            '{},"{}"\r\n'.format(row, text.replace('"', '""')) for row, text in enumerate(texts)
        )
    return jsonl(*({"id": row, "text": text} for row, text in enumerate(texts))).decode()


def assert_resumes(embed, folder, name, **options):
    """Delete a shard in the middle, and check that the job rewrites only this shard."""
    before = output_of(folder)
    (folder / "part-00000002.parquet").unlink()
    assert embed(name, shard_rows=1, **options).shards_before == 3
    assert output_of(folder).equals(before)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("encoding", "option"),
    [
        ("cp949", "cp949"),
        ("cp949", "auto"),
        ("euc-kr", "euc-kr"),
        ("utf-16", "utf-16"),
        ("utf-16", "auto"),
        ("utf-16-be", "auto"),
        ("utf-8-sig", "auto"),
        ("utf-8-sig", "utf-8"),
    ],
)
@pytest.mark.parametrize("shard_rows", [1, 100])
def test_encodings(embed, embedder, tmp_path, put, kind, encoding, option, shard_rows):
    texts = TEXTS if encoding.startswith("utf") else [text.replace("뷁", "밝") for text in KOREAN]
    put(f"in.{kind}", written(texts, kind).encode(encoding))
    summary = embed(f"in.{kind}", encoding=option, shard_rows=shard_rows)
    out = output_of(tmp_path / "out")
    assert (summary.bad_rows, out.column("text").to_pylist()) == (0, texts)
    assert list(map(int, out.column("id").to_pylist())) == list(range(len(texts)))
    np.testing.assert_array_equal(
        np.array(out.column("embedding").to_pylist(), np.float32), embedder.encode_passages(texts)
    )
    if shard_rows == 1:
        assert_resumes(embed, tmp_path / "out", f"in.{kind}", encoding=option)


@pytest.mark.parametrize(
    ("encoding", "named"), [("cp949", "cp949"), ("utf-16", "utf-16-le"), ("utf-16-be", "utf-16-be")]
)
@pytest.mark.parametrize("english_first", [0, 1 << 20])
def test_another_encoding_is_named_before_anything_is_written(
    embed, tmp_path, put, encoding, named, english_first
):
    content = "id,text\n" + "1,an English row\n" * (english_first // 16) + "2,안녕하세요\n"
    put("in/a.csv", b"id,text\n0,good\n")
    put("in/b.csv", content.encode(encoding))
    with pytest.raises(
        InputError, match=rf"b.csv is not UTF-8\. Pass --encoding {named}, which it probably has"
    ):
        embed("in")
    assert not (tmp_path / "out/_job.json").exists()
    assert not list((tmp_path / "out").glob("part-*"))
    if not english_first:
        assert embed("in", encoding="auto").bad_rows == 0
        assert output_of(tmp_path / "out").column("text").to_pylist() == ["good", "안녕하세요"]


def test_a_bad_byte_costs_its_row_in_every_encoding(embed, tmp_path, put):
    good = "가,나\n".encode("cp949")
    put("in.csv", b"text,n\n" + good * 2 + b"\xff\xff,x\n" + b'"a\n\xc7",x\n' + good * 30)
    put(
        "wide.jsonl",
        '{"text": "가"}\n\n'.encode("utf-16-le") * 3
        + b"\x00\xd8\n\x00"
        + '{"text": "나"}\n'.encode("utf-16-le"),
    )
    assert embed("in.csv", encoding="cp949").rows == 32
    assert [(row, line) for row, line, _ in reasons_of(tmp_path / "out")] == [(2, 4), (3, 5)]
    assert reasons_of(tmp_path / "out")[0][2] == "not CP949: byte 0 is 0xff"
    assert embed("wide.jsonl", "wide", encoding="utf-16").rows == 4
    assert reasons_of(tmp_path / "wide") == [(3, 7, "not UTF-16-LE: byte 0 is 0x00")]


SPARK = [
    r"plain,C:\new\table,1",
    r'"say \"hi, there\"",x,2',
    r'"ends with \\",x,3',
    r'"C:\\dir and \n",x,4',
    r'"",x,5',
    '"two\n\\"lines\\"",x,6',
    r"\\server\x,x,7",
]


@pytest.mark.parametrize("shard_rows", [1, 100])
def test_csv_of_spark(embed, tmp_path, put, shard_rows):
    put("in.csv", "\n".join(["text,path,n", *SPARK]).encode())
    assert embed("in.csv", csv=Dialect(escape="\\"), shard_rows=shard_rows).bad_rows == 0
    out = output_of(tmp_path / "out")
    assert out.column("text").to_pylist() == [
        "plain", 'say "hi, there"', "ends with \\", r"C:\dir and \n", "", 'two\n"lines"', r"\\server\x",
    ]  # fmt: skip
    assert out.column("path").to_pylist()[0] == r"C:\new\table"
    assert out.column("n").to_pylist() == list("1234567")


def test_a_row_that_needs_an_escape_says_so(embed, tmp_path, put):
    put("in.csv", "\n".join(["text,path,n", *SPARK[:1] * 9, *SPARK]).encode())
    embed("in.csv")
    assert "as Spark writes it, pass --csv-escape '\\'" in errors_of(tmp_path / "out")[0]["reason"]


def test_other_delimiters_and_quotes(embed, tmp_path, put):
    put("a.csv", "text;n\n'가; ''나''';1\n".encode())
    put("b.tsv", 'text\tn\n"가\t나"\t1\n'.encode())
    put("c.csv", b'text|n\nsay "hi|1\n')
    for name, csv, text in (
        ("a.csv", Dialect(";", "'"), "가; '나'"),
        ("b.tsv", Dialect(), "가\t나"),
        ("c.csv", Dialect("|", ""), 'say "hi'),
    ):
        assert embed(name, f"{name}-out", csv=csv).bad_rows == 0
        assert output_of(tmp_path / f"{name}-out").drop_columns("embedding").to_pylist() == [
            {"text": text, "n": "1"}
        ]


@pytest.mark.parametrize("dialect", [(",", ","), (";;",), (None, '"', '"'), ("\n",)])
def test_dialects_that_will_not_do(dialect):
    with pytest.raises(InputError, match="expected different single characters"):
        Dialect(*dialect)


@pytest.mark.parametrize("total", [10, 5000])
def test_mostly_bad_rows_stop_before_anything_is_written(embed, tmp_path, put, total):
    put("in.csv", b"text,n\n" + b'"a\\"b",1\n' * total)
    put("in.json", json.dumps([{"text": "x"}] * total, indent=1).encode())
    for name, advice in (
        ("in.csv", "Check --text-column, --encoding, --csv-delimiter"),
        ("in.json", "a line is a JSON"),
    ):
        with pytest.raises(
            InputError, match=rf"rows are bad, .*{name}, line \d: not .*{advice}.*--max-bad-share"
        ):
            embed(name, name + "-out")
        assert not (tmp_path / f"{name}-out/_job.json").exists()


def test_too_many_bad_rows_are_no_success(embed, tmp_path):
    pq.write_table(pa.table({"text": ["a", None, None, "b", None, None, "c", "d"]}), tmp_path / "in.parquet")
    embed("in.parquet", shard_rows=2)  # the default allows half of the rows
    with pytest.raises(
        InputError,
        match=r"4 of 8 rows are bad, which is more than the maximum share of 0.4. in.parquet, row 1",
    ):
        embed("in.parquet", shard_rows=2, max_bad_share=0.4)
    assert not (tmp_path / "out/_SUCCESS").exists()
    with pytest.raises(InputError, match="4 of 8 rows"):
        embed("in.parquet", "other", shard_rows=2, max_bad_share=0.3)
    assert len(list((tmp_path / "other").glob("part-*"))) == 3  # the job stops as soon as there are too many
    assert len(errors_of(tmp_path / "other")) == 4
    summary = embed("in.parquet", "other", shard_rows=2, max_bad_share=0.5)
    assert (summary.rows, summary.bad_rows, summary.shards_before) == (4, 4, 3)
    assert (tmp_path / "other/_SUCCESS").exists()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_out_of_range(embed, put, share):
    put("in.jsonl", jsonl({"text": "a"}))
    with pytest.raises(InputError, match=r"max_bad_share is .*: expected a number from 0 to 1"):
        embed("in.jsonl", max_bad_share=share)


@pytest.mark.parametrize("name", ["in.ndjson", "in.json", "in.jsonl.zst", "in.json.gz", "in.csv.zst"])
@pytest.mark.parametrize("shard_rows", [1, 100])
def test_names_of_text_files(embed, tmp_path, put, name, shard_rows):
    content = written(TEXTS, "csv" if "csv" in name else "jsonl").encode()
    compression = {"zst": "zstd", "gz": "gzip"}.get(name.rpartition(".")[2])
    if compression is not None:
        with pa.CompressedOutputStream(str(tmp_path / name), compression) as stream:
            stream.write(content)
    else:
        put(name, content)
    embed(name, shard_rows=shard_rows)
    assert output_of(tmp_path / "out").column("text").to_pylist() == TEXTS
    if shard_rows == 1:
        assert_resumes(embed, tmp_path / "out", name)


def test_json_next_to_data_is_metadata(embed, tmp_path, put):
    put("in/a.jsonl", jsonl({"text": "가"}))
    put("in/dataset_info.json", b"{}")
    assert embed("in").rows == 1


@pytest.mark.parametrize("name", ["in.feather", "in.arrow", "in.ipc"])
@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
@pytest.mark.parametrize("shard_rows", [1, 7, 1000])
def test_arrow(embed, tmp_path, name, compression, shard_rows):
    table = pa.table({"text": [f"글 {row}" if row % 9 else None for row in range(60)], "id": range(60)})
    if name == "in.arrow":  # the stream format, which Hugging Face datasets write
        options = pa.ipc.IpcWriteOptions(compression=None if compression == "uncompressed" else compression)
        with pa.ipc.new_stream(str(tmp_path / name), table.schema, options=options) as writer:
            writer.write_table(table, 16)
    else:
        pyarrow.feather.write_feather(table, str(tmp_path / name), compression=compression, chunksize=16)
    summary = embed(name, shard_rows=shard_rows)
    assert summary.bad_rows == 7
    assert (
        output_of(tmp_path / "out").drop_columns("embedding").equals(table.filter(table["text"].is_valid()))
    )


@pytest.mark.parametrize("name", ["in.arrow", "in.feather"])
def test_arrow_that_will_not_do(embed, put, name):
    put(name, b"not Arrow")
    with pytest.raises(InputError, match=f"{name} is not an Arrow file"):
        embed(name)


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_partitions(embed, tmp_path, put, kind):
    for folder, text in (
        ("lang=en/year=2024", "b"),
        ("lang=ko/year=007", "가"),
        ("lang=__HIVE_DEFAULT_PARTITION__", "c"),
        ("lang=zh%2DTW", "d"),
    ):
        if kind == "parquet":
            parquet(tmp_path / f"in/{folder}/a.parquet", text=[text, None, text])
        else:
            put(f"in/{folder}/a.jsonl", jsonl({"text": text}, {"text": None}, {"text": text}))
    embed("in", shard_rows=2)
    found = output_of(tmp_path / "out").drop_columns("embedding").to_pylist()
    assert (
        found[::2]
        == found[1::2]
        == [
            {"text": "c", "lang": None, "year": None},
            {"text": "b", "lang": "en", "year": "2024"},
            {"text": "가", "lang": "ko", "year": "007"},
            {"text": "d", "lang": "zh-TW", "year": None},
        ]
    )


def test_a_column_wins_over_a_folder_of_its_name(embed, tmp_path):
    parquet(tmp_path / "in/lang=en/n=7/a.parquet", text=["a"], lang=["english"])
    parquet(tmp_path / "in/lang=ko/n=x/b.parquet", text=["b"], n=[8])
    embed("in")
    found = output_of(tmp_path / "out").drop_columns("embedding").to_pylist()
    assert found == [{"text": "a", "lang": "english", "n": 7}, {"text": "b", "lang": "ko", "n": 8}]
    parquet(tmp_path / "in/lang=ko/n=x/b.parquet", text=["b"])
    parquet(tmp_path / "in/c.parquet", text=["c"], n=[9])
    with pytest.raises(
        InputError, match=r"the folder n=x of lang=ko/n=x/b.parquet does not fit into the column 'n'"
    ):
        embed("in", restart=True)


DAY = dt.datetime(2024, 1, 1)
PROMOTED = [
    (pa.array([1], pa.int32()), pa.array([2**40], pa.int64()), pa.int64()),
    (pa.array([1], pa.uint32()), pa.array([-1], pa.int32()), pa.int64()),
    (pa.array([1], pa.int32()), pa.array([0.5], pa.float64()), pa.float64()),
    (pa.array([1], pa.int16()), pa.array([0.5], pa.float32()), pa.float32()),
    (pa.array([DAY], pa.timestamp("ms")), pa.array([DAY], pa.timestamp("us")), pa.timestamp("us")),
    (pa.array(["x"]), pa.array(["y"], pa.large_string()), pa.large_string()),
    (pa.array(["x"]), pa.array(["y"]).dictionary_encode(), pa.string()),
    (pa.array(["x"]).dictionary_encode(), pa.array(["y"], pa.large_string()), pa.large_string()),
    (pa.array([Decimal(1)], pa.decimal128(5)), pa.array([Decimal(2)], pa.decimal128(9)), pa.decimal128(9)),
    (pa.array([[1]]), pa.array([[2]], pa.large_list(pa.int8())), pa.large_list(pa.int64())),
    (
        pa.array([{"a": 1, "b": "x"}], pa.struct([("a", pa.int32()), ("b", pa.string())])),
        pa.array([{"c": 2, "a": 3}], pa.struct([("c", pa.int8()), ("a", pa.int64())])),
        pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.int8())]),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "kind"), PROMOTED)
@pytest.mark.parametrize("swap", [False, True])
def test_types_are_promoted(embed, tmp_path, a, b, kind, swap):
    parquet(tmp_path / "in/a.parquet", text=["가"], x=b if swap else a)
    parquet(tmp_path / "in/b.parquet", text=pa.array(["나"]).dictionary_encode(), x=a if swap else b)
    embed("in", shard_rows=1)
    table = output_of(tmp_path / "out")
    assert table.column("text").to_pylist() == ["가", "나"]
    found = table.column("x")
    if pa.types.is_struct(kind):
        assert {field.name: field.type for field in found.type} == {field.name: field.type for field in kind}
        given = [{**dict.fromkeys("abc"), **value} for value in [*a.to_pylist(), *b.to_pylist()]]
    else:
        assert found.type == kind
        given = [*a.to_pylist(), *b.to_pylist()]
    assert found.to_pylist() == (given[::-1] if swap else given)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (pa.array([1], pa.int64()), pa.array([0.5])),
        (pa.array([1], pa.uint64()), pa.array([-1])),
        (pa.array([Decimal("1.5")]), pa.array([0.5])),
        (pa.array(["1"]), pa.array([1])),
        (pa.array([DAY], pa.timestamp("us", "UTC")), pa.array([DAY], pa.timestamp("us"))),
        (pa.array([{"a": 1}]), pa.array([{"a": "1"}])),
    ],
)
def test_types_that_would_lose(embed, tmp_path, a, b):
    parquet(tmp_path / "in/a.parquet", text=["가"], x=a)
    parquet(tmp_path / "in/b.parquet", text=["나"], x=b)
    with pytest.raises(InputError, match=r"do not match: 'x' is .* in .*a.parquet and .* in .*b.parquet"):
        embed("in")


def test_a_value_that_does_not_fit_is_named(embed, tmp_path):
    parquet(tmp_path / "in/a.parquet", text=["가"], x=pa.array([DAY], pa.timestamp("ns")))
    parquet(tmp_path / "in/b.parquet", text=["나"], x=pa.array([dt.datetime(9999, 1, 1)], pa.timestamp("us")))
    with pytest.raises(InputError, match=r"the column 'x' of b.parquet does not fit into timestamp\[ns\]"):
        embed("in")


RECORDS = [
    {"doc": {"title": "제목", "meta": {"body": "본문"}}, "a.b": "점", "n": 1},
    {"doc": {"title": None, "meta": {"body": "다음"}}, "a.b": "표", "n": 2},
    {"doc": {"title": "혼자", "meta": None}, "a.b": "", "n": 3},
    {"doc": None, "a.b": None, "n": 4},
]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("options", "texts", "bad"),
    [
        ({"text_column": "doc.title"}, ["제목", "혼자"], [1, 3]),
        ({"text_column": "doc.meta.body"}, ["본문", "다음"], [2, 3]),
        ({"text_column": "a.b"}, ["점", "표", ""], [3]),
        ({"text_template": "{doc.title}\n{doc.meta.body}"}, ["제목\n본문", "\n다음", "혼자\n"], [3]),
        ({"text_template": "<{{{a.b}}}> {doc.title}!"}, ["<{점}> 제목!", "<{표}> !", "<{}> 혼자!"], [3]),
    ],
)
def test_fields_and_templates(embed, embedder, tmp_path, put, kind, options, texts, bad):
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "in.parquet")
    else:
        put("in.jsonl", jsonl(*RECORDS))
    embed(f"in.{kind}", shard_rows=2, **options)
    out = output_of(tmp_path / "out")
    assert [row for row, _, _ in reasons_of(tmp_path / "out")] == bad
    np.testing.assert_array_equal(
        np.array(out.column("embedding").to_pylist(), np.float32), embedder.encode_passages(texts)
    )
    assert out.drop_columns("embedding").to_pylist() == [
        record for row, record in enumerate(RECORDS) if row not in bad
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_template": "{title"}, "the text template '{title' is invalid"),
        ({"text_template": "no names"}, "expected column names in braces"),
        ({"text_template": "{}"}, "expected column names in braces"),
        ({"text_template": "{a!r}"}, "expected column names in braces"),
        ({"text_template": "{n}"}, "the column 'n' of .*in.parquet is int64: expected text"),
        ({"text_template": "{doc.no}"}, "the column 'doc.no' of .*in.parquet is None: expected text"),
        ({"text_template": "{no.title}"}, "has no column 'no.title', only"),
        ({"text_column": "doc"}, "the column 'doc' of .*in.parquet is struct<.*: expected text"),
        ({"encoding": "klingon"}, "the encoding is 'klingon'"),
    ],
)
def test_texts_that_will_not_do(embed, tmp_path, options, message):
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=message):
        embed("in.parquet", **options)


def test_a_value_of_a_template_that_is_no_text(embed, tmp_path, put):
    put("in.jsonl", jsonl({"a": "x", "b": "y"}, {"a": "x"}, {"a": 5, "b": "y"}))
    embed("in.jsonl", text_template="{a} {b}")
    assert reasons_of(tmp_path / "out") == [(2, 3, "column 'a': expected text, found number")]


def test_a_long_row_of_parquet_is_bad(embed, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_RECORD_BYTES", 1 << 20)
    parquet(tmp_path / "in.parquet", text=["a", "b" * (1 << 20), "c" * ((1 << 20) + 1), "d"])
    assert embed("in.parquet").rows == 3
    assert reasons_of(tmp_path / "out") == [(2, None, "the text is longer than 1 MiB")]


def test_the_command_line(tmp_path, put, artifact, embedder):
    put("in.csv", "title;body\n'가\\'나';다\n".encode("cp949"))
    arguments = [
        "--encoding", "cp949", "--csv-delimiter", ";", "--csv-quote", "'", "--csv-escape", "\\",
        "--text-template", r"{title}\n{body}", "--max-bad-share", "0.1",
    ]  # fmt: skip
    usual = ["--artifact", str(artifact), "--threads", "1", "--prompt-name", "passage"]
    assert cli.main(["bulk", str(tmp_path / "in.csv"), str(tmp_path / "out"), *usual, *arguments]) == 0
    found = output_of(tmp_path / "out").column("embedding").to_pylist()
    assert found == embedder.encode_passages(["가'나\n다"]).tolist()
