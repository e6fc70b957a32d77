"""MTEB runs a retrieval and an STS task with local data, and its scores match the embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="the extra mteb is not installed. Run make integrations")

from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.types import PromptType
from scipy.stats import spearmanr
from tolerances import FIGURE_ATOL, SERVED

from koe5_onnx import Artifact, InputError
from koe5_onnx.integrations.mteb import Koe5Encoder

PAGES = {
    "p0": "서울은 대한민국의 수도이다.",
    "p1": "고래는 포유류이다.",
    "p2": "세종대왕은 한글을 만들었다.",
    "p3": "The quick brown fox jumps over the lazy dog.",
    "p4": "부산은 항구 도시이다.",
}
QUERIES = {
    "q0": "대한민국의 수도는 어디인가요?",
    "q1": "한글은 누가 만들었나요?",
    "q2": "Which animal jumps?",
}
RELEVANT = {"q0": {"p0": 1}, "q1": {"p2": 1}, "q2": {"p3": 1}}
PAIRS = [
    ("한 남자가 춤을 춘다.", "남자가 춤을 추고 있다.", 4.8),
    ("한 여자가 요리한다.", "고래는 포유류이다.", 0.2),
    ("아이가 말을 탄다.", "어린아이가 말을 타고 있다.", 4.5),
    ("비가 온다.", "The weather is fine.", 0.5),
    ("개가 달린다.", "고양이가 달린다.", 2.0),
]


def metadata(name, kind, main_score):
    return TaskMetadata(
        name=name,
        description="Data of a test.",
        dataset={"path": "none/none", "revision": "1"},
        type=kind,
        eval_langs=["kor-Hang"],
        main_score=main_score,
    )


class TinyRetrieval(AbsTaskRetrieval):
    metadata = metadata("TinyRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, *_arguments, **_options):
        corpus = Dataset.from_list([{"id": id_, "text": text, "title": ""} for id_, text in PAGES.items()])
        queries = Dataset.from_list([{"id": id_, "text": text} for id_, text in QUERIES.items()])
        split = {"corpus": corpus, "queries": queries, "relevant_docs": RELEVANT, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class TinySTS(AbsTaskSTS):
    metadata = metadata("TinySTS", "STS", "cosine_spearman")

    def load_data(self, *_arguments, **_options):
        columns = ("sentence1", "sentence2", "score")
        rows = [dict(zip(columns, pair, strict=True)) for pair in PAIRS]
        self.dataset = {"test": Dataset.from_list(rows)}
        self.data_loaded = True


@pytest.fixture(scope="module")
def encoder(embedder):
    return Koe5Encoder(embedder)


def score_of(encoder, task, name):
    result = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    (found,) = result.task_results
    return found.scores["test"][0][name]


def test_a_retrieval_task(encoder, embedder):
    similarities = (
        embedder.encode_queries(list(QUERIES.values())) @ embedder.encode_passages(list(PAGES.values())).T
    )
    ranks = [
        1 + int((row > row[list(PAGES).index(page)]).sum())
        for row, page in zip(similarities, ("p0", "p2", "p3"), strict=True)
    ]
    expected = np.mean([1 / np.log2(1 + rank) for rank in ranks])
    # MTEB rounds to five decimals.
    assert score_of(encoder, TinyRetrieval(), "ndcg_at_10") == pytest.approx(expected, abs=1e-5)


def test_an_sts_task(encoder, embedder):
    first, second, scores = zip(*PAIRS, strict=True)
    cosines = (embedder.encode(first) * embedder.encode(second)).sum(axis=1)
    expected = spearmanr(scores, cosines).statistic
    assert score_of(encoder, TinySTS(), "cosine_spearman") == pytest.approx(expected, abs=FIGURE_ATOL)


def encode(encoder, batches, prompt_type=None, **options):
    return encoder.encode(
        batches,
        task_metadata=TinySTS.metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=prompt_type,
        **options,
    )


@pytest.mark.parametrize(
    ("prompt_type", "prompt"),
    [(PromptType.query, "query"), (PromptType.document, "passage"), (None, None)],
)
def test_prompts(encoder, embedder, texts, prompt_type, prompt):
    found = encode(encoder, [{"text": texts[:2]}, {"text": texts[2:]}], prompt_type, batch_size=3)
    np.testing.assert_allclose(found, embedder.encode(texts, prompt), atol=SERVED, rtol=0)


def test_shortened_embeddings(short, texts):
    encoder = Koe5Encoder(short, dim=8)
    found = encode(encoder, [{"text": texts}], PromptType.query)
    np.testing.assert_array_equal(found, short.encode_queries(texts, dim=8))
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim) == ("koe5-onnx/tiny-seeded-int8-8", 8)
    with pytest.raises(InputError, match="dim is 9: expected one of 8, 16, 64"):
        Koe5Encoder(short, dim=9)


def test_unsupported_inputs_and_precisions_are_rejected(encoder, texts):
    with pytest.raises(InputError, match="TinySTS has the inputs image: expected 'text'"):
        encode(encoder, [{"image": [None]}])
    with pytest.raises(InputError, match="precision is 'int8'"):
        encode(encoder, [{"text": texts}], precision="int8")


def test_the_encoder_follows_the_protocol(encoder):
    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("koe5-onnx/tiny-seeded-int8", 64, 512)
    assert meta.adapted_from == "tiny-seeded"
    assert len(meta.revision) == 64


def test_the_similarity_of_the_contract(encoder, embedder, monkeypatch):
    assert encoder.mteb_model_meta.similarity_fn_name == "cosine"
    manifest = embedder.artifact.manifest
    contract = replace(manifest.contract, similarity="dot")
    artifact = Artifact(embedder.artifact.path, replace(manifest, contract=contract))
    monkeypatch.setattr(embedder, "artifact", artifact)
    assert Koe5Encoder(embedder).mteb_model_meta.similarity_fn_name == "dot"
