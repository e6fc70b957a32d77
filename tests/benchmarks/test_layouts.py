import csv

import pytest

from benchmarks.layouts import read_contents
from koe5_onnx import InputError

PASSAGES = [{"_id": "a", "title": "서울", "text": "수도이다."}, {"_id": "b", "title": "", "text": "고래"}]
QUERIES = [{"_id": "1", "text": "수도는?"}, {"_id": "2", "text": "고래는?"}, {"_id": "3", "text": "?"}]
QRELS = [("1", "a", 1), ("2", "b", 2), ("2", "a", 0)]


def write_autorag(folder, corpus=None, qa=None):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder.mkdir()
    corpus = corpus or {"doc_id": ["a", "b", "c"], "contents": ["가", "나", "다"]}
    qa = qa or {"qid": ["1", "2"], "query": ["가?", "나?"], "retrieval_gt": [[["a"]], [["b", "c"], ["a"]]]}
    parquet.write_table(pa.table(corpus), folder / "corpus.parquet")
    parquet.write_table(pa.table(qa), folder / "qa.parquet")
    return folder


def test_autorag(tmp_path):
    queries, passages, relevant = read_contents(write_autorag(tmp_path / "autorag"))
    assert queries == {"1": "가?", "2": "나?"}
    assert passages == {"a": "가", "b": "나", "c": "다"}
    assert relevant == {"1": {"a": 1}, "2": {"b": 1, "c": 1, "a": 1}}


def test_beir(write_beir):
    queries, passages, relevant = read_contents(write_beir(QUERIES, PASSAGES, QRELS))
    assert queries == {"1": "수도는?", "2": "고래는?"}, "the third query has no judgment"
    assert passages == {"a": "서울 수도이다.", "b": "고래"}
    assert relevant == {"1": {"a": 1}, "2": {"b": 2}}


def test_beir_uses_dev_only_if_there_is_no_test(write_beir):
    folder = write_beir(QUERIES, PASSAGES, [("3", "a", 1)], split="dev")
    assert read_contents(folder).relevant == {"3": {"a": 1}}
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n")
    assert read_contents(folder).relevant == {"1": {"a": 1}}


def test_beir_judgments_in_jsonl(write_beir):
    folder = write_beir(QUERIES, PASSAGES, QRELS)
    (folder / "qrels/test.tsv").unlink()
    (folder / "qrels/dev.jsonl").write_text('{"query-id": "1", "corpus-id": "b", "score": 1.0}\n')
    assert read_contents(folder).relevant == {"1": {"b": 1}}


def test_beir_in_parquet_shards(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    shards = {
        "corpus/corpus-00000-of-00002": PASSAGES[:1],
        "corpus/corpus-00001-of-00002": PASSAGES[1:],
        "queries/queries-00000-of-00001": QUERIES,
        "data/test-00000-of-00001": [
            dict(zip(("query-id", "corpus-id", "score"), (query, passage, float(grade)), strict=True))
            for query, passage, grade in QRELS
        ],
    }
    for name, rows in shards.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    queries, passages, relevant = read_contents(tmp_path)
    assert list(queries) == ["1", "2"]
    assert passages == {"a": "서울 수도이다.", "b": "고래"}
    assert relevant == {"1": {"a": 1}, "2": {"b": 2}}


def test_equal_faq_questions_and_answers_are_merged(tmp_path):
    rows = [("왜?", "그래서.\n\n정말로."), ("언제?", "그래서.\n\n정말로."), ("왜?", "아니라서, 또는")]
    (tmp_path / "data").mkdir()
    with (tmp_path / "data/korean.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("question", "answer"), *rows])
    queries, passages, relevant = read_contents(tmp_path)
    assert queries == {"q0": "왜?", "q1": "언제?"}
    assert passages == {"p0": "그래서.\n\n정말로.", "p1": "아니라서, 또는"}
    assert relevant == {"q0": {"p0": 1, "p1": 1}, "q1": {"p0": 1}}


def test_an_unknown_layout_lists_the_files_found(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(InputError, match=r"Expected corpus.parquet.*found corpus.jsonl"):
        read_contents(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read_contents(tmp_path / "corpus.jsonl")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\nnonsense\n', "cannot be read"),
        ("corpus.jsonl", '{"_id": "a"}\n', "row 1 has no text, expected one in every row; the row has _id"),
        ("corpus.jsonl", '{"_id": "a", "text": 3}\n', "text contains 3, expected only texts"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n', "'a' is not unique"),
        ("corpus.jsonl", "[1, 2]\n", "not JSON objects"),
        ("queries.jsonl", '{"_id": "1", "text": "x"}\n', "judges the query '2'"),
        ("qrels/test.tsv", "query\tpassage\n1\ta\n", "row 1 has no query-id"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\ta\tgood\n", "score contains a non-numeric value"),
    ],
)
def test_broken_beir_files_are_refused(write_beir, file, text, message):
    folder = write_beir(QUERIES, PASSAGES, QRELS)
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read_contents(folder)
    assert str(folder / file) in str(error.value)


def test_broken_autorag_files_are_refused(tmp_path):
    flat = {"qid": ["1"], "query": ["가?"], "retrieval_gt": [["a"]]}
    with pytest.raises(InputError, match=r"retrieval_gt of 1 is .*expected a list of lists"):
        read_contents(write_autorag(tmp_path / "flat", qa=flat))
    folder = write_autorag(tmp_path / "cut")
    (folder / "qa.parquet").write_bytes((folder / "qa.parquet").read_bytes()[:100])
    with pytest.raises(InputError, match=r"qa.parquet cannot be read"):
        read_contents(folder)
