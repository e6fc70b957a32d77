"""The public API returns correct embeddings in the caller's order, independent of the other texts."""

from __future__ import annotations

import asyncio
import copy
import importlib.metadata
import pickle
import shutil
import warnings

import numpy as np
import pytest
import tolerances
from edited_json import edited, set_contract

from koe5_onnx import (
    ArtifactError,
    AsyncEmbedder,
    DoublePromptWarning,
    Embedder,
    FidelityError,
    InputError,
    ProviderError,
    TextTooLongError,
    Tokens,
    TruncationWarning,
)
from koe5_onnx.artifact import MANIFEST
from koe5_onnx.engine.graphs import installed_kernels
from koe5_onnx.integrations.sentence_transformers import SentenceEncoder

ONNXRUNTIME = tuple(map(int, importlib.metadata.version("onnxruntime").split(".")[:2]))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of `a` with the same row of `b`, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def encode_golden(embedder: Embedder, golden) -> np.ndarray:
    """Embed all golden texts, one call per prompt."""
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
    """Return 60 texts, of which two are empty and one has 500 words, none above the token limit."""
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
    """Check that the embedding of a different text is outside both bounds."""
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


def test_any_sequence_is_accepted(embedder):
    np.testing.assert_array_equal(embedder.encode(("가", "나")), embedder.encode(["가", "나"]))
    np.testing.assert_array_equal(embedder.encode(np.array(["가", "나"])), embedder.encode(["가", "나"]))


@pytest.mark.parametrize("prompt", [None, "query"])
@pytest.mark.parametrize("method", ["encode", "encode_with_info", "count_tokens"])
def test_a_bare_str(embedder, method, prompt):
    with pytest.raises(TypeError, match=r"a str: expected a sequence of texts"):
        getattr(embedder, method)("가나다", prompt)


def test_an_unknown_prompt(embedder):
    with pytest.raises(
        InputError, match=r"prompt_name is 'document': expected one of \['passage', 'query'\]"
    ):
        embedder.encode(["가"], "document")


