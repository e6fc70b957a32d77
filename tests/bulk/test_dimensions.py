"""Files with shortened embeddings have the right values and schema, and one dimension per folder."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from bulk_output import jsonl, output_of

from koe5_onnx import Embedder, InputError, cli

TEXTS = ["서울", "고래는 포유류이다.", "", "The quick fox", "가 " * 50]


@pytest.fixture
def corpus(put):
    return put("in.jsonl", jsonl(*({"text": text} for text in TEXTS)))


def vectors_of(folder, dim):
    return output_of(folder).column("embedding").combine_chunks().flatten().to_numpy().reshape(-1, dim)


def metadata_of(folder):
    (first, *_) = sorted(folder.glob("part-*.parquet"))
    return json.loads(pq.read_schema(first).metadata[b"koe5_onnx"])


@pytest.mark.parametrize("dim", [8, 16])
def test_the_files_hold_the_bits_of_an_embedder(embed, corpus, allowed, tmp_path, dim):
    embed(corpus.name, artifact=allowed, dim=dim, shard_rows=2)
    with Embedder.open(allowed, threads=1) as embedder:
        np.testing.assert_array_equal(
            vectors_of(tmp_path / "out", dim), embedder.encode_passages(TEXTS, dim=dim)
        )
    assert metadata_of(tmp_path / "out")["dim"] == dim


def test_quantized_after_they_are_cut(embed, corpus, allowed, tmp_path):
    embed(corpus.name, artifact=allowed, dim=16, output_dtype="int8")
    embed(corpus.name, "full", artifact=allowed, output_dtype="int8")
    assert np.abs(vectors_of(tmp_path / "out", 16)).max(axis=1).tolist() == [127] * len(TEXTS)
    assert (np.abs(vectors_of(tmp_path / "full", 64)[:, :16]).max(axis=1) < 127).any()
    embed(corpus.name, "bits", artifact=allowed, dim=16, output_dtype="binary")
    assert vectors_of(tmp_path / "bits", 2).dtype == np.uint8


def test_another_width_is_another_job(embed, corpus, allowed, tmp_path):
    embed(corpus.name, artifact=allowed, dim=16)
    before = output_of(tmp_path / "out")
    for dim, now in ((8, 8), (None, 64)):
        with pytest.raises(
            InputError, match=f"belongs to a different job: dim was 16 and is now {now}. .*--restart"
        ):
            embed(corpus.name, artifact=allowed, dim=dim)
    assert output_of(tmp_path / "out").equals(before)
    embed(corpus.name, "full", artifact=allowed)
    assert embed(corpus.name, "full", artifact=allowed, dim=64).shards_before == 1, (
        "the full size is the default"
    )


def test_others_are_refused_before_the_folder_is_used(embed, corpus, allowed, tmp_path):
    with pytest.raises(InputError, match="dim is 9: expected one of 8, 16, 64"):
        embed(corpus.name, artifact=allowed, dim=9)
    with pytest.raises(InputError, match="dim is 16: expected 64"):
        embed(corpus.name, dim=16)
    assert not list((tmp_path / "out").glob("*.json"))


def test_the_command(corpus, allowed, tmp_path):
    usual = ["--artifact", allowed, "--prompt-name", "passage", "--threads", 1]
    assert cli.main(["bulk", *map(str, [corpus, tmp_path / "out", *usual, "--dim", 8])]) == 0
    assert vectors_of(tmp_path / "out", 8).shape == (len(TEXTS), 8)
