"""SentenceEncoder compared with SentenceTransformer."""

from __future__ import annotations

import inspect
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
from edited_json import edited, set_contract
from tolerances import FP32_MAX_ABS_DIFF, SIMILARITY_ATOL, UNIT_LENGTH_ATOL

from koe5_onnx import Embedder, InputError, MissingDependencyError
from koe5_onnx.integrations.sentence_transformers import SentenceEncoder

SAME = {"atol": FP32_MAX_ABS_DIFF, "rtol": 0}


@pytest.fixture(scope="module")
def original():
    """Return the class SentenceTransformer."""
    return pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed. Run make integrations"
    ).SentenceTransformer


@pytest.fixture(scope="module")
def pair(original, tmp_path_factory):
    """Return a SentenceTransformer of a checkpoint, and a SentenceEncoder of its fp32 artifact."""
    koe5_export = pytest.importorskip("koe5_export")
    from koe5_export.checkpoint import Checkpoint
    from koe5_export.seeded import write_seeded_checkpoint

    folder = tmp_path_factory.mktemp("pair")
    write_seeded_checkpoint(folder / "checkpoint", "tiny")
    options = koe5_export.ExportOptions(matryoshka_dims=[16])
    koe5_export.export_checkpoint(Checkpoint.open(folder / "checkpoint"), folder / "artifact", options)
    return original(str(folder / "checkpoint"), device="cpu"), SentenceEncoder(folder / "artifact", threads=1)


@pytest.fixture
def encoder(embedder):
    return SentenceEncoder(embedder)


@pytest.mark.parametrize("verb", ["encode", "encode_query", "encode_document"])
def test_arguments_and_defaults_equal_the_original(original, encoder, verb):
    theirs = [
        one
        for one in inspect.signature(getattr(original, verb)).parameters.values()
        if one.kind is not inspect.Parameter.VAR_KEYWORD and one.name != "self"
    ]
    ours = list(inspect.signature(encoder.encode).parameters.values())
    assert [one.name for one in theirs] == [one.name for one in ours][: len(theirs)]
    for their, our in zip(theirs[1:], ours[1:], strict=False):
        assert their.default == our.default, our.name
    defaults = {one.name: one.default for one in theirs[1:]}
    assert getattr(encoder, verb)("서울", **defaults).shape == (encoder.embedder.dim,)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt_name": "query"},
        {"prompt_name": "passage"},
        {"prompt": "instruction: "},
        {"prompt": ""},
        {"batch_size": 1},
        {"normalize_embeddings": True},
        {"truncate_dim": 16},
        {"truncate_dim": 16, "normalize_embeddings": True},
        {"truncate_dim": 10_000},
        {"task": "query"},
    ],
    ids=str,
)
def test_embeddings_equal_the_original(pair, texts, options):
    theirs, ours = (model.encode(texts, **options) for model in pair)
    assert (type(ours), ours.dtype, ours.shape) == (type(theirs), theirs.dtype, theirs.shape)
    np.testing.assert_allclose(ours, theirs, **SAME)


def test_each_method_uses_its_prompt(pair, texts):
    theirs, ours = pair
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), **SAME)
    np.testing.assert_allclose(ours.encode_query(texts), theirs.encode_query(texts), **SAME)
    passages = theirs.encode(texts, prompt_name="passage")
    np.testing.assert_allclose(ours.encode_document(texts), passages, **SAME)


def test_the_original_ignores_the_prompt_of_passages(pair, texts):
    """If this test fails, update the docstring of SentenceEncoder."""
    theirs, _ = pair
    assert theirs.prompts["document"] == ""
    np.testing.assert_allclose(theirs.encode_document(texts), theirs.encode(texts), **SAME)


@pytest.mark.parametrize(
    "options",
    [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"precision": "ubinary"}],
    ids=str,
)
@pytest.mark.parametrize("many", [True, False])
def test_results_have_the_types_of_the_original(pair, texts, options, many):
    inputs = texts if many else texts[0]
    theirs, ours = (model.encode(inputs, **options) for model in pair)
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert [type(one) for one in ours] == [type(one) for one in theirs]
        theirs, ours = np.stack(theirs), np.stack(ours)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if "precision" not in options:  # a bit of a component near 0 may differ
        np.testing.assert_allclose(ours, theirs, **SAME)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_are_packed_as_by_the_original(encoder, texts, precision):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.util.quantization import quantize_embeddings

    expected = quantize_embeddings(encoder.encode(texts), precision=precision)
    found = encoder.encode(texts, precision=precision)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda texts: np.array(texts, dtype=object)])
