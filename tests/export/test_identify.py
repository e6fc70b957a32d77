"""identify names the settings of sentence-transformers that made vectors, and the precision."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from koe5_export.reference import Reference
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.texts import VERIFICATION

from koe5_onnx import Embedder, EngineOptions, cli
from koe5_onnx.engine.session import Session
from koe5_onnx.identify import identify
from koe5_onnx.text.tokenizer import Tokenizer

TEXTS = [text for text in VERIFICATION[:50] if text.strip()] + ["서울은 대한민국의 수도이다. " * 30]


@pytest.fixture(scope="module")
def checkpoint_of(made_once):
    """Return a function that makes checkpoints like `seeded` with another pooling or other weights."""

    def of(pooling="mean", seed=0):
        size = Size(layers=2, hidden=64, heads=4, intermediate=128, vocabulary=1200, pooling=pooling)
        return made_once(f"{pooling}-{seed}/checkpoint", lambda out: write_seeded_checkpoint(out, size, seed))

    return of


@pytest.fixture(scope="module")
def encode():
    """Return a function that embeds TEXTS with sentence-transformers."""
    sentence_transformers = pytest.importorskip("sentence_transformers")

    def encode(checkpoint, limit=512, **options):
        model = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
        model.max_seq_length = limit
        return model.encode(TEXTS, show_progress_bar=False, **options)

    return encode


@pytest.fixture(scope="module", params=["artifact", "checkpoint"])
def find(request, exported, seeded):
    """Return a function that identifies vectors of TEXTS by the int8 artifact, or also by its checkpoint."""
    artifact, reference = exported["int8"], None
    if request.param == "checkpoint":
        reference = Reference(seeded, artifact.manifest.contract).token_embeddings
    with Embedder.open(artifact.path, threads=1) as embedder:
        yield lambda vectors: (identify(vectors, TEXTS, embedder, reference), reference is not None)


@pytest.mark.parametrize(
    ("pooling", "prompt", "limit"),
    [
        ("mean", "", 512),
        ("mean", "query: ", 512),
        ("mean", "passage: ", 128),
        ("mean", "passage: passage: ", 512),
        ("cls", "", 512),
        ("cls", "passage: ", 128),
    ],
)
def test_settings_of_sentence_transformers(find, encode, checkpoint_of, pooling, prompt, limit):
    found, has_reference = find(encode(checkpoint_of(pooling), limit, prompt=prompt))
    assert found.maker is not None
    assert (found.maker.pooling, found.maker.prompt) == (pooling, prompt)
    assert found.maker.max_tokens == (limit if limit == 128 else None)
    assert found.precision == (
        "fp32, same as the checkpoint" if has_reference else "another precision of the same checkpoint"
    )


@pytest.mark.parametrize("precision", ["int8", "int8-block", "fp32"])
def test_precision_of_an_artifact(find, exported, precision):
    with Embedder.open(exported[precision].path, threads=1) as other:
        found, has_reference = find(other.encode_passages(TEXTS))
    same = "fp32, same as the checkpoint" if has_reference else "another precision of the same checkpoint"
    expected = {
        "int8": "same as this artifact (int8)",
        "int8-block": "another precision of the same checkpoint",
        "fp32": same,
    }
    assert (found.maker.prompt_name, found.precision) == ("passage", expected[precision])


def test_another_checkpoint_is_unknown(find, encode, checkpoint_of):
    found, _ = find(encode(checkpoint_of(seed=1), prompt="passage: "))
    assert (found.maker, found.verdict) == (None, "embed the index again")


def test_another_pooling_of_the_artifact(find, exported):
    artifact = exported["int8"]
    tokenizer = Tokenizer(artifact.tokenizer, 512)
    with closing(Session(artifact, EngineOptions(graph="padded", threads=1))) as session:
        rows = [tokenizer.encode([f"query: {text}"]).ids[0].astype(np.int64)[None] for text in TEXTS]
        vectors = [session.token_embeddings(ids, np.ones_like(ids))[0, 0] for ids in rows]
    found, _ = find(np.array(vectors))
    assert (found.maker.prompt_name, found.maker.pooling) == ("query", "cls")
    assert found.precision == "same as this artifact (int8)"


@pytest.mark.slow
def test_minilm_is_unknown(exported, encode, minilm):
    """Vectors of trained all-MiniLM-L6-v2, also cut to the dimension of the artifact, have another maker."""
    vectors = encode(minilm)
    with Embedder.open(exported["int8"].path, threads=1) as embedder:
        assert identify(vectors, TEXTS, embedder).candidates == []
        assert identify(vectors[:, : embedder.dim], TEXTS, embedder).maker is None


def test_command(exported, seeded, checkpoint_of, encode, tmp_path, capsys):
    np.save(tmp_path / "index.npy", encode(seeded, prompt="query: "))
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(text.split()) for text in TEXTS), encoding="utf-8")
    arguments = [str(tmp_path / "index.npy"), "--texts", str(tmp_path / "texts.txt")]
    arguments += ["--artifact", str(exported["int8"].path), "--checkpoint", str(seeded), "--threads", "1"]
    assert cli.main(["identify", *arguments]) == 0
    out = capsys.readouterr().out
    assert "made by        prompt query ('query: '), pooling mean" in out
    assert "precision      fp32, same as the checkpoint" in out
    arguments[arguments.index(str(seeded))] = str(checkpoint_of(seed=1))
    assert cli.main(["identify", *arguments]) == 1
    assert "is not the checkpoint that the artifact was exported from" in capsys.readouterr().err
