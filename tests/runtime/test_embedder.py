"""The public face: right embeddings, in the caller's order, whatever stands beside a text."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tolerances
from changed_manifest import set_contract

from koe5_onnx import (
    DoublePromptWarning,
    Embedder,
    InputError,
    ProviderError,
    TextTooLongError,
    TruncationWarning,
)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` with the same row of `b`, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def encode_golden(embedder: Embedder, golden) -> np.ndarray:
    """All golden texts, each prompt's in one call."""
    out = np.full_like(golden.embeddings, np.nan)
    prompts = np.array(golden.prompts, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        for prompt in dict.fromkeys(golden.prompts):
            rows = np.flatnonzero(prompts == prompt)
            out[rows] = embedder.encode([golden.texts[row] for row in rows], prompt)
    return out


@pytest.fixture
def texts(text_of):
    """Short and long, empty and doubled, one giant: 60 of them, none above the limit."""
    lengths = np.random.default_rng(5).integers(0, 60, 57)
    return [
        *(f"{number} {text_of(int(length))}" for number, length in enumerate(lengths)),
        "",
        "",
        text_of(500),
    ]


def test_agrees_with_pytorch(embedder, golden):
    embeddings = encode_golden(embedder, golden)
    assert embeddings.dtype == np.float32
    assert cosines(embeddings, golden.embeddings).min() >= tolerances.GOLDEN_COSINE_MIN
    difference = np.abs(embeddings - golden.embeddings).max()
    assert difference <= tolerances.GOLDEN_MAX_ABS_DIFF


def test_the_golden_bounds_can_fail(golden):
    """Another text's embedding is outside both: the bounds tell right from wrong."""
    _, first = np.unique(np.round(golden.embeddings, 4), axis=0, return_index=True)
    distinct = golden.embeddings[np.sort(first)]
    assert len(distinct) > 30
    for shift in range(1, len(distinct)):
        others = np.roll(distinct, shift, axis=0)
        assert cosines(distinct, others).max() < tolerances.GOLDEN_COSINE_MIN
        assert np.abs(distinct - others).max(axis=1).min() > tolerances.GOLDEN_MAX_ABS_DIFF


def test_a_prompt_is_text_in_front(embedder):
    np.testing.assert_array_equal(embedder.encode_queries(["가나"]), embedder.encode(["query: 가나"]))
    np.testing.assert_array_equal(embedder.encode_passages(["가나"]), embedder.encode(["passage: 가나"]))
    assert cosines(embedder.encode_queries(["가나"]), embedder.encode(["가나"])) < tolerances.ALONE_COSINE_MIN


def test_embeddings_have_unit_length(embedder, texts):
    lengths = np.linalg.norm(embedder.encode(texts).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=tolerances.UNIT_LENGTH_ATOL, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_order_is_the_callers(embedder, texts, seed):
    order = np.random.default_rng(seed).permutation(len(texts))
    straight = embedder.encode(texts)
    shuffled = embedder.encode([texts[row] for row in order])
    assert cosines(shuffled, straight[order]).min() >= tolerances.ALONE_COSINE_MIN


def test_alone_as_in_a_batch(embedder, texts):
    alone = np.concatenate([embedder.encode([text]) for text in texts])
    assert cosines(alone, embedder.encode(texts)).min() >= tolerances.ALONE_COSINE_MIN


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 100_000])
def test_batch_size_changes_nothing(embedder, artifact_path, texts, max_batch_tokens):
    with Embedder.open(artifact_path, threads=1, max_batch_tokens=max_batch_tokens) as other:
        embeddings = other.encode(texts)
    assert cosines(embeddings, embedder.encode(texts)).min() >= tolerances.ALONE_COSINE_MIN


def test_no_texts(embedder):
    for prompt in (None, "query"):
        encoded = embedder.encode_with_info([], prompt)
        assert encoded.embeddings.shape == (0, embedder.dim)
        assert encoded.embeddings.dtype == np.float32
        assert encoded.tokens.shape == encoded.truncated.shape == (0,)
        assert embedder.count_tokens([], prompt).shape == (0,)


def test_empty_text_is_a_text(embedder):
    embeddings = embedder.encode(["", "가", ""])
    assert np.isfinite(embeddings).all()
    np.testing.assert_array_equal(embeddings[0], embeddings[2])


def test_any_sequence_is_taken(embedder):
    np.testing.assert_array_equal(embedder.encode(("가", "나")), embedder.encode(["가", "나"]))
    np.testing.assert_array_equal(embedder.encode(np.array(["가", "나"])), embedder.encode(["가", "나"]))


@pytest.mark.parametrize("prompt", [None, "query"])
@pytest.mark.parametrize("method", ["encode", "encode_with_info", "count_tokens"])
def test_a_bare_str(embedder, method, prompt):
    with pytest.raises(TypeError, match=r"one str: expected a sequence of texts"):
        getattr(embedder, method)("가나다", prompt)


def test_an_unknown_prompt(embedder):
    with pytest.raises(
        InputError, match=r"prompt_name is 'document': expected one of \['passage', 'query'\]"
    ):
        embedder.encode(["가"], "document")


def test_a_name_and_a_text(embedder):
    for method in (embedder.encode, embedder.encode_with_info, embedder.tokenize, embedder.count_tokens):
        with pytest.raises(InputError, match="prompt_name is 'query' and prompt is '': pass one of the two"):
            method(["가"], prompt_name="query", prompt="")


