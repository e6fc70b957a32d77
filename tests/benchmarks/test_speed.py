"""Statistics, texts, checks and command line of the speed benchmarks. No test depends on measured times."""

import json
import math
import os
import random
import shutil

import numpy as np
import pytest
from koe5_export.texts import CALIBRATION

from benchmarks.__main__ import main
from benchmarks.contenders.agreement import SpotCheck, compare
from benchmarks.contenders.prepared import Store, calibration_texts
from benchmarks.contenders.registry import CONTENDERS
from benchmarks.speed.arguments import artifacts_of
from benchmarks.speed.gemm import Ceiling, Shape
from benchmarks.speed.memory import random_texts
from benchmarks.speed.results import read_result, write_json
from benchmarks.speed.statistics import percentile, ratio, rotated, spread, with_ratios
from benchmarks.speed.texts import DEFAULT_TEXTS, queries_of, read_corpora
from koe5_onnx import CheckpointError, InputError, Tokenizer


def test_the_spread_keeps_every_round():
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}


def test_ratios_are_computed_per_round():
    # The machine was half as fast in the second round; a ratio of medians would be 4 / 4.
    assert ratio([8.0, 4.0, 2.0], [4.0, 2.0, 4.0]) == 2.0
    figures = with_ratios({"a": spread([2.0, 4.0]), "b": spread([1.0, 1.0])}, "b")
    assert (figures["a"]["ratio"], figures["b"]["ratio"]) == (3.0, 1.0)
    assert with_ratios({"a": spread([2.0])}, "b")["a"]["ratio"] is None


@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0, 2.0]), ([], [])])
def test_ratios_of_unequal_rounds_are_refused(one, other):
    with pytest.raises(InputError):
        ratio(one, other)


def test_no_rounds_are_refused():
    with pytest.raises(InputError):
        spread([])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (1, 100), (0.001, 1), (0.55, 55)]
)
def test_percentiles(share, expected):
    values = list(range(1, 101))
    random.Random(1).shuffle(values)
    assert percentile(values, share) == expected


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_percentiles_require_values_and_a_share(values, share):
    with pytest.raises(InputError):
        percentile(values, share)


