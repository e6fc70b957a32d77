"""Every precision, on each of its graphs, compared with sentence-transformers."""

import numpy as np
import pytest
import tolerances
from koe5_export.precision import PRECISIONS

from koe5_onnx.engine.graphs import installed_kernels

CASES = [(precision, "padded") for precision in PRECISIONS] + [("int8", "packed"), ("fp16", "packed")]


@pytest.fixture(scope="module")
def expected(reference, texts):
    return reference(texts)


def cosines(a, b):
    return (a.astype(np.float64) * b).sum(axis=1)


def test_sentence_transformers_gives_the_recorded_embeddings(reference, golden):
    found = np.empty_like(golden.embeddings)
    for row, (text, prompt) in enumerate(zip(golden.texts, golden.prompts, strict=True)):
        found[row] = reference({prompt: [text]})[0]
    assert np.abs(found - golden.embeddings).max() <= tolerances.FP32_MAX_ABS_DIFF


def test_different_texts_fail_the_bounds(expected):
    """Nearly all pairs of different texts are less similar than the bounds require for one text."""
    similar = expected.astype(np.float64) @ expected.T
    distinct = similar[similar < 1 - 1e-6]
    assert np.quantile(distinct, 0.99) < min(tolerances.ME5_COSINE_MIN.values())


@pytest.mark.filterwarnings("ignore::koe5_onnx.TruncationWarning")
@pytest.mark.parametrize(("precision", "graph"), CASES)
def test_agrees_with_sentence_transformers(embed, texts, expected, precision, graph):
    if (precision, graph) == ("int8", "packed") and isinstance(reason := installed_kernels(), str):
        pytest.skip(reason)
    found = embed(texts, precision, graph)
    if precision == "fp32":
        assert np.abs(found - expected).max() <= tolerances.FP32_MAX_ABS_DIFF
    near = cosines(found, expected)
    assert near.min() >= tolerances.ME5_COSINE_MIN[precision]
    assert near.mean() >= tolerances.ME5_COSINE_MEAN[precision]
