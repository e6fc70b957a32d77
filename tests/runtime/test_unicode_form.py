"""Decomposed Hangul (NFD) and composed text have identical embeddings, in Python and in the CLI.

tests/serve and tests/bulk test the same over HTTP and in bulk.
"""

from __future__ import annotations

import asyncio
import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from edited_json import edited, set_contract
from tolerances import GOLDEN_MAX_ABS_DIFF

from koe5_onnx import ArtifactError, AsyncEmbedder, Embedder, Tokenizer, cli
from koe5_onnx.artifact import MANIFEST, Manifest

COMPOSED = ["대한민국의 수도는 어디인가요?", "안녕 hello", "café à la carte", "서울"]
DECOMPOSED = [unicodedata.normalize("NFD", text) for text in COMPOSED]


def test_the_tokenizer_alone_does_not_compose(artifact_path):
    rust = tokenizers.Tokenizer.from_file(str(artifact_path / "tokenizer.json"))
    assert [rust.encode(text).ids for text in DECOMPOSED] != [rust.encode(text).ids for text in COMPOSED]


def test_both_forms_have_one_embedding(embedder):
    expected = embedder.encode_with_info(COMPOSED, "query")
    found = embedder.encode_with_info([*DECOMPOSED, "ascii"], "query")
    np.testing.assert_array_equal(found.embeddings[:-1], expected.embeddings)
    np.testing.assert_array_equal(found.tokens[:-1], expected.tokens)
    assert found.composed.tolist() == [True] * 4 + [False]
    assert not expected.composed.any()
    assert embedder.pieces(DECOMPOSED[0], "query") == embedder.pieces(COMPOSED[0], "query")


def test_awaited_calls_compose_too(artifact_path, embedder):
    async def run():
        async with AsyncEmbedder(Embedder.open(artifact_path, threads=1)) as opened:
            return await opened.encode_with_info(DECOMPOSED, "passage")

    found = asyncio.run(run())
    np.testing.assert_array_equal(found.embeddings, embedder.encode(COMPOSED, "passage"))
    assert found.composed.all()


def test_the_command_composes_and_counts(artifact_path, tmp_path, capsys):
    for name, texts in {"nfc": COMPOSED, "nfd": DECOMPOSED}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8")
        options = [
            "--artifact",
            str(artifact_path),
            "--prompt-name",
            "query",
            "--output",
            str(tmp_path / f"{name}.npy"),
        ]
        assert cli.main(["embed", str(tmp_path / f"{name}.txt"), *options]) == 0
    assert ", 4 normalized to NFC: " in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "nfd.npy"), np.load(tmp_path / "nfc.npy"))


def test_a_contract_may_leave_texts_as_they_are(artifact_copy):
    set_contract(artifact_copy, unicode_form=None)
    with pytest.raises(ArtifactError, match="converts the text"):  # one of the stored texts is decomposed
        Embedder.open(artifact_copy)
    with edited(artifact_copy / MANIFEST) as manifest:
        manifest["tokenizer_probes"] = {}
    with Embedder.open(artifact_copy, threads=1) as embedder:
        found = embedder.encode_with_info([DECOMPOSED[0], COMPOSED[0]])
    assert not found.composed.any()
    assert np.abs(found.embeddings[0] - found.embeddings[1]).max() > GOLDEN_MAX_ABS_DIFF


def test_another_form_is_refused(artifact_copy):
    set_contract(artifact_copy, unicode_form="NFKC")
    with pytest.raises(ArtifactError, match="unicode_form is 'NFKC': expected 'NFC' or null"):
        Embedder.open(artifact_copy)


def test_a_part_of_tokens_is_theirs(artifact_path):
    tokens = Tokenizer(artifact_path / "tokenizer.json", 512).encode([COMPOSED[0], DECOMPOSED[1], "a"])
    part = tokens[1:]
    assert (len(part.ids), part.full_lengths.tolist()) == (2, tokens.full_lengths[1:].tolist())
    assert part.composed.tolist() == [True, False]


def test_ids_that_another_version_changed_are_refused(artifact_copy):
    """The changed manifest simulates another version of tokenizers, which returns different ids."""
    manifest = Manifest.from_json((artifact_copy / MANIFEST).read_text(encoding="utf-8"))
    assert len(manifest.tokenizer_probes) > 30
    assert unicodedata.normalize("NFD", "한글 각") in manifest.tokenizer_probes
    ids = list(manifest.tokenizer_probes["한글"])
    changed = replace(manifest, tokenizer_probes={**manifest.tokenizer_probes, "한글": [*ids, 5]})
    (artifact_copy / MANIFEST).write_text(changed.to_json(), encoding="utf-8")
    with pytest.raises(
        ArtifactError,
        match=rf"converts the text '한글' to the ids {json.dumps(ids)[:-1]}".replace("[", r"\["),
    ):
        Embedder.open(artifact_copy)