def test_a_literal_prompt(embedder):
    literal = embedder.encode(["가나"], prompt="query: ")
    np.testing.assert_array_equal(literal, embedder.encode(["가나"], prompt_name="query"))
    np.testing.assert_array_equal(embedder.encode(["나"], prompt="가"), embedder.encode(["가나"]))
    assert embedder.pieces("나", prompt="가") == embedder.pieces("가나")
    with pytest.warns(DoublePromptWarning, match="1 of 1 texts already start with '가'"):
        embedder.encode(["가나"], prompt="가")


def test_the_contracts_default_prompt(artifact_copy, embedder):
    set_contract(artifact_copy, default_prompt_name="passage")
    with Embedder.open(artifact_copy, threads=1) as opened:
        for name, same in {None: "passage", "query": "query"}.items():
            np.testing.assert_array_equal(opened.encode(["가나"], name), embedder.encode(["가나"], same))
        np.testing.assert_array_equal(opened.encode(["가나"], prompt=""), embedder.encode(["가나"]))
        assert opened.count_tokens([""]) == embedder.count_tokens([""], "passage")


@pytest.mark.parametrize("prompt", [None, "query"])
def test_a_text_that_is_none(embedder, prompt):
    with pytest.raises(InputError, match="text 1 is a float"):
        embedder.encode(["가", float("nan")], prompt)


def test_truncation_is_counted_and_warned_of_once(embedder, text_of):
    texts = [text_of(3), text_of(510), text_of(511), text_of(5000)]
    with pytest.warns(
        TruncationWarning, match=r"2 of 4 texts have more than 512 tokens \(longest 5002\)"
    ) as caught:
        encoded = embedder.encode_with_info(texts)
    assert [warning.filename for warning in caught] == [__file__]
    assert encoded.tokens.tolist() == [5, 512, 513, 5002]
    assert encoded.truncated.tolist() == [False, False, True, True]
    # Both are cut to the same 512 tokens; and the second time is silent, as warnings are errors here.
    assert cosines(encoded.embeddings[2:3], embedder.encode(texts[3:])) >= tolerances.ALONE_COSINE_MIN


def test_the_prompt_counts_towards_the_limit(embedder, text_of):
    prompt_tokens = int(embedder.count_tokens([text_of(1)], "query")[0]) - 3
    assert prompt_tokens > 0
    with pytest.warns(TruncationWarning, match=r"1 of 2 texts"):
        encoded = embedder.encode_with_info(
            [text_of(510 - prompt_tokens), text_of(511 - prompt_tokens)], "query"
        )
    assert encoded.tokens.tolist() == [512, 513]
    assert encoded.truncated.tolist() == [False, True]


def test_overflow_as_an_error(artifact_path, text_of):
    with Embedder.open(artifact_path, threads=1, overflow="error") as embedder:
        assert embedder.encode([text_of(510)]).shape == (1, embedder.dim)
        with pytest.raises(
            TextTooLongError, match=r"2 of 3 texts .* \(longest 602\), first text 1: split them"
        ):
            embedder.encode(["가", text_of(511), text_of(600)])
        assert embedder.count_tokens([text_of(600)]).tolist() == [602]


def test_a_double_prompt_is_warned_of_once(embedder):
    texts = ["query: 가", "나", "query: 다"]
    with pytest.warns(DoublePromptWarning, match=r"2 of 3 texts already start with 'query: '") as caught:
        embeddings = embedder.encode_queries(texts)
    assert [warning.filename for warning in caught] == [__file__]
    np.testing.assert_array_equal(embedder.encode_queries(texts), embeddings)
    embedder.encode_passages(texts)


def test_counts_are_those_of_encoding(embedder, texts):
    for prompt in (None, "passage"):
        encoded = embedder.encode_with_info(texts, prompt)
        np.testing.assert_array_equal(embedder.count_tokens(texts, prompt), encoded.tokens)


def test_similarity(embedder, texts):
    a, b = embedder.encode(texts[:3]), embedder.encode(texts[3:8])
    expected = [[cosines(x[None], y[None])[0] for y in b] for x in a]
    similarity = embedder.similarity(a, b)
    assert similarity.dtype == np.float32
    np.testing.assert_allclose(similarity, expected, atol=tolerances.SIMILARITY_ATOL, rtol=0)
    assert embedder.similarity(a[:0], b).shape == (0, 5)
    for wrong in (a[0], a[:, :-1]):
        with pytest.raises(InputError, match=rf"b has shape .*: expected \(rows, {embedder.dim}\)"):
            embedder.similarity(a, wrong)


def test_progress_ends_at_the_total(embedder, texts):
    calls: list[tuple[int, int]] = []
    embedder.encode(texts, on_progress=lambda done, total: calls.append((done, total)))
    total = int(embedder.count_tokens(texts).sum())
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {total}
    assert done == sorted(set(done))
    assert done[-1] == total
    assert len(calls) > 1


@pytest.mark.parametrize("texts", [[""], ["", "", ""], [""] * 5000 + ["서울"]], ids=len)
def test_progress_of_empty_texts(embedder, texts):
    """The estimate of the total goes by characters, of which a window may have none."""
    calls: list[tuple[int, int]] = []
    embedder.encode(texts, on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (int(embedder.count_tokens(texts).sum()),) * 2


def test_context_manager_closes(artifact_path):
    with Embedder.open(artifact_path, threads=1) as embedder:
        embedder.encode(["가"])
    with pytest.raises(ProviderError, match="closed"):
        embedder.encode(["가"])
