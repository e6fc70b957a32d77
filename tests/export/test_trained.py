"""Artifacts of the trained all-MiniLM-L6-v2, compared with embeddings that transformers computes."""

import numpy as np
import pytest
from tolerances import (
    ALONE_COSINE_MIN,
    FP32_MAX_ABS_DIFF,
    TRAINED_INT8_COSINE_MEAN,
    TRAINED_INT8_COSINE_MIN,
)

from koe5_onnx import Embedder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(minilm, unseen_texts):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    encoder = AutoModel.from_pretrained(minilm).eval()
    out = np.empty((len(unseen_texts), 384), np.float32)
    order = sorted(range(len(unseen_texts)), key=lambda row: len(unseen_texts[row]))
    with torch.inference_mode():
        for start in range(0, len(order), 20):
            rows = order[start : start + 20]
            texts = [unseen_texts[row] for row in rows]
            inputs = tokenizer(texts, truncation=True, max_length=256, padding=True, return_tensors="pt")
            hidden, mask = encoder(**inputs).last_hidden_state, inputs["attention_mask"]
            for row, states, kept in zip(rows, hidden, mask, strict=True):
                mean = states[kept == 1].mean(dim=0)
                out[row] = mean / mean.norm()
    return out


def cosines(a, b):
    return (a.astype(np.float64) * b).sum(axis=1)


@pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")
def test_fp32(exported_minilm, unseen_texts, expected):
    with Embedder.open(exported_minilm["fp32"].path) as embedder:
        assert np.abs(embedder.encode(unseen_texts) - expected).max() <= FP32_MAX_ABS_DIFF


@pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")
def test_int8(exported_minilm, unseen_texts, expected):
    with Embedder.open(exported_minilm["int8"].path) as embedder:
        found = cosines(embedder.encode(unseen_texts), expected)
    assert found.mean() >= TRAINED_INT8_COSINE_MEAN
    assert found.min() >= TRAINED_INT8_COSINE_MIN


@pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")
def test_int8_does_not_depend_on_the_batch(exported_minilm, unseen_texts):
    rng = np.random.default_rng(0)
    with Embedder.open(exported_minilm["int8"].path, max_batch_tokens=1) as embedder:
        alone = np.concatenate([embedder.encode([text]) for text in unseen_texts])
    for budget in (64, 512, 8192):
        order = rng.permutation(len(unseen_texts))
        with Embedder.open(exported_minilm["int8"].path, max_batch_tokens=budget) as embedder:
            together = embedder.encode([unseen_texts[row] for row in order])
        assert cosines(together, alone[order]).min() >= ALONE_COSINE_MIN
