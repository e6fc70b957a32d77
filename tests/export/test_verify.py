import dataclasses
import shutil
import sys
import unicodedata
import warnings

import numpy as np
import onnx
import pytest
from koe5_export import Gate, verify_artifact
from koe5_export.checkpoint import Checkpoint
from koe5_export.precision import PRECISIONS
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.texts import (
    CALIBRATION,
    DEMO_PASSAGES,
    DEMO_QUERIES,
    VERIFICATION,
    text_of_length,
    verification_texts,
)
from koe5_export.verify import expect
from tolerances import CERTIFICATE_ATOL

from koe5_onnx import (
    Agreement,
    Artifact,
    Certificate,
    Contract,
    Embedder,
    FidelityError,
    InputError,
    MissingDependencyError,
    Retrieval,
    Tokenizer,
    TruncationWarning,
)
from koe5_onnx.artifact import GRAPH, MANIFEST, WEIGHTS, describe_file


def certificate(**changes):
    figures = {
        "cosine_min": 0.99,
        "cosine_mean": 0.999,
        "max_abs_diff": 1e-6,
        "batch_cosine_min": 1.0,
    } | changes
    batch = figures.pop("batch_cosine_min")
    overall = Agreement(texts=3, cosine_p1=0.99, error_counts={}, **figures)
    return Certificate(overall, {}, batch, Retrieval(3, 2, 1.0, 1.0, 0.0), {}, "", {})


UNPROMPTED = Contract(
    "mean", normalize=True, max_tokens=512, dim=64, pad_id=1, prompts={"query": "", "passage": ""}
)
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
    for name, value in (
        ("cosine_min", 0.9),
        ("max_abs_diff", 1.0),
        ("batch_cosine_min", 0.5),
        ("cosine_min", float("nan")),
    ):
        with pytest.raises(InputError, match="tightened"):
            GATE.tightened({name: value})
    with pytest.raises(InputError, match="no bound"):
        GATE.tightened({"cosine": 1})


def test_every_precision_has_a_gate(exported):
    assert set(PRECISIONS) == set(exported)
    for precision, artifact in exported.items():
        PRECISIONS[precision].gate.check(artifact.manifest.certificate)


def test_a_certificate_covers_all_lengths(exported):
    found = exported["int8"].manifest.certificate
    assert sum(bucket.texts for bucket in found.by_length.values()) == found.overall.texts
    assert "257-512" in found.by_length


@pytest.mark.parametrize("precision", PRECISIONS)
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


def test_an_embedding_that_feels_its_batch_fails(exported, seeded, monkeypatch):
    class Moody(Embedder):
        def embed_tokens(self, tokens):
            found = super().embed_tokens(tokens)
            return found + 0.02 * np.roll(found, 1, axis=1) if len(found) == 1 else found

    monkeypatch.setattr("koe5_export.verify.Embedder", Moody)
    with pytest.raises(FidelityError, match=r"texts: batch_cosine_min 0\.99"):
        verify_artifact(exported["fp32"], Checkpoint.open(seeded))


def test_another_checkpoint_is_refused(exported, tmp_path):
    other = tmp_path / "other"
    write_seeded_checkpoint(
        other, Size(layers=1, hidden=32, heads=2, intermediate=64, vocabulary=900), seed=1
    )
    with pytest.raises(InputError, match="other weights"):
        verify_artifact(exported["int8"], Checkpoint.open(other))


@pytest.mark.parametrize("package", ["torch", "transformers", "sentence-transformers"])
def test_without_pytorch_the_extra_is_named(exported, seeded, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(MissingDependencyError, match=rf"{package}: .*koe5-onnx\[reference\]"):
        verify_artifact(exported["int8"], Checkpoint.open(seeded))


@pytest.mark.parametrize("tokens", [16, 64, 255, 510, 511, 512, 1000])
def test_texts_of_exactly_some_tokens(exported, tokens):
    tokenizer = Tokenizer(exported["fp32"].tokenizer, 512)
    assert tokenizer.encode([text_of_length(tokenizer, tokens)]).full_lengths[0] == tokens


@pytest.mark.parametrize("limit", [30, 256, 512])
def test_texts_reach_the_limit_and_beyond(exported, limit):
    tokenizer = Tokenizer(exported["fp32"].tokenizer, limit)
    texts = [text for text, _ in verification_texts(tokenizer, UNPROMPTED, ["given"])]
    lengths = tokenizer.encode(texts).full_lengths
    assert {limit - 2, limit - 1, limit, 2 * limit} <= set(lengths.tolist())


def test_a_high_limit_leaves_no_gap(exported):
    tokenizer = Tokenizer(exported["fp32"].tokenizer, 8192)
    lengths = tokenizer.encode([text for text, _ in verification_texts(tokenizer, UNPROMPTED)]).lengths
    assert {64, 128, 256, 512, 1024, 2048, 4096, 8190, 8191, 8192} <= set(lengths.tolist())


def test_both_forms_of_hangul_are_measured(exported):
    tokenizer = Tokenizer(exported["fp32"].tokenizer, 512)
    texts = [text for text, _ in verification_texts(tokenizer, UNPROMPTED, ["given"])]
    assert {unicodedata.normalize("NFD", text) for text in VERIFICATION[:2]} < set(texts)
    assert "given" in texts
    assert {"", "<s> special </s> tokens <pad> typed by a user <unk>"} < set(texts)


def test_nothing_is_proved_on_what_it_was_fitted_to():
    sets = [set(CALIBRATION) - {""}, set(VERIFICATION) - {""}, {*DEMO_PASSAGES, *DEMO_QUERIES}]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert len(CALIBRATION) == len(set(CALIBRATION))


def test_the_certificate_says_what_was_measured(exported, seeded):
    """Its figures again, from the texts and embeddings alone."""
    artifact = exported["int8"]
    expected = expect(Checkpoint.open(seeded), artifact.manifest.contract, artifact.tokenizer)
    found = np.empty(expected.embeddings.shape)
    opened = Embedder.open(artifact.path, kernels="stock")
    with opened as embedder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        for row, (text, name) in enumerate(expected.texts):
            found[row] = embedder.encode([text], name)[0]
    cosines = (found * expected.embeddings).sum(axis=1)
    written = artifact.manifest.certificate.overall
    assert written.texts == len(expected.texts)
    np.testing.assert_allclose(written.cosine_min, cosines.min(), atol=CERTIFICATE_ATOL, rtol=0)
    np.testing.assert_allclose(written.cosine_mean, cosines.mean(), atol=CERTIFICATE_ATOL, rtol=0)
    largest = np.abs(found - expected.embeddings).max()
    np.testing.assert_allclose(written.max_abs_diff, largest, atol=CERTIFICATE_ATOL, rtol=0)
    for name in (None, *artifact.manifest.contract.prompts):
        assert sum(text.prompt_name == name for text in expected.texts) > 10


def test_embeddings_that_lost_their_unit_length_fail(exported, seeded, tmp_path):
    folder = shutil.copytree(exported["fp32"].path, tmp_path / "changed")
    model = onnx.load(folder / GRAPH, load_external_data=False)
    last = model.graph.node[-1]
    last.op_type = "Identity"
    del last.attribute[:]
    onnx.save(model, folder / GRAPH)
    manifest = Artifact.open(exported["fp32"].path).manifest
    files = {**manifest.files, GRAPH: describe_file(folder / GRAPH)}
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, files=files).to_json())
    with pytest.raises(FidelityError, match="the contract says 1"):
        verify_artifact(Artifact.open(folder), Checkpoint.open(seeded))
