import dataclasses
import shutil

import numpy as np
import pytest
from koe5_export import Gate, verify_artifact
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.texts import CALIBRATION, DEMO_PASSAGES, DEMO_QUERIES, VERIFICATION, text_of_length
from koe5_export.verify import GATES

from koe5_onnx import (
    Agreement,
    Artifact,
    Certificate,
    FidelityError,
    InputError,
    MissingDependencyError,
    Tokenizer,
)
from koe5_onnx.artifact import MANIFEST, WEIGHTS, describe_file


def certificate(**changes):
    figures = {
        "cosine_min": 0.99,
        "cosine_mean": 0.999,
        "max_abs_diff": 1e-6,
        "batch_cosine_min": 1.0,
    } | changes
    batch = figures.pop("batch_cosine_min")
    overall = Agreement(texts=3, cosine_p1=0.99, **figures)
    return Certificate(overall, {}, batch, {}, "", {})


GATE = Gate(cosine_min=0.98, cosine_mean=0.995, max_abs_diff=1e-5)


def test_a_good_certificate_passes():
    GATE.check(certificate())


@pytest.mark.parametrize(
    ("name", "value"),
    [("cosine_min", 0.97), ("cosine_mean", 0.99), ("max_abs_diff", 1e-4), ("batch_cosine_min", 0.999)],
)
@pytest.mark.parametrize("broken", [False, True])
def test_each_bound_can_fail_and_says_by_how_much(name, value, broken):
    bad = float("nan") if broken else value
    with pytest.raises(FidelityError, match=f"{name} {bad:.7g}, allowed"):
        GATE.check(certificate(**{name: bad}))


def test_a_gate_tightens_and_never_loosens():
    assert GATE.tightened({"cosine_min": 0.99, "max_abs_diff": 1e-6}).cosine_min == 0.99
    for name, value in (("cosine_min", 0.9), ("max_abs_diff", 1.0), ("batch_cosine_min", 0.5)):
        with pytest.raises(InputError, match="tightened"):
            GATE.tightened({name: value})
    with pytest.raises(InputError, match="no bound"):
        GATE.tightened({"cosine": 1})


def test_every_precision_has_a_gate(exported):
    assert set(GATES) == set(exported)
    for precision, artifact in exported.items():
        GATES[precision].check(artifact.manifest.certificate)


def test_a_certificate_covers_all_lengths(exported):
    found = exported["int8"].manifest.certificate
    assert sum(bucket.texts for bucket in found.by_length.values()) == found.overall.texts
    assert "257-512" in found.by_length


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_artifact_with_changed_weights_fails(precision, exported, seeded, tmp_path):
    folder = shutil.copytree(exported[precision].path, tmp_path / "changed")
    words = np.fromfile(folder / WEIGHTS, np.uint32)
    np.random.default_rng(0).shuffle(words[len(words) // 2 :])
    words.tofile(folder / WEIGHTS)
    manifest = Artifact.open(exported[precision].path).manifest
    files = {**manifest.files, WEIGHTS: describe_file(folder / WEIGHTS)}
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, files=files).to_json())
    with pytest.raises(FidelityError, match="too far from PyTorch"):
        verify_artifact(Artifact.open(folder), Checkpoint.open(seeded))


def test_another_checkpoint_is_refused(exported, tmp_path):
    other = tmp_path / "other"
    write_seeded_checkpoint(
        other, Size(layers=1, hidden=32, heads=2, intermediate=64, vocabulary=900), seed=1
    )
    with pytest.raises(InputError, match="other weights"):
        verify_artifact(exported["int8"], Checkpoint.open(other))


def test_without_torch_the_extra_is_named(exported, seeded, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"koe5-onnx\[reference\]"):
        verify_artifact(exported["int8"], Checkpoint.open(seeded))


@pytest.mark.parametrize("tokens", [16, 64, 255, 510, 511, 512, 1000])
def test_texts_of_exactly_some_tokens(exported, tokens):
    tokenizer = Tokenizer(exported["fp32"].tokenizer, 512)
    assert tokenizer.encode([text_of_length(tokenizer, tokens)]).full_lengths[0] == tokens


def test_nothing_is_proved_on_what_it_was_fitted_to():
    seen = set(CALIBRATION) - {""}
    assert not seen & {*VERIFICATION, *DEMO_PASSAGES, *DEMO_QUERIES}