def test_each_name_starts_a_round():
    names = ["a", "b", "c"]
    assert [rotated(names, turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]
    assert sorted(rotated(names, 2)) == names


@pytest.fixture
def data(tmp_path):
    """Return a folder with small files in the formats of KorSTS and AutoRAG."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "korsts").mkdir()
    rows = [f'genre\tf\ty\t{n}\t1.0\t"문장 {n}\t다른 문장 {n}' for n in range(8)]
    lines = ["genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2", *rows, "too\tshort"]
    (tmp_path / "korsts/sts-dev.tsv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "autorag_ko").mkdir()
    pages = {"doc_id": [f"d{n}" for n in range(9)], "contents": [f"쪽 {n} " * 300 for n in range(9)]}
    asked = {"qid": ["q1"], "query": ["무엇?"], "retrieval_gt": [[["d1"]]]}
    parquet.write_table(pyarrow.table(pages), tmp_path / "autorag_ko/corpus.parquet")
    parquet.write_table(pyarrow.table(asked), tmp_path / "autorag_ko/qa.parquet")
    return tmp_path


def test_corpora_of_a_folder(data, seeded):
    short, pages, mix = read_corpora(["short", "pages", "mix"], data, seeded / "tokenizer.json", 6)
    assert all(text.startswith("query: ") for text in short.texts)
    assert sum(text.startswith("query: ") for text in mix.texts) == 3
    assert pages.lengths == [512] * 6
    assert len(set(mix.texts)) == 6
    assert pages.tokens == 3072
    expected = Tokenizer(seeded / "tokenizer.json", 512).encode(short.texts).lengths
    assert short.lengths == expected.tolist()


def test_corpora_are_the_same_each_time(data, seeded):
    first, again = (read_corpora(["mix"], data, seeded / "tokenizer.json", 6) for _ in range(2))
    assert first == again


def test_built_in_texts_suffice_for_the_default_sizes(seeded):
    corpora = read_corpora(["short", "pages", "mix"], None, seeded / "tokenizer.json", None)
    assert {corpus.name: len(corpus.texts) for corpus in corpora} == DEFAULT_TEXTS
    assert min(corpora[1].lengths) > 200


@pytest.mark.parametrize(
    ("names", "texts", "message"),
    [
        (["long"], 4, "unknown corpus"),
        (["short"], 1, "at least 2"),
        (["pages"], 100, "100 pages, but the data has"),
    ],
)
def test_invalid_corpora_are_rejected(data, seeded, names, texts, message):
    with pytest.raises(InputError, match=message):
        read_corpora(names, data, seeded / "tokenizer.json", texts)


def test_a_folder_without_its_files(tmp_path, seeded):
    with pytest.raises(InputError, match=r"sts-dev\.tsv is missing"):
        read_corpora(["short"], tmp_path, seeded / "tokenizer.json", 4)
    (tmp_path / "korsts").mkdir()
    (tmp_path / "korsts/sts-dev.tsv").write_text("one\ttwo\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected sentence1"):
        read_corpora(["short"], tmp_path, seeded / "tokenizer.json", 4)


def test_queries_by_length(data, seeded):
    (short,) = read_corpora(["short"], data, seeded / "tokenizer.json", 6)
    low = min(short.lengths)
    assert queries_of(short, low, low) == [
        text for text, length in zip(short.texts, short.lengths, strict=True) if length == low
    ]
    with pytest.raises(InputError, match="no text of 500 to 512"):
        queries_of(short, 500, 512)


ROWS = np.eye(3, 8, dtype=np.float32) + 0.1


def test_agreement():
    contender = CONTENDERS["koe5-int8"]
    same = compare(2 * ROWS, ROWS)
    assert same.cosine_min == pytest.approx(1)
    assert same.fault(contender) is None
    assert "at least 0.97" in compare(ROWS[::-1], ROWS).fault(contender)
    assert "of another text" in SpotCheck(0.99, own_is_nearest=False).fault(contender)
    assert compare(ROWS[:, :4], ROWS).fault(contender) is not None
    assert compare(np.full_like(ROWS, math.nan), ROWS).fault(contender) is not None


def test_similar_embeddings_in_the_wrong_order_are_detected():
    alike = 100 + np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    found = compare(alike[[1, 0, 2, 3]], alike)
    assert found.cosine_min > 0.99
    assert not found.own_is_nearest


def test_calibration_texts_are_distinct_and_have_prompts():
    texts = calibration_texts()
    assert len(texts) == len(set(texts)) == 32
    assert {text.partition(" ")[0] for text in texts} == {"query:", "passage:"}
    assert texts[0] == f"query: {CALIBRATION[0]}"


def test_the_store_uses_an_existing_artifact(seeded, exported, tmp_path):
    store = Store(seeded, tmp_path, {"int8": exported["int8"], "fp32": tmp_path})
    assert store.files_of(CONTENDERS["koe5-int8"]) == exported["int8"]
    assert store.files_of(CONTENDERS["sentence-transformers-fp32"]) == seeded
    with pytest.raises(InputError, match="not an artifact"):
        store.files_of(CONTENDERS["koe5-fp32"])


def test_prepared_files_are_reused(seeded, tmp_path):
    store = Store(seeded, tmp_path)
    (store.own / "openvino-int8").mkdir(parents=True)
    assert store.files_of(CONTENDERS["openvino-int8"]) == store.own / "openvino-int8"
    with pytest.raises(CheckpointError):
        Store(tmp_path, tmp_path).files_of(CONTENDERS["openvino-int8"])


def test_the_ceiling_counts_all_linear_layers():
    # KoE5's linear layers have 302 million weights, with two operations each.
    assert Shape(24, 1024, 4096).operations == 603_979_776
    rates = Ceiling(Shape(2, 64, 128), threads=1).measure()
    assert "stock" in rates
    assert all(rate > 0 for rate in rates.values())


def test_random_shapes_vary_within_the_budget():
    chance = random.Random(0)
    shapes = set()
    for _ in range(200):
        texts = random_texts(chance, "가나다라마" * 40)
        assert len({len(text) for text in texts}) == 1
        assert len(texts) * len(texts[0]) <= 2048
        shapes.add((len(texts), len(texts[0])))
    assert len(shapes) > 150


def test_a_result_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "made" / "result.json"
    write_json(file, {"format": 1, "benchmark": "memory"})
    assert read_result(file) == {"format": 1, "benchmark": "memory"}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}'])
def test_other_files_are_rejected_as_results(tmp_path, text):
    file = tmp_path / "result.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="--json"):
        read_result(file)


@pytest.mark.parametrize("given", ["int8", "=folder", "int8="])
def test_an_artifact_has_a_precision_and_a_folder(given):
    with pytest.raises(InputError, match="PRECISION=FOLDER"):
        artifacts_of([given])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["throughput", "--rounds", "0"], "--rounds is 0, expected at least 1"),
        (["throughput", "--threads", "0"], "--threads is 0, expected at least 1"),
        (["latency", "--calls", "3"], "--calls is 3, expected at least 10"),
        (["memory", "--shapes", "200"], "--shapes is 200, expected 0 or more than 200"),
        (["coldstart", "--artifact", "int8"], "expected PRECISION=FOLDER"),
        (["throughput", "--processor-time", "--threads", "2"], "Pass --threads 1"),
    ],
)
def test_wrong_options_are_reported(seeded, capsys, argv, message):
    assert main([*argv, "--checkpoint", str(seeded)]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_is_rejected(tmp_path, capsys):
    assert main(["throughput", "--checkpoint", str(tmp_path)]) == 1
    assert "has no tokenizer.json" in capsys.readouterr().err


@pytest.fixture
def command(seeded, exported, tmp_path, monkeypatch):
    """Return a function that runs a benchmark with an int8 artifact and returns the exit code and result."""
    for module in ("gemm", "throughput"):
        monkeypatch.setattr(f"benchmarks.speed.{module}.SETTLE_SECONDS", 0)

    def run(name, *options, artifact=exported["int8"]):
        out = tmp_path / f"{name}.json"
        given = ["--artifact", f"int8={artifact}", "--cache", str(tmp_path / "cache")]
        shared = ["--checkpoint", str(seeded), *given, "--contender", "koe5-int8-padded", "--threads", "1"]
        code = main([name, *shared, "--texts", "8", "--json", str(out), *options])
        return code, json.loads(out.read_text(encoding="utf-8"))

    return run


def test_throughput_end_to_end(command, capsys):
    code, result = command("throughput", "--rounds", "3", "--baseline", "koe5-int8-padded")
    assert code == 0
    assert set(result["corpora"]) == {"short", "pages", "mix"}
    for corpus in result["corpora"].values():
        one = corpus["tokens_per_second"]["koe5-int8-padded"]
        assert len(one["rounds"]) == 3
        assert one["ratio"] == 1
        assert one["texts_per_second"] * corpus["tokens"] == pytest.approx(one["median"] * corpus["texts"])
        ceiling = corpus["ceiling"]["stock"]
        assert one["share_of_ceiling"] == pytest.approx(ratio(one["rounds"], ceiling))
    assert result["contenders"]["koe5-int8-padded"]["cosine_min"] > 0.99
    assert result["machine"]["cores"] >= 1
    assert "koe5-int8-padded" in capsys.readouterr().out


@pytest.mark.slow
def test_throughput_by_processor_time(command):
    options = ("--rounds", "1", "--corpus", "pages", "--texts", "48", "--processor-time")
    code, result = command("throughput", *options)
    (rate,) = result["corpora"]["pages"]["tokens_per_second"]["koe5-int8-padded"]["rounds"]
    assert (code, result["time"]) == (0, "processor")
    ticks = result["corpora"]["pages"]["tokens"] / rate * os.sysconf("SC_CLK_TCK")
    assert ticks == pytest.approx(round(ticks), abs=1e-3)


@pytest.mark.slow
def test_latency_end_to_end(command):
    code, result = command(
        "latency", "--rounds", "2", "--calls", "7", "--idle-seconds", "0.2", "--texts", "64"
    )
    one = result["latency_ms"]["koe5-int8-padded"]
    assert code == 0
    assert len(one["calls"]) == 7
    assert min(one["calls"]) <= one["p50"] <= one["p90"] <= one["p99"]
    assert 29 <= result["query_tokens"] <= 55
    assert one["idle_cpu"] >= 0


@pytest.mark.slow
def test_memory_end_to_end(command):
    code, result = command("memory", "--corpus", "short", "--shapes", "210")
    one = result["memory"]["koe5-int8-padded"]
    assert code == 0
    assert one["anonymous_bytes"] + one["file_bytes"] == one["rss_bytes"] <= one["peak_rss_bytes"]
    assert one["growth"] == pytest.approx(one["end_rss_bytes"] / one["settled_rss_bytes"] - 1)


@pytest.mark.slow
def test_coldstart_end_to_end(command):
    code, result = command("coldstart", "--rounds", "2")
    one = result["coldstart_seconds"]["koe5-int8-padded"]
    assert code == 0
    for turn in range(2):
        steps = [one[step]["rounds"][turn] for step in ("import", "open", "first")]
        assert min(steps) > 0
        assert sum(steps) == pytest.approx(one["total"]["rounds"][turn])


@pytest.mark.slow
def test_a_wrong_contender_is_not_timed(command, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.opened.compare", lambda *_: SpotCheck(0.5, own_is_nearest=True))
    code, result = command("coldstart", "--rounds", "1")
    assert code == 1
    assert result["coldstart_seconds"] == {}
    assert "cosine to PyTorch is 0.5000, expected at least 0.97" in result["wrong"]["koe5-int8-padded"]
    assert "is wrong, not timed" in capsys.readouterr().out


def test_an_artifact_that_does_not_open_is_wrong(command, exported, tmp_path):
    broken = shutil.copytree(exported["int8"], tmp_path / "broken")
    (broken / "onnx/model_quantized.onnx").write_bytes(b"")
    code, result = command("coldstart", "--rounds", "1", artifact=broken)
    assert code == 1
    assert "failed during 'open'" in result["wrong"]["koe5-int8-padded"]
