"""Models related to KoE5.

The tests use seeded checkpoints (random weights from a fixed seed) of the same architectures, with fewer
layers, fewer dimensions and smaller vocabularies.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import KNOWN, ContractOptions, read_contract
from koe5_export.precision import PRECISIONS
from koe5_export.reference import embed_reference
from koe5_export.seeded import Size, encoder_config, write_seeded_checkpoint
from koe5_export.texts import text_of_length
from tolerances import DIFFERENT_ABS_DIFF, FP32_MAX_ABS_DIFF

from koe5_onnx import Embedder, Tokenizer, TruncationWarning

E5 = {"query": "query: ", "passage": "passage: "}
LONG = {"positions": 8194, "pooling": "cls", "prompted": False}
# Model type, positions and pooling are real. Source: config.json and 1_Pooling/config.json of these models
FAMILY = {
    "intfloat/multilingual-e5-small": Size(2, 64, 2, 256, 1200, model_type="bert", positions=512),
    "intfloat/multilingual-e5-base": Size(1, 64, 1, 256, 1200),
    "intfloat/multilingual-e5-large": Size(2, 64, 1, 256, 1200),
    "BAAI/bge-m3": Size(1, 64, 1, 256, 1200, **LONG),
    "nlpai-lab/KURE-v1": Size(2, 32, 1, 128, 1200, **LONG),
}
"""Shapes of seeded checkpoints by Hub id."""


@pytest.fixture(scope="module", params=FAMILY)
def relative(request, tmp_path_factory):
    """Return a Hub id, and a seeded checkpoint with the shape of that model."""
    folder = tmp_path_factory.mktemp("family") / "checkpoint"
    write_seeded_checkpoint(folder, FAMILY[request.param])
    return request.param, folder


@pytest.fixture(scope="module")
def bge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bge") / "checkpoint"
    write_seeded_checkpoint(folder, FAMILY["BAAI/bge-m3"])
    return folder


@pytest.mark.slow
def test_each_model_passes_its_gates_on_the_cpu(relative, tmp_path):
    _, folder = relative
    for precision in ("fp32", "int8"):
        options = ExportOptions(precision=precision)
        manifest = export_checkpoint(Checkpoint.open(folder), tmp_path / precision, options).manifest
        assert manifest.certificate.overall.cosine_min >= PRECISIONS[precision].gate.cosine_min
        longest = list(manifest.certificate.by_length)[-1]
        assert longest.endswith(f"-{manifest.contract.max_tokens}")


def test_known_contracts_match_those_of_the_files(relative):
    """A copy without sentence-transformers' files has the same contract if `like` names the model."""
    name, folder = relative
    checkpoint = Checkpoint.open(folder)
    expected = read_contract(checkpoint)
    known = Checkpoint.open(shutil.copytree(folder, folder.with_name("known")))
    for file in (
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ):
        (known.folder / file).unlink()
    assert read_contract(known, ContractOptions(like=name)) == expected
    assert (expected.max_tokens, expected.pooling) == ((512, "mean") if "e5" in name else (8192, "cls"))


def test_multilingual_e5_small_uses_the_pad_id_of_its_config(tmp_path):
    """The pad id in config.json is 0, the id of <s>. Padding is masked, so the id of <pad> gives the same."""
    folder = tmp_path / "small"
    write_seeded_checkpoint(folder, FAMILY["intfloat/multilingual-e5-small"])
    checkpoint = Checkpoint.open(folder)
    artifact = export_checkpoint(checkpoint, tmp_path / "out")
    assert artifact.manifest.contract.pad_id == 0
    assert checkpoint.config.epsilon == 1e-12
    texts = ["<pad> 네 <s>", "서울은 수도이다.", "짧다"]
    with_pad = dataclasses.replace(artifact.manifest.contract, pad_id=1)
    with Embedder.open(artifact.path) as embedder:
        found = embedder.encode(texts)
    np.testing.assert_allclose(
        found, embed_reference(folder, with_pad, texts), atol=FP32_MAX_ABS_DIFF, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [511, 512, 513, 514, 515, 3000, 8191, 8192, 8193])
def test_texts_up_to_8192_tokens(long_artifact, bge, tokens):
    tokenizer = Tokenizer(long_artifact.tokenizer, 8192)
    text = text_of_length(tokenizer, tokens)
    assert tokenizer.encode([text]).full_lengths[0] == tokens
    with Embedder.open(long_artifact.path) as embedder:
        if tokens > 8192:
            with pytest.warns(TruncationWarning):
                found = embedder.encode([text])
        else:
            found = embedder.encode([text])
    expected = embed_reference(bge, long_artifact.manifest.contract, [text])
    np.testing.assert_allclose(found, expected, atol=FP32_MAX_ABS_DIFF, rtol=0)


@pytest.fixture(scope="module")
def long_artifact(bge, tmp_path_factory):
    return export_checkpoint(Checkpoint.open(bge), tmp_path_factory.mktemp("long") / "out")


def test_cls_pooling_takes_the_first_token(long_artifact, bge):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    text = "서울은 대한민국의 수도이며 가장 큰 도시이다."
    (ids,) = Tokenizer(long_artifact.tokenizer, 8192).encode([text]).ids
    encoder = AutoModel.from_pretrained(bge).eval()
    with torch.inference_mode():
        states = encoder(input_ids=torch.tensor(ids[None].astype(np.int64))).last_hidden_state[0].numpy()
    with Embedder.open(long_artifact.path) as embedder:
        found = embedder.encode([text])[0]
    first, mean = states[0], states.mean(axis=0)
    np.testing.assert_allclose(found, first / np.linalg.norm(first), atol=FP32_MAX_ABS_DIFF, rtol=0)
    assert np.abs(found - mean / np.linalg.norm(mean)).max() > DIFFERENT_ABS_DIFF


def test_known_prompts_are_those_of_the_model_cards():
    for name, known in KNOWN.items():
        queries_only = {"query": "query: "} if "arctic" in name else {}
        assert known.prompts == (E5 if "5" in name else queries_only)
        assert known.pooling == ("mean" if "5" in name else "cls")


def test_a_seeded_checkpoint_has_the_constants_of_its_type(tmp_path):
    size = FAMILY["intfloat/multilingual-e5-small"]
    write_seeded_checkpoint(tmp_path / "bert", size)
    assert Checkpoint.open(tmp_path / "bert").config == encoder_config(size)
    written = json.loads((tmp_path / "bert" / "config.json").read_text())
    assert (written["type_vocab_size"], written["max_position_embeddings"]) == (2, 512)
