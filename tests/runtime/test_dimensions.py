"""Shortened embeddings have only allowed dimensions, and the same bits from every call."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from shortened import DIMS, allow, cut
from tolerances import SIMILARITY_ATOL, UNIT_LENGTH_ATOL

from koe5_onnx import Artifact, ArtifactError, AsyncEmbedder, Embedder, InputError, cli
from koe5_onnx.engine.pipeline import WINDOW_TEXTS

TEXTS = ["대한민국의 수도는?", "서울", "", "The quick brown fox", "가 " * 100]


@pytest.fixture(scope="module")
def folder(artifact_path, tmp_path_factory):
    return allow(artifact_path, tmp_path_factory.mktemp("allowed") / "artifact")


@pytest.fixture
def short(folder):
    with Embedder.open(folder, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("dim", DIMS)
def test_the_first_components_at_unit_length(short, dim):
    found = short.encode(TEXTS, "query", dim=dim)
    assert (found.shape, found.dtype) == ((len(TEXTS), dim), np.float32)
    assert found.base is None, "the full embeddings are kept in memory"
    np.testing.assert_allclose(found, cut(short.encode(TEXTS, "query"), dim), atol=SIMILARITY_ATOL, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=UNIT_LENGTH_ATOL)
    assert np.abs(np.linalg.norm(short.encode(TEXTS, "query")[:, :dim], axis=1) - 1).min() > 0.05


@pytest.mark.parametrize("dim", [None, 64])
def test_the_full_width_is_untouched(short, dim):
    np.testing.assert_array_equal(short.encode(TEXTS, dim=dim), short.encode(TEXTS))


def test_every_call_gives_the_same_bits(short):
    queries, passages = short.encode_queries(TEXTS, dim=8), short.encode_passages(TEXTS, dim=8)

    async def awaited():
        async with AsyncEmbedder(short) as embedder:
            return (
                await embedder.encode_queries(TEXTS, dim=8),
                await embedder.encode_passages(TEXTS, dim=8),
                await embedder.encode(TEXTS, "query", dim=8),
                (await embedder.encode_with_info(TEXTS, "passage", dim=8)).embeddings,
            )

    calls = [
        short.encode(TEXTS, "query", dim=8),
        short.encode_with_info(TEXTS, "passage", dim=8).embeddings,
        *asyncio.run(awaited()),
    ]
    for found, expected in zip(calls, [queries, passages] * 3, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(queries, passages)


def test_large_awaited_calls_and_none(short):
    texts = ["서울", "고래"] * (WINDOW_TEXTS // 2 + 1)

    async def awaited():
        async with AsyncEmbedder(short) as embedder:
            return await embedder.encode(texts, dim=16), await embedder.encode([], dim=16)

    many, none = asyncio.run(awaited())
    assert (many.shape, none.shape) == ((len(texts), 16), (0, 16))
    np.testing.assert_array_equal(many[:2], many[-2:])
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=UNIT_LENGTH_ATOL)


def test_a_contract_without_unit_length_is_only_cut(artifact_path, tmp_path):
    folder = allow(artifact_path, tmp_path / "artifact", normalize=False)
    with Embedder.open(folder, threads=1) as embedder:
        found, full = embedder.encode(TEXTS, dim=8), embedder.encode(TEXTS)
        np.testing.assert_array_equal(found, full[:, :8])
        expected = cut(full, 8) @ cut(full, 8).T
        np.testing.assert_allclose(embedder.similarity(found, found), expected, atol=SIMILARITY_ATOL, rtol=0)


@pytest.mark.parametrize("dim", [0, -8, 1, 9, 24, 33, 1_000_000])
def test_other_widths_are_refused_before_anything_runs(short, dim, monkeypatch):
    monkeypatch.setattr(short, "_run", lambda *_arguments: pytest.fail("a batch ran"))
    message = f"dim is {dim}: expected one of 8, 16, 64"
    with pytest.raises(InputError, match=message):
        short.encode(TEXTS, dim=dim)

    async def awaited():
        async with AsyncEmbedder(short) as embedder:
            await embedder.encode(TEXTS, dim=dim)

    with pytest.raises(InputError, match=message):
        asyncio.run(awaited())


def test_a_model_that_was_not_trained_for_it(embedder):
    assert embedder.contract.dims == (64,)
    with pytest.raises(InputError, match="dim is 16: expected 64, the only dimension that this model was"):
        embedder.encode_queries(TEXTS, dim=16)
    assert embedder.encode_passages(TEXTS, dim=64).shape == (len(TEXTS), 64)


def test_similarity_of_shortened_rows(short):
    queries, passages = short.encode_queries(TEXTS, dim=8), short.encode_passages(TEXTS, dim=8)
    np.testing.assert_array_equal(short.similarity(queries, passages), queries @ passages.T)
    with pytest.raises(InputError, match=r"a has 8 columns and b has 64\. Encode both with the same dim"):
        short.similarity(queries, short.encode_passages(TEXTS))
    with pytest.raises(InputError, match=r"b has shape \(5, 7\): expected \(rows, 8 or 16 or 64\)"):
        short.similarity(queries, passages[:, :7])


@pytest.mark.parametrize("dims", [[], [16], [8, 16], [16, 8], [31, 1]])
def test_widths_in_either_order(artifact_path, tmp_path, dims):
    folder = allow(artifact_path, tmp_path / "artifact", matryoshka_dims=dims)
    manifest = Artifact.open(folder).manifest
    assert manifest.contract.dims == (*sorted(dims), 64)
    assert json.loads(manifest.to_json())["contract"]["matryoshka_dims"] == dims


@pytest.mark.parametrize("dims", [[64], [0], [-1], [16, 128], [8, 8], [8, 16, 12], ["8"], [8.0], 8, [True]])
def test_a_manifest_with_other_widths_is_refused(artifact_path, tmp_path, dims):
    folder = allow(artifact_path, tmp_path / "artifact", matryoshka_dims=dims)
    with pytest.raises(ArtifactError, match="matryoshka_dims"):
        Artifact.open(folder)


def embed(folder, source, target, dim):
    arguments = [
        "--artifact",
        folder,
        "--threads",
        1,
        "--prompt-name",
        "query",
        "--output",
        target,
        "--dim",
        dim,
    ]
    return cli.main(["embed", str(source), *map(str, arguments)])


def test_the_command_line_gives_the_same_bits(folder, artifact_path, short, tmp_path, capsys):
    source, target = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("서울\n고래\n", encoding="utf-8")
    assert embed(folder, source, target, 16) == 0
    np.testing.assert_array_equal(np.load(target), short.encode_queries(["서울", "고래"], dim=16))
    target.unlink()
    for artifact, message in (
        (folder, "dim is 9: expected one of 8, 16, 64"),
        (artifact_path, "the only dimension"),
    ):
        assert embed(artifact, source, target, 9) == 1
        assert message in capsys.readouterr().err
    assert not target.exists()


def test_info_shows_them(folder, artifact_path, capsys):
    for artifact, expected in ((folder, True), (artifact_path, False)):
        assert cli.main(["info", str(artifact)]) == 0
        assert ("to 8 or 16 dimensions on request" in capsys.readouterr().out) is expected
