"""The short way past FastAPI: the same answers and refusals as FastAPI's, for bodies of all kinds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tolerances import SERVED

SHORT_WAY = {"content-type": "application/json"}
FASTAPI = {"content-type": "application/any+json"}

BODIES = {
    "a text": {"input": "서울", "inputs": "서울"},
    "texts": {"input": ["서울", "가"], "inputs": ["서울", "가"]},
    "ids": {"input": [0, 5, 2], "inputs": [0, 5, 2]},
    "many ids": {"input": [[0, 5, 2], [0, 2]], "inputs": [[0, 5, 2], [0, 2]]},
    "a whole number": {"input": "a", "inputs": "a", "dimensions": 32.0},
    "a number in a text": {"input": "a", "inputs": "a", "dimensions": "32"},
    "a word for true": {"input": "a", "inputs": "a", "truncate": "yes"},
    "one for true": {"input": "a", "inputs": "a", "truncate": 1},
    "unknown fields": {"input": "a", "inputs": "a", "more": {"a": [1, None, 1.5]}},
    "a prompt": {"input": "a", "inputs": "a", "prompt_name": "query"},
    "a prompt that is none": {"input": "a", "inputs": "a", "prompt_name": "title"},
    "nothing": {"input": [], "inputs": []},
    "null": {"input": None, "inputs": None},
    "a number": {"input": 5, "inputs": 5},
    "mixed": {"input": ["a", 5], "inputs": ["a", 5]},
    "a bool": {"input": [True], "inputs": [True]},
    "too long": {"input": "가 " * 600, "inputs": "가 " * 600, "truncate": False},
    "bytes twice": b'{"input": "a", "input": "b", "inputs": "a", "inputs": "b"}',
    "UTF-16": json.dumps({"input": "가", "inputs": "가"}).encode("utf-16"),
    "a mark in front": b'\xef\xbb\xbf{"input": "a", "inputs": "a"}',
    "no number": b'{"input": "a", "inputs": "a", "dimensions": NaN}',
    "half a pair": b'{"input": "\\ud800", "inputs": "\\ud800"}',
    "half of it": b'{"input": "a", "inp',
}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/embed", "/"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_both_ways_agree(client, path, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    short, other = (client.post(path, content=content, headers=way) for way in (SHORT_WAY, FASTAPI))
    assert (short.status_code, short.headers["content-type"]) == (
        other.status_code,
        other.headers["content-type"],
    )
    assert short.json() == other.json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"inputs": "서울", "add_special_tokens": False}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}}),
    ],
)
def test_so_do_the_other_routes(client, path, body):
    content = json.dumps(body).encode()
    short, other = (client.post(path, content=content, headers=way) for way in (SHORT_WAY, FASTAPI))
    assert short.status_code == other.status_code == 200
    assert short.json() == other.json()


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json ;a"]
)
def test_what_is_well_formed_takes_the_short_way(serving, offline, monkeypatch, kind):
    async def no_framework(*_given):
        raise AssertionError("FastAPI was asked")

    with serving() as client:
        monkeypatch.setattr("fastapi.FastAPI.__call__", no_framework)
        content = json.dumps({"inputs": "서울"}).encode()
        answer = client.post("/embed", content=content, headers={"content-type": kind})
        assert client.post("/embed", json={"inputs": 5}).status_code == 424
        assert client.post("/embed", content=content, headers=FASTAPI).status_code == 424
        two = [("content-type", "text/plain"), ("content-type", "application/json")]
        assert client.post("/embed", content=content, headers=two).status_code == 424
        monkeypatch.undo()
    np.testing.assert_allclose(answer.json(), offline.encode(["서울"]), atol=SERVED, rtol=0)


def test_text_up_to_the_length_that_is_tokenized_at_once_and_beyond(client, offline):
    for length in (511, 512, 513, 16_384, 16_385):
        text = ("가나 " * length)[:length]
        found = client.post("/embed", json={"inputs": text}).json()
        np.testing.assert_allclose(found, offline.encode([text]), atol=SERVED, rtol=0)
