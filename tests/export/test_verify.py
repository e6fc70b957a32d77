import dataclasses
import json
import shutil
import sys
import unicodedata
import warnings
from collections import Counter

import numpy as np
import onnx
import pytest
from koe5_export import Gate, verify_artifact
from koe5_export.checkpoint import Checkpoint
from koe5_export.precision import PRECISIONS
from koe5_export.reference import NO_PROMPT
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.texts import (
    CALIBRATION,
    SAMPLE_PASSAGES,
    SAMPLE_QUERIES,
    SUBJECTS,
    VERIFICATION,
    text_of_length,
    verification_texts,
)
from koe5_export.verify import _rows_alone, expect
from tolerances import CERTIFICATE_ATOL

from koe5_onnx import (
    Agreement,
    Artifact,
    Certificate,
    CheckpointError,
    Contract,
    Embedder,
    FidelityError,
    InputError,
    MissingDependencyError,
    Retrieval,
    Tokenizer,
    TruncationWarning,
)
from koe5_onnx.artifact import GRAPHS, MANIFEST, describe_file


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

GRAPH = GRAPHS["fp32"]
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


def test_a_gate_can_only_be_tightened():
    assert GATE.tightened({"cosine_min": 0.99, "max_abs_diff": 1e-6}).cosine_min == 0.99
    for name, value in (
        ("cosine_min", 0.9),
        ("max_abs_diff", 1.0),
        ("batch_cosine_min", 0.5),
        ("cosine_min", float("nan")),
    ):
        with pytest.raises(InputError, match="tightened"):
            GATE.tightened({name: value})
    with pytest.raises(InputError, match="is not a bound"):
        GATE.tightened({"cosine": 1})


def test_every_precision_has_a_gate(exported):
    assert set(PRECISIONS) == set(exported)
    for precision, artifact in exported.items():
        PRECISIONS[precision].gate.check(artifact.manifest.certificate)


def test_a_certificate_covers_all_lengths(exported):
    found = exported["int8"].manifest.certificate
    assert sum(bucket.texts for bucket in found.by_length.values()) == found.overall.texts
    assert {"1-16", "17-32", "33-64", "65-128", "129-256", "257-512"} <= set(found.by_length)
    assert 20 <= found.batch_texts <= 28


def test_texts_that_share_no_batch_are_not_embedded_alone():
    lengths = np.array([3, 9, 512, 1024, 8192, 8192], np.int32)
    assert _rows_alone(lengths, 8192).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_artifact_with_changed_weights_fails(precision, exported, seeded, tmp_path):
    folder = shutil.copytree(exported[precision].path, tmp_path / "changed")
    manifest = exported[precision].manifest
    weights = folder / manifest.weights
    words = np.fromfile(weights, np.uint32)
    np.random.default_rng(0).shuffle(words[len(words) // 2 :])
    words.tofile(weights)
    files = {**manifest.files, manifest.weights: describe_file(weights)}
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, files=files).to_json())
    with pytest.raises(FidelityError, match="the artifact fails its gate"):
        verify_artifact(Artifact.open(folder), Checkpoint.open(seeded))


def test_an_embedding_that_depends_on_its_batch_fails(exported, seeded, monkeypatch):
    class Moody(Embedder):
        def embed_tokens(self, tokens, **options):
            found = super().embed_tokens(tokens, **options)
            return found + 0.02 * np.roll(found, 1, axis=1) if len(found) == 1 else found

    monkeypatch.setattr("koe5_export.verify.Embedder", Moody)
    with pytest.raises(FidelityError, match=r"texts: batch_cosine_min 0\.99"):
        verify_artifact(exported["fp32"], Checkpoint.open(seeded))


def test_another_checkpoint_is_rejected(exported, tmp_path):
    other = tmp_path / "other"
    write_seeded_checkpoint(
        other, Size(layers=1, hidden=32, heads=2, intermediate=64, vocabulary=1200), seed=1
    )
    with pytest.raises(InputError, match="is not the checkpoint that the artifact was exported from"):
        verify_artifact(exported["int8"], Checkpoint.open(other))


