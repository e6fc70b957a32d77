"""Valid and invalid bodies and content types, which the server's own routing handles without FastAPI."""

from __future__ import annotations

import codecs
import hashlib
import json

import numpy as np
import pytest
from tolerances import SERVED

JSON = {"content-type": "application/json"}
TEXT = {"input": "서울", "inputs": "서울"}

BODIES = {
    "a text": (TEXT, 200),
    "texts": ({"input": ["서울", "가"], "inputs": ["서울", "가"]}, 200),
    "ids": ({"input": [0, 5, 2], "inputs": [0, 5, 2]}, 200),
    "many ids": ({"input": [[0, 5, 2], [0, 2]], "inputs": [[0, 5, 2], [0, 2]]}, 200),
    "a word for true": ({**TEXT, "truncate": "yes"}, 200),
    "one for true": ({**TEXT, "truncate": 1}, 200),
    "unknown fields": ({**TEXT, "more": {"a": [1, None, 1.5]}}, 200),
    "a prompt": ({**TEXT, "prompt_name": "query"}, 200),
    "other names": ({**TEXT, "embedding_types": ["int8"], "normalized": False, "task": "query"}, 200),
    "a literal prompt": ({**TEXT, "prompt": "x: "}, 200),
    "an unknown prompt name": ({**TEXT, "prompt_name": "title"}, 400),
    "null": ({"input": None, "inputs": None}, 400),
    "a number": ({"input": 5, "inputs": 5}, 400),
    "mixed": ({"input": ["a", 5], "inputs": ["a", 5]}, 400),
    "a bool": ({"input": [True], "inputs": [True]}, 400),
    "a field twice": (b'{"input": "a", "input": "b", "inputs": "a", "inputs": "b"}', 200),
    "a byte order mark": (codecs.BOM_UTF8 + json.dumps(TEXT).encode(), 200),
    "UTF-16": (json.dumps(TEXT).encode("utf-16"), 400),
    "NaN": (b'{"input": "a", "inputs": "a", "dimensions": NaN}', 400),
    "a lone surrogate": (b'{"input": "\\ud800", "inputs": "\\ud800"}', 400),
    "incomplete JSON": (b'{"input": "a", "inp', 400),
    "a large one": ({"input": ["가"] * 2000, "inputs": ["가"] * 2000, "x": "가" * 100_000}, 200),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
def test_bodies(client, monkeypatch, body, status):
    async def no_framework(*_given):
        raise AssertionError("the request reached FastAPI")

    monkeypatch.setattr("fastapi.FastAPI.__call__", no_framework)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    for path in ("/v1/embeddings", "/embeddings", "/embed", "/"):
        expected = status if status == 200 or "embeddings" in path else 422
        assert client.post(path, content=content, headers=JSON).status_code == expected


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/json ;a", 200),
        ("application/vnd.api+json", 200),
        ("application/x-www-form-urlencoded", 422),
        # Browsers send it to other origins without a preflight.
        ("text/plain", 422),
        ("text/json", 422),
    ],
)
def test_content_types(client, offline, kind, status):
    answer = client.post("/embed", content=json.dumps(TEXT).encode(), headers={"content-type": kind})
    assert answer.status_code == status
    if status == 200:
        np.testing.assert_allclose(answer.json(), offline.encode(["서울"]), atol=SERVED, rtol=0)
    else:
        assert "expected application/json" in answer.json()["error"]


def test_text_up_to_the_length_that_is_tokenized_at_once_and_beyond(client, offline):
    for length in (511, 512, 513, 16_384, 16_385):
        text = ("가나 " * length)[:length]
        found = client.post("/embed", json={"inputs": text}).json()
        np.testing.assert_allclose(found, offline.encode([text]), atol=SERVED, rtol=0)


def test_extra_slashes_do_not_avoid_the_key(serving):
    with serving(api_keys_sha256=(hashlib.sha256(b"key").hexdigest(),)) as client:
        for path in ("//info", "/info/", "//v1//models", "/docs-files/x/../../info"):
            assert client.get(f"{client.base_url}{path}").status_code == 401
        assert client.get(f"{client.base_url}//health/").status_code == 200
