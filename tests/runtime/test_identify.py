"""`identify` finds the settings that made vectors, in each file format, and rejects other models' vectors."""

from __future__ import annotations

import csv
import json
import sys
from functools import partial

import numpy as np
import onnxruntime
import pytest
import tokenizers

from koe5_onnx import ArtifactError, Embedder, InputError, TruncationWarning, cli
from koe5_onnx.artifact import GRAPHS
from koe5_onnx.identify import MAX_DISTANCE, MAX_TEXTS, POOLINGS, identify

POOL = {
    "mean": lambda states: states.mean(axis=0),
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
    "max": lambda states: states.max(axis=0),
    "mean without special tokens": lambda states: states[1:-1].mean(axis=0),
}
PROMPTS = {
    "none": "",
    "query": "query: ",
    "passage": "passage: ",
    "query (doubled)": "query: query: ",
    "passage (doubled)": "passage: passage: ",
}


@pytest.fixture(scope="module")
def texts(golden):
    """Return texts of 1 to 600 tokens, on one line each, so that a .txt file can have them."""
    return [" ".join(text.split()) for text in dict.fromkeys(golden.texts) if len(text) > 1]


@pytest.fixture(scope="module")
def opened(artifact_path, texts):
    """Return an Embedder that has already warned about the texts that it truncates."""
    with Embedder.open(artifact_path, threads=1) as embedder:
        with pytest.warns(TruncationWarning):
            embedder.encode(texts)
        yield embedder