def test_any_sequence_of_texts(pair, texts, kind):
    theirs, ours = (model.encode(kind(texts)) for model in pair)
    np.testing.assert_allclose(ours, theirs, **SAME)


def test_similarities_equal_the_original(pair, texts):
    theirs, ours = pair
    vectors = 3 * ours.encode(texts)
    tensors = ours.encode(texts, convert_to_tensor=True)
    for rows in (vectors, vectors[0], list(vectors), tensors, list(tensors)):
        for verb in ("similarity", "similarity_pairwise"):
            expected, found = getattr(theirs, verb)(rows, rows), getattr(ours, verb)(rows, rows)
            np.testing.assert_allclose(
                np.atleast_1d(found), np.atleast_1d(expected), atol=SIMILARITY_ATOL, rtol=0, err_msg=verb
            )
    assert isinstance(ours.similarity(vectors, vectors), np.ndarray)
    assert type(ours.similarity(tensors, vectors)) is type(tensors)


def test_properties_equal_the_original(pair):
    theirs, ours = pair
    for name in ("max_seq_length", "similarity_fn_name", "default_prompt_name", "truncate_dim"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert {name: ours.prompts[name] for name in ("query", "passage")} == {
        name: theirs.prompts[name] for name in ("query", "passage")
    }
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.get_max_seq_length() == theirs.get_max_seq_length()
    assert str(ours.device) == str(theirs.device)


def test_prompts_can_be_set(pair, texts):
    theirs, ours = pair
    ours = SentenceEncoder(ours.embedder, prompts={"topic": "주제: "}, default_prompt_name="topic")
    expected = theirs.encode(texts, prompt="주제: ")
    np.testing.assert_allclose(ours.encode(texts), expected, **SAME)
    np.testing.assert_allclose(ours.encode_query(texts), expected, **SAME)
    np.testing.assert_allclose(ours.encode(texts, prompt=""), theirs.encode(texts), **SAME)


def test_truncate_dim_can_be_set(short, texts):
    encoder = SentenceEncoder(short, truncate_dim=8)
    assert encoder.get_sentence_embedding_dimension() == 8
    np.testing.assert_array_equal(encoder.encode(texts), short.encode(texts)[:, :8])
    assert encoder.encode(texts, truncate_dim=16).shape == (len(texts), 16)
    found = encoder.encode(texts, normalize_embeddings=True)
    np.testing.assert_array_equal(found, short.encode(texts, dim=8))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=UNIT_LENGTH_ATOL)
    with pytest.raises(InputError, match="truncate_dim is 9: expected one of 8, 16, 64"):
        SentenceEncoder(short, truncate_dim=9)
    with pytest.raises(InputError, match="truncate_dim is 4: expected one of 8, 16, 64"):
        encoder.encode(texts, truncate_dim=4)


def test_the_similarity_function_is_that_of_the_contract(artifact_path, tmp_path):
    folder = shutil.copytree(artifact_path, tmp_path / "artifact")
    set_contract(folder, similarity="dot")
    assert SentenceEncoder(folder, threads=1).similarity_fn_name == "dot"