@pytest.mark.parametrize("package", ["torch", "transformers", "sentence-transformers"])
def test_missing_packages_name_the_extra(exported, seeded, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(MissingDependencyError, match=rf"package {package}\. .*'\.\[reference\]'"):
        verify_artifact(exported["int8"], Checkpoint.open(seeded))


@pytest.mark.parametrize("tokens", [16, 64, 255, 510, 511, 512, 1000])
def test_texts_have_the_requested_number_of_tokens(exported, tokens):
    tokenizer = Tokenizer(exported["fp32"].tokenizer, 512)
    assert tokenizer.encode([text_of_length(tokenizer, tokens)]).full_lengths[0] == tokens


def lengths_of(tokenizer, *given):
    texts = [row.text for row in verification_texts(tokenizer, UNPROMPTED, given)]
    return tokenizer.encode(texts).full_lengths


@pytest.mark.parametrize("limit", [30, 256, 512])
def test_verification_texts_reach_and_exceed_the_limit(exported, limit):
    lengths = lengths_of(Tokenizer(exported["fp32"].tokenizer, limit), "given")
    assert {limit - 1, limit, 2 * limit} <= set(lengths.tolist())
    assert np.histogram(np.log2(lengths), bins=np.arange(3, np.log2(limit) + 1))[0].all()


def test_a_high_limit_costs_two_long_texts(exported):
    lengths = lengths_of(Tokenizer(exported["fp32"].tokenizer, 8192))
    assert {64, 128, 256, 512, 1024, 16384} <= set(lengths.tolist())
    assert (lengths > 512).sum() == 2


def test_texts_take_turns_in_prompts_except_those_of_exact_length(exported):
    contract = dataclasses.replace(UNPROMPTED, prompts={"query": "q: ", "passage": "p: ", "title": "t: "})
    tokenizer = Tokenizer(exported["fp32"].tokenizer, 512)
    rows = verification_texts(tokenizer, contract, ["given"])
    assert rows == verification_texts(tokenizer, contract, ["given"])
    names = Counter(row.prompt_name for row in rows)
    assert set(names) == {None, "query", "passage", "title", ""}
    assert min(count for name, count in names.items() if name != "") > 50
    exact = [row.text for row in rows if row.prompt_name == ""]
    assert tokenizer.encode(exact).full_lengths[:4].tolist() == [64, 80, 100, 128]


def test_both_forms_of_hangul_and_both_cases_are_measured(exported):
    rows = verification_texts(Tokenizer(exported["fp32"].tokenizer, 512), UNPROMPTED, ["given"])
    texts = {row.text for row in rows}
    assert sum(unicodedata.normalize("NFC", text) in texts - {text} for text in texts) >= 5
    assert sum(text.isupper() and text.lower() in texts for text in texts) >= 5
    assert {"given", "", "<s> special </s> tokens <pad> typed by a user <unk>"} < texts


def test_verification_texts_are_distinct_and_share_subjects():
    assert len(VERIFICATION) > 250
    assert len(VERIFICATION) == len(set(VERIFICATION))
    assert all(len(subject) >= 7 for subject in SUBJECTS)


def test_verification_and_calibration_texts_are_disjoint():
    sets = [
        {line.strip() for text in texts for line in text.split("\n")} - {""}
        for texts in (CALIBRATION, VERIFICATION, (*SAMPLE_PASSAGES, *SAMPLE_QUERIES))
    ]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert len(CALIBRATION) == len(set(CALIBRATION))


def test_the_figures_of_the_certificate_can_be_recomputed(exported, seeded):
    artifact = exported["int8"]
    expected = expect(Checkpoint.open(seeded), artifact.manifest.contract, artifact.tokenizer)
    found = np.empty(expected.embeddings.shape)
    opened = Embedder.open(artifact.path, graph="padded")
    with opened as embedder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        for row, (text, name) in enumerate(expected.texts):
            prompt = {"prompt": ""} if name == NO_PROMPT else {"prompt_name": name}
            found[row] = embedder.encode([text], **prompt)[0]
    cosines = (found * expected.embeddings).sum(axis=1)
    written = artifact.manifest.certificate.overall
    assert written.texts == len(expected.texts)
    np.testing.assert_allclose(written.cosine_min, cosines.min(), atol=CERTIFICATE_ATOL, rtol=0)
    np.testing.assert_allclose(written.cosine_mean, cosines.mean(), atol=CERTIFICATE_ATOL, rtol=0)
    largest = np.abs(found - expected.embeddings).max()
    np.testing.assert_allclose(written.max_abs_diff, largest, atol=CERTIFICATE_ATOL, rtol=0)
    for name in (None, *artifact.manifest.contract.prompts):
        assert sum(text.prompt_name == name for text in expected.texts) > 10


def test_another_tokenizer_is_compared_again(seeded, exported, tmp_path):
    """The reference's embeddings are reused only for a tokenizer whose token ids were compared."""
    checkpoint, contract = Checkpoint.open(seeded), exported["int8"].manifest.contract
    own = expect(checkpoint, contract, exported["int8"].tokenizer)
    assert expect(checkpoint, contract, exported["fp32"].tokenizer) is own
    changed = json.loads(exported["int8"].tokenizer.read_text(encoding="utf-8"))
    vocabulary = changed["model"]["vocab"]
    vocabulary[4:] = vocabulary[:3:-1]  # the special tokens stay
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"differently from tokenizer\.json"):
        expect(checkpoint, contract, other)


def test_missing_tokens_at_the_end_are_reported_with_their_place(seeded, exported, tmp_path):
    changed = json.loads(exported["int8"].tokenizer.read_text(encoding="utf-8"))
    changed["post_processor"]["single"].pop()
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"From token [1-9]\d* on it returns \[2\] instead of \[\]\."):
        expect(Checkpoint.open(seeded), exported["int8"].manifest.contract, other)


def test_embeddings_without_unit_length_fail(exported, seeded, tmp_path):
    folder = shutil.copytree(exported["fp32"].path, tmp_path / "changed")
    model = onnx.load(folder / GRAPH, load_external_data=False)
    last = model.graph.node[-1]
    last.op_type = "Identity"
    del last.attribute[:]
    onnx.save(model, folder / GRAPH)
    manifest = Artifact.open(exported["fp32"].path).manifest
    files = {**manifest.files, GRAPH: describe_file(folder / GRAPH)}
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, files=files).to_json())
    with pytest.raises(FidelityError, match="expected 1"):
        verify_artifact(Artifact.open(folder), Checkpoint.open(seeded))