@pytest.fixture(scope="module")
def make(artifact_path, texts):
    """Return a function that embeds texts one by one, as another program would with ONNX Runtime."""
    session = onnxruntime.InferenceSession(artifact_path / GRAPHS["int8"])

    def make(prompt="", pooling="mean", limit=512, texts=texts):
        tokenizer = tokenizers.Tokenizer.from_file(str(artifact_path / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(limit)
        rows = []
        for text in texts:
            ids = np.array([tokenizer.encode(prompt + text).ids], np.int64)
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            rows.append(POOL[pooling](session.run(["last_hidden_state"], feeds)[0][0]))
        return np.array(rows)

    return make


@pytest.mark.parametrize(
    ("name", "pooling"),
    [*((name, "mean") for name in PROMPTS), *(("query", pooling) for pooling in list(POOL)[1:])],
)
def test_prompt_and_pooling(name, pooling, make, texts, opened):
    found = identify(make(PROMPTS[name], pooling), texts, opened)
    assert (found.maker.prompt_name, found.maker.prompt, found.maker.pooling) == (
        name,
        PROMPTS[name],
        pooling,
    )
    assert found.truncation == "at 512 tokens"
    assert found.precision == "same as this artifact (int8)"
    assert not found.unit_length


def test_of_nearly_equal_candidates_the_more_common_one_comes_first(make, texts, opened, monkeypatch):
    monkeypatch.setitem(POOL, "second", lambda states: states[1])
    monkeypatch.setitem(POOLINGS, "last", lambda hidden, _: hidden[:, 0] + 0.05 * hidden[:, 1])
    for share, expected in ((0.51, "cls"), (0.6, "last")):
        vectors = make(pooling="cls") + share * 0.05 * make(pooling="second")
        assert identify(vectors, texts, opened).maker.pooling == expected


def test_common_prompts_come_first_whatever_a_limit_truncates(texts, opened, monkeypatch):
    counts = opened.count_tokens(texts, prompt="")
    some = [text for text, count in zip(texts, counts, strict=True) if count < 100]
    # A limit that truncates texts with a prompt, but none without.
    monkeypatch.setattr("koe5_onnx.identify._LIMITS", (int(counts[counts < 100].max()) + 1,))
    monkeypatch.setattr("koe5_onnx.identify._TIE", 1e9)
    vectors = np.random.default_rng(0).normal(size=(len(some), opened.dim))
    found = identify(vectors, some, opened)
    assert list(dict.fromkeys(one.prompt_name for one in found.candidates)) == list(PROMPTS)


@pytest.mark.parametrize("limit", [128, 256, 512])
def test_truncation(limit, make, texts, opened):
    found = identify(make("passage: ", limit=limit), texts, opened)
    assert (found.maker.max_tokens, found.truncation) == (limit, f"at {limit} tokens")


def test_truncation_requires_long_texts(make, texts, opened):
    tokens = opened.count_tokens(texts)
    for limit, words in ((120, "not decidable from these texts, because "), (250, "none of these texts (")):
        some = [text for text, count in zip(texts, tokens, strict=True) if count < limit]
        found = identify(make(texts=some), some, opened)
        assert found.truncation.startswith(
            f"{words}the longest text has {tokens[tokens < limit].max()} tokens"
        )


def test_embeddings_of_the_artifact(artifact_path, texts, opened):
    with Embedder.open(artifact_path, threads=1) as unused:  # to see that identify does not warn
        found = identify(opened.encode_passages(texts), texts, unused)
    assert (found.maker.prompt_name, found.maker.pooling, found.unit_length) == ("passage", "mean", True)
    assert found.precision == "same as this artifact (int8)"
    assert (found.overlap, found.verdict) == (1, "mix")
    assert found.maker.nearest == 1
    assert found.maker.cosine_min > 0.9999


def test_another_precision(golden, opened):
    """The golden embeddings are from PyTorch in fp32."""
    rows = [row for row, name in enumerate(golden.prompts) if name == "passage"]
    found = identify(golden.embeddings[rows], [golden.texts[row] for row in rows], opened)
    assert (found.maker.prompt_name, found.maker.pooling) == ("passage", "mean")
    assert found.precision == "another precision of the same checkpoint"


@pytest.mark.parametrize(
    "stored", [np.float16, lambda rows: np.rint(127 * rows / abs(rows).max()).astype(np.int8)]
)
def test_stored_in_fewer_bits(stored, texts, opened):
    assert identify(stored(opened.encode_queries(texts)), texts, opened).maker.prompt_name == "query"


def test_the_first_components(texts, opened):
    found = identify(opened.encode_passages(texts)[:, :32], texts, opened)
    assert (found.maker.prompt_name, found.dim, found.unit_length) == ("passage", 32, False)


FOREIGN = {
    "random": lambda rows, rng: rng.normal(size=rows.shape),
    "rotated": lambda rows, rng: rows @ np.linalg.qr(rng.normal(size=(rows.shape[1],) * 2))[0],
    "of other texts": lambda rows, rng: np.roll(rows, 1, axis=0),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_vectors(kind, texts, opened):
    vectors = FOREIGN[kind](opened.encode_passages(texts), np.random.default_rng(0))
    found = identify(vectors, texts, opened)
    assert (found.maker, found.truncation, found.precision) == (None, "unknown", "unknown")
    assert found.verdict == "embed the index again"
    assert found.candidates[0].distance > 3 * MAX_DISTANCE


def test_a_high_cosine_is_not_enough(make, texts, opened):
    """With CLS pooling, even different texts have a mean cosine of 0.97 here; in E5 models, 0.7 to 0.9."""
    found = identify(np.roll(make(pooling="cls"), 1, axis=0), texts, opened)
    assert max(one.cosine_mean for one in found.candidates) > 0.95
    assert found.maker is None


def test_more_components_than_the_artifact(texts, opened):
    found = identify(np.ones((len(texts), 384)), texts, opened)
    assert (found.maker, found.candidates, found.overlap) == (None, [], None)
    assert found.verdict == "embed the index again"


@pytest.mark.parametrize(
    ("noise", "verdict"), [(0.0005, "mix"), (0.01, "mix with a loss of "), (1, "embed ")]
)
def test_the_verdict_follows_the_loss(noise, verdict, texts, opened):
    rows = opened.encode_passages(texts)
    found = identify(rows + noise * np.random.default_rng(0).normal(size=rows.shape), texts, opened)
    assert found.verdict.startswith(verdict)


def test_many_texts_are_sampled(opened):
    texts = [f"{number} " * (1 + number % 7) for number in range(MAX_TEXTS + 50)]
    found = identify(opened.encode(texts * 2), texts * 2, opened)
    assert (found.texts, found.maker.prompt_name) == (MAX_TEXTS, "none")


def test_invalid_arguments(texts, opened):
    rows = opened.encode(texts)
    with pytest.raises(InputError, match=r"shape \(3, 64\) and there are 2 texts: expected one vector per"):
        identify(rows[:3], texts[:2], opened)
    with pytest.raises(InputError, match="there are 4 different texts: expected 5 or more"):
        identify(rows[:6], [*texts[:4], texts[0], " "], opened)
    for value in (0, np.nan):
        bad = rows.copy()
        bad[7] = value
        with pytest.raises(InputError, match="vector 7 is zero or not finite"):
            identify(bad, texts, opened)


def test_a_graph_without_token_embeddings(texts, opened, monkeypatch):
    monkeypatch.setattr("koe5_onnx.engine.session.HIDDEN", "token_embeddings")
    with pytest.raises(ArtifactError, match=r"outputs \[.*\]: expected token_embeddings"):
        identify(opened.encode(texts), texts, opened)


def _npy(path, texts, rows):
    np.save(path / "index.npy", rows)
    (path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    return ["index.npy", "--texts", "texts.txt"]


def _qdrant(path, texts, rows):
    points = [
        {"id": number, "vector": {"dense": row.tolist()}, "payload": {"title": "", "content": text}}
        for number, (text, row) in enumerate(zip(texts, rows, strict=True))
    ]
    (path / "points.jsonl").write_text("\n".join(map(json.dumps, points)), encoding="utf-8")
    return ["points.jsonl", "--text-column", "content"]


def _pgvector(path, texts, rows):
    with (path / "items.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text", "embedding"])
        for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
            writer.writerow([number, text, f"[{','.join(f'{value:.8g}' for value in row)}]"])
    return ["items.csv", "--vector-column", "embedding"]


def _parquet(path, texts, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": texts, "embedding": list(rows)}), path / "index.parquet")
    return ["index.parquet"]


@pytest.fixture
def run(artifact_path, tmp_path, monkeypatch, capsys):
    """Return a function that runs the command in tmp_path and returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main(["identify", *arguments, "--artifact", str(artifact_path), "--threads", "1"])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("write", [_npy, _qdrant, _pgvector, _parquet])
def test_file_formats(write, run, tmp_path, texts, opened):
    code, out, _ = run(*write(tmp_path, texts, opened.encode_passages(texts)))
    assert code == 0
    assert "made by        prompt passage ('passage: '), pooling mean\n" in out
    assert "verdict        mix\n" in out


def test_report_on_cls_pooling(run, make, tmp_path, texts):
    code, out, _ = run(*_npy(tmp_path, texts, make("", "cls")))
    assert code == 0
    for line in (
        "  NOTE: servers fall back to CLS pooling if a repository does not name the pooling mode\n",
        "  NOTE: search by cosine, because the vectors do not have unit length\n",
        "  made by        no prompt, pooling cls\n",
        "  runner-up      no prompt, pooling cls, truncated at 256 tokens: cosine mean ",
        "  verdict        embed the index again\n",
    ):
        assert line in out


def test_unknown_maker(run, tmp_path, texts):
    code, out, _ = run(*_npy(tmp_path, texts, np.eye(len(texts), 384) + 1))
    assert code == 1
    assert "NOTE: the vectors have 384 components, but embeddings of this artifact 64" in out
    assert "made by        unknown" in out


def test_json(run, tmp_path, texts, opened):
    code, out, _ = run(*_npy(tmp_path, texts, opened.encode_queries(texts)), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["maker"] == found["candidates"][0]
    assert found["maker"]["prompt"] == "query: "
    assert (found["truncation"], found["verdict"]) == ("at 512 tokens", "embed the index again")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(
            ['{"a": [1], "b": [2]}'], "expected vectors in one column, found them in a, b", id="two"
        ),
        pytest.param(['{"text": "a"}'], "expected vectors in one column, found none in text", id="none"),
        pytest.param(
            ['{"text": "a", "v": [1, 2]}', '{"text": "b", "v": [1]}'], "expected 2 numbers", id="short"
        ),
        pytest.param(['{"v": [1]}'], "no field 'text', only ['v']. Name one with --text-column", id="text"),
        pytest.param(['{"v": [1' + "0" * 400 + "]}"], "found none in v", id="huge"),
        pytest.param([], "has no rows", id="empty"),
    ],
)
def test_invalid_records(lines, message, run, tmp_path):
    (tmp_path / "index.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, _, error = run("index.jsonl")
    assert code == 1
    assert message in error


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.npy", b"no array"),
        ("index.npy", b""),
        ("index.csv", b'text,v\n"' + b"a" * 200_000 + b'",[1]\n'),
    ],
)
def test_invalid_files(name, content, run, tmp_path, request):
    request.addfinalizer(
        partial(csv.field_size_limit, csv.field_size_limit(131_072))
    )  # bulk raises the limit
    (tmp_path / name).write_bytes(content)
    (tmp_path / "texts.txt").write_text("a", encoding="utf-8")
    code, _, error = run(name, "--texts", "texts.txt")
    assert code == 1
    assert error.startswith(f"koe5-onnx: error: {name}")


def test_vectors_of_another_type(run, tmp_path):
    np.save(tmp_path / "index.npy", np.array([["a", "b"]]))
    (tmp_path / "texts.txt").write_text("a", encoding="utf-8")
    code, _, error = run("index.npy", "--texts", "texts.txt")
    assert code == 1
    assert "index.npy has values of type <U1: expected floats or integers" in error


def test_a_damaged_parquet_file(run, tmp_path, texts):
    name, *_ = _parquet(tmp_path, texts, np.random.default_rng(0).normal(size=(len(texts), 64)))
    content = bytearray((tmp_path / name).read_bytes())
    content[100:400] = bytes(300)
    (tmp_path / name).write_bytes(content)
    code, _, error = run(name)
    assert code == 1
    assert f"{name} is damaged (" in error


def test_a_checkpoint_requires_the_export(run, tmp_path, texts, opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "koe5_export.export", None)  # as if onnx was not installed
    code, _, error = run(*_npy(tmp_path, texts, opened.encode(texts)), "--checkpoint", "checkpoint")
    assert code == 1
    assert "requires the package" in error


@pytest.mark.parametrize("arguments", [["index.npy"], ["index.bin"], ["index.npy", "--texts", "texts.csv"]])
def test_invalid_usage(arguments, run):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