@pytest.mark.parametrize("normalizes", [True, False])
def test_dim_of_an_embedder_equals_truncate_dim(original, tmp_path, texts, normalizes):
    """`dim` equals the original's `truncate_dim`, normalized again if the contract normalizes."""
    koe5_export = pytest.importorskip("koe5_export")
    from koe5_export.checkpoint import Checkpoint
    from koe5_export.seeded import write_seeded_checkpoint

    folder = tmp_path / "checkpoint"
    write_seeded_checkpoint(folder, "tiny", seed=1)
    if not normalizes:
        with edited(folder / "modules.json") as modules:
            modules.pop()
    theirs = original(str(folder), device="cpu", truncate_dim=16)
    options = koe5_export.ExportOptions(matryoshka_dims=[32, 16])
    artifact = koe5_export.export_checkpoint(Checkpoint.open(folder), tmp_path / "artifact", options)
    with Embedder.open(artifact.path, threads=1) as ours:
        assert (ours.contract.normalize, ours.contract.dims) == (normalizes, (16, 32, 64))
        for prompt in ("query", "passage"):
            for dim in (16, 32):
                expected = theirs.encode(
                    texts, prompt_name=prompt, truncate_dim=dim, normalize_embeddings=normalizes
                )
                np.testing.assert_allclose(ours.encode(texts, prompt, dim=dim), expected, **SAME)
        expected = theirs.encode(texts, prompt_name="query", normalize_embeddings=normalizes)
        np.testing.assert_allclose(ours.encode_queries(texts, dim=16), expected, **SAME)


def test_no_texts(encoder):
    assert encoder.encode([]).shape == (0, encoder.embedder.dim)
    assert encoder.encode([], precision="ubinary").shape == (0, encoder.embedder.dim // 8)


def test_the_older_parameter_name_sentences(encoder, texts):
    np.testing.assert_array_equal(encoder.encode(sentences=texts), encoder.encode(texts))
    for arguments in ({}, {"inputs": texts, "sentences": texts}):
        with pytest.raises(TypeError, match="`inputs`"):
            encoder.encode(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_value": "token_embeddings"}, "output_value is 'token_embeddings'"),
        ({"output_value": None}, "output_value is None"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"device": ["cpu", "cpu"]}, "device is "),
        ({"pool": {}}, "parallel_batches="),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"truncate_dim": 0}, "truncate_dim is 0"),
        ({"prompt_name": "topic"}, "'topic': expected None or one of"),
        ({"inputs": 3}, "inputs is a int"),
        ({"inputs": {"text": "서울"}}, "inputs is a dict"),
        ({"inputs": [["서울", "부산"]]}, "text 0 is a list"),
    ],
    ids=str,
)
def test_unsupported_arguments_are_rejected(encoder, arguments, message):
    with pytest.raises(InputError, match=message):
        encoder.encode(**{"inputs": ["서울"], **arguments})


def test_unknown_arguments_are_rejected(encoder):
    with pytest.raises(TypeError, match="processing_kwargs"):
        encoder.encode("서울", processing_kwargs={})
    with pytest.raises(InputError, match="'topic'"):
        SentenceEncoder(encoder.embedder, default_prompt_name="topic")
    with pytest.raises(InputError, match="truncate_dim is 0"):
        SentenceEncoder(encoder.embedder, truncate_dim=0)


def test_the_token_limit_cannot_be_changed(encoder):
    encoder.max_seq_length = 512
    with pytest.raises(InputError, match="max_seq_length is 128: expected 512"):
        encoder.max_seq_length = 128


def test_prompt_takes_precedence_over_prompt_name(encoder, texts):
    with pytest.warns(UserWarning, match="'passage' is ignored"):
        found = encoder.encode(texts, prompt_name="passage", prompt="query: ")
    np.testing.assert_array_equal(found, encoder.encode(texts, prompt_name="query"))


def test_the_progress_bar(encoder, texts, capsys, caplog):
    encoder.encode(texts)
    assert capsys.readouterr().err == ""
    encoder.encode(texts, show_progress_bar=True)
    assert "tokens" in capsys.readouterr().err
    with caplog.at_level(logging.INFO):
        encoder.encode(texts)
        encoder.encode(texts, show_progress_bar=False)
    assert "tokens" in capsys.readouterr().err


def test_tensors_without_pytorch(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert encoder.encode("서울").shape == (encoder.embedder.dim,)
    with pytest.raises(MissingDependencyError, match="torch"):
        encoder.encode("서울", convert_to_tensor=True)


def test_pytorch_is_not_loaded(artifact_path):
    code = """
import sys
from koe5_onnx.integrations.sentence_transformers import SentenceEncoder
model = SentenceEncoder(sys.argv[1], threads=1)
model.similarity(model.encode_query(["가"]), model.encode_document(["나"]))
print(*sorted({"sentence_transformers", "torch", "tqdm", "transformers"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, str(artifact_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"