def test_a_name_and_a_text(embedder):
    for method in (embedder.encode, embedder.encode_with_info, embedder.tokenize, embedder.count_tokens):
        with pytest.raises(InputError, match=r"prompt_name is 'query' and prompt is ''\. Pass only one"):
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
        TruncationWarning, match=r"2 of 4 texts have more than 512 tokens \(longest: 5002\)"
    ) as caught:
        encoded = embedder.encode_with_info(texts)
    assert [warning.filename for warning in caught] == [__file__]
    assert encoded.tokens.tolist() == [5, 512, 513, 5002]
    assert encoded.truncated.tolist() == [False, False, True, True]
    # Both are truncated to the same 512 tokens. The second call must not warn, as warnings are errors here.
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
            TextTooLongError, match=r"2 of 3 texts .* \(longest: 602\); the first one is text 1\. Split these"
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
    """The estimated total depends on characters, and a window may have none."""
    calls: list[tuple[int, int]] = []
    embedder.encode(texts, on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (int(embedder.count_tokens(texts).sum()),) * 2


def test_context_manager_closes(artifact_path):
    with Embedder.open(artifact_path, threads=1) as embedder:
        embedder.encode(["가"])
    with pytest.raises(ProviderError, match="closed"):
        embedder.encode(["가"])


TEXTS = ["가나다", "a b c", "", "서울은 대한민국의 수도이다.", "a b c"]


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr("koe5_onnx.embedder.WINDOW_TEXTS", 2)


@pytest.mark.parametrize("kind", [iter, tuple, np.array, lambda texts: dict.fromkeys(texts).keys()])
def test_any_iterable(embedder, small_windows, kind):
    texts = ["가나다", "a b c", "", "서울은 대한민국의 수도이다."]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("koe5_onnx.embedder.WINDOW_TEXTS", 4096)
        expected = embedder.encode_with_info(texts, "passage")
    if kind not in (iter, tuple, np.array):
        with pytest.raises(TypeError, match="texts is a dict_keys"):
            embedder.encode(kind(texts))
        return
    found = embedder.encode_with_info(kind(texts), "passage", dim=embedder.dim)
    for name in ("embeddings", "tokens", "truncated", "composed"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_generator_is_read_in_windows(embedder, small_windows):
    read = []

    def texts():
        for number in range(5):
            read.append(number)
            yield f"글 {number}"

    seen = []
    rows = embedder.encode(texts(), on_progress=lambda done, total: seen.append((done, total, len(read))))
    assert rows.shape == (5, embedder.dim)
    assert [count for _done, _total, count in seen] == [2, 4, 5], (
        "a window is read before the previous one is done"
    )
    assert [done for done, _total, _count in seen] == sorted(done for done, _total, _count in seen)
    assert embedder.encode(iter([])).shape == (0, embedder.dim)


@pytest.mark.parametrize("texts", ["a", b"a", {"a": 1}, {"a"}, frozenset("a")])
def test_no_sequence_of_texts(embedder, texts):
    with pytest.raises(TypeError, match=f"texts is a {type(texts).__name__}: expected a sequence of texts"):
        embedder.encode(texts)


def test_equal_texts_are_computed_once(embedder, monkeypatch):
    tokens = []
    run = embedder._run
    monkeypatch.setattr(
        embedder,
        "_run",
        lambda found, out, **named: (tokens.append(len(found.ids)), run(found, out, **named)),
    )
    progress = []
    found = embedder.encode_with_info(TEXTS, on_progress=lambda done, total: progress.append((done, total)))
    assert tokens == [4]
    assert progress[-1] == (found.tokens.sum(), found.tokens.sum())
    np.testing.assert_array_equal(found.embeddings[1], found.embeddings[4])
    np.testing.assert_allclose(
        found.embeddings[:4], embedder.encode(TEXTS[:4]), atol=tolerances.CERTIFICATE_ATOL
    )


def test_pickle_opens_the_artifact_again(embedder, artifact_path):
    expected = embedder.encode(TEXTS)
    for copied in (pickle.loads(pickle.dumps(embedder)), copy.deepcopy(embedder)):
        with copied:
            assert copied is not embedder
            assert copied.session.threads == 1
            np.testing.assert_array_equal(copied.encode(TEXTS), expected)
    assert pickle.dumps(embedder) == pickle.dumps(embedder), (
        "the package datasets hashes these bytes to name cache files"
    )


def test_an_asynchronous_one_and_an_adapter_are_pickled(embedder, artifact_path):
    asynchronous = pickle.loads(pickle.dumps(AsyncEmbedder(embedder, parallel_batches=2)))
    assert asynchronous.parallel_batches == 2
    np.testing.assert_array_equal(asyncio.run(asynchronous.encode(TEXTS)), embedder.encode(TEXTS))
    encoder = pickle.loads(pickle.dumps(SentenceEncoder(artifact_path, threads=1)))
    np.testing.assert_array_equal(
        encoder.encode(TEXTS), SentenceEncoder(artifact_path, threads=1).encode(TEXTS)
    )


def test_a_spawned_process_embeds(run_python, artifact_path):
    code = """
import multiprocessing, sys
from koe5_onnx import Embedder
if __name__ == "__main__":
    embedder = Embedder.open(sys.argv[1], threads=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (rows,) = pool.map(embedder.encode, [["가나다", "a"]])
    assert (rows == embedder.encode(["가나다", "a"])).all()
"""
    file = artifact_path.parents[1] / "spawned.py"
    done = run_python(code, artifact_path)
    assert (done.returncode, file.exists()) == (0, False), done.stderr


def test_a_pickle_of_another_artifact(artifact_copy):
    with Embedder.open(artifact_copy, threads=1) as embedder:
        pickled = pickle.dumps(embedder)
    set_contract(artifact_copy, default_prompt_name="query")
    with pytest.raises(ArtifactError, match="has changed since the Embedder was pickled"):
        pickle.loads(pickled)
    shutil.rmtree(artifact_copy)
    with pytest.raises(ArtifactError, match="does not exist: expected an artifact folder"):
        pickle.loads(pickled)


def test_one_that_was_not_opened_by_path(embedder):
    one = Embedder(embedder.artifact, embedder.session, embedder._tokenizer, max_batch_tokens=512)
    with pytest.raises(TypeError, match=r"cannot be pickled: expected one that Embedder\.open returned"):
        pickle.dumps(one)


@pytest.fixture
def linked_artifact(artifact_path, tmp_path):
    """Return an artifact whose files are links into one folder, as in the Hub's cache and in ConfigMaps."""
    artifact, blobs = tmp_path / "artifact", tmp_path / "blobs"
    shutil.copytree(artifact_path, artifact)
    blobs.mkdir()
    for number, file in enumerate(path for path in artifact.rglob("*") if path.is_file()):
        file.symlink_to(file.rename(blobs / str(number)))
    return artifact


@pytest.fixture(params=["packed", "padded"])
def graph(request):
    if request.param == "packed" and isinstance(installed_kernels(), str):
        pytest.skip("the fused kernels cannot run here")
    return request.param


def test_files_that_are_links_to_one_folder(linked_artifact, graph):
    with Embedder.open(linked_artifact, threads=1, graph=graph) as embedder:
        assert embedder.encode(["a"]).shape == (1, embedder.dim)


@pytest.mark.skipif(ONNXRUNTIME < (1, 24), reason="this ONNX Runtime reads weights from any folder")
def test_files_that_are_links_to_different_folders(linked_artifact, graph, tmp_path):
    """With DVC and git-annex, the target of each link is in a different folder."""
    with Embedder.open(linked_artifact, threads=1, graph=graph) as embedder:
        file = embedder.session.graph.file
    (tmp_path / "other").mkdir()
    moved = file.resolve().rename(tmp_path / "other" / file.name)
    file.unlink()
    file.symlink_to(moved)
    message = rf"{file.name} is in .*other, but model_quantized.onnx_data is in .*blobs.*cp --recursive "
    with pytest.raises(ProviderError, match=message):
        Embedder.open(linked_artifact, threads=1, graph=graph)


def test_selftest(artifact_path, graph):
    with Embedder.open(artifact_path, threads=1, graph=graph, selftest=True) as embedder:
        assert embedder.artifact.manifest.selftest


def test_selftest_of_an_artifact_with_other_embeddings(artifact_copy, graph):
    with edited(artifact_copy / MANIFEST) as manifest:
        first, second, *_ = manifest["selftest"]
        first["embedding"] = second["embedding"]
    message = r"self-test of .* failed\. The cosine .* of 'query: .*' and .* is 0\.\d{6}: expected 0\.999"
    with pytest.raises(FidelityError, match=message):
        Embedder.open(artifact_copy, threads=1, graph=graph, selftest=True)
    Embedder.open(artifact_copy, threads=1, graph=graph).close()


@pytest.fixture
def averaging(artifact_path):
    with Embedder.open(artifact_path, threads=1, overflow="average") as opened:
        yield opened


@pytest.fixture
def long(embedder):
    """Return a text above the token limit and, with the prompt "passage", the ids of its parts."""
    text = "서울은 대한민국의 수도이다. " * 200
    first, closing = embedder.tokenize(["a"]).ids[0][[0, -1]]
    body = [piece.id for piece in embedder.pieces(text, "passage") if not piece.special]
    parts = [np.array([first, *body[start : start + 510], closing]) for start in range(0, len(body), 510)]
    assert len(parts) > 2
    assert len(parts[-1]) < 512
    return text, [part.astype(np.int32) for part in parts]


def mean_of(embedder, parts):
    rows = np.vstack([embedder.embed_tokens(Tokens.of([part])) for part in parts])
    mean = np.average(rows, axis=0, weights=[len(part) for part in parts])
    return mean / np.linalg.norm(mean)


def test_the_average_of_a_long_text(embedder, averaging, long):
    text, parts = long
    expected = mean_of(embedder, parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = averaging.encode_with_info([text, "짧다", text], "passage")
    np.testing.assert_allclose(found.embeddings[0], expected, atol=tolerances.UNIT_LENGTH_ATOL)
    np.testing.assert_array_equal(found.embeddings[0], found.embeddings[2])
    np.testing.assert_array_equal(found.embeddings[1], embedder.encode(["짧다"], "passage")[0])
    assert found.truncated.tolist() == [False] * 3
    assert found.tokens[0] == sum(len(part) - 2 for part in parts) + 2
    with pytest.warns(TruncationWarning):
        truncated = embedder.encode([text], "passage")
    assert np.abs(found.embeddings[0] - truncated[0]).max() > 100 * tolerances.UNIT_LENGTH_ATOL


@pytest.mark.parametrize("text", ["", "짧다", "가 " * 600])
def test_ids_of_the_caller(embedder, averaging, text):
    """They are truncated or divided like the text."""
    ids = [piece.id for piece in embedder.pieces(text)]
    for one in (embedder, averaging):
        found, expected = one.tokens_of([ids]), one.tokenize([text])
        assert found.full_lengths.tolist() == expected.full_lengths.tolist() == [len(ids)]
        assert [part.tolist() for part in found.parts] == [part.tolist() for part in expected.parts]
        np.testing.assert_array_equal(one.embed_tokens(found), one.embed_tokens(expected))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (
            [],
            r"row 1 is not from this model's tokenizer, whose token ids begin with \[0\] and end with \[2\]",
        ),
        ([0], "row 1 is not from"),
        ([2, 0], "row 1 is not from"),
        ([0, 5, 2, 5], "row 1 is not from"),
        ([0, 10**7, 2], "row 1 has a token id outside 0 to "),
        ([0, -1, 2], "row 1 has a token id outside 0 to "),
    ],
)
def test_ids_of_another_tokenizer(embedder, ids, words):
    with pytest.raises(InputError, match=words):
        embedder.tokens_of([[0, 2], ids])


def test_averages_in_every_interface(averaging, long):
    text, _ = long
    texts = [text, "짧다", text + "끝"]
    expected = averaging.encode(texts, "passage")
    tokens = averaging.tokenize(texts, "passage")
    for found in (
        averaging.embed_tokens(tokens),
        np.vstack([averaging.embed_tokens(tokens[:1]), averaging.embed_tokens(tokens[1:])]),
        averaging.encode(iter(texts), "passage"),
        asyncio.run(AsyncEmbedder(averaging).encode(texts, "passage")),
    ):
        np.testing.assert_allclose(found, expected, atol=tolerances.UNIT_LENGTH_ATOL)
    progress = []
    averaging.encode(texts, "passage", on_progress=lambda done, total: progress.append((done, total)))
    assert progress[-1] == (tokens.total, tokens.total)
