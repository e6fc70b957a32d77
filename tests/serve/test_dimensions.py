"""Shortened embeddings over HTTP have the same bits as in Python, and other dimensions are rejected."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from shortened import allow
from tolerances import SERVED, UNIT_LENGTH_ATOL

from koe5_onnx import Embedder

TEXT = "대한민국의 수도는 어디인가요?"
MODEL = "tiny-seeded"


@pytest.fixture(scope="module")
def folder(artifact, tmp_path_factory):
    return allow(artifact, tmp_path_factory.mktemp("allowed") / "artifact")


@pytest.fixture(scope="module")
def allowing(serving, folder):
    with serving(folder) as client:
        yield client


@pytest.fixture(scope="module")
def short(folder):
    with Embedder.open(folder, threads=1) as opened:
        yield opened


def openai_row(client, encoding_format, **body):
    answer = client.post(
        "/v1/embeddings",
        json={"input": TEXT, "input_type": "query", "encoding_format": encoding_format, **body},
    )
    assert answer.status_code == 200, answer.text
    row = answer.json()["data"][0]["embedding"]
    return np.frombuffer(base64.b64decode(row), "<f4") if encoding_format == "base64" else row


def tei_row(client, **body):
    answer = client.post("/embed", json={"inputs": TEXT, "prompt_name": "query", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


@pytest.mark.parametrize("dim", [None, 8, 16, 64])
def test_both_apis_give_the_bits_of_an_embedder(allowing, short, dim):
    body = {} if dim is None else {"dimensions": dim}
    (expected,) = short.encode_queries([TEXT], dim=dim)
    for row in (
        openai_row(allowing, "base64", **body),
        openai_row(allowing, "float", **body),
        tei_row(allowing, **body),
    ):
        np.testing.assert_array_equal(np.asarray(row, np.float32), expected)
    assert abs(np.linalg.norm(expected) - 1) < UNIT_LENGTH_ATOL


def test_the_official_client(allowing, short):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{allowing.base_url}/v1", api_key="unused", max_retries=0) as official:
        found = official.embeddings.create(model=f"{MODEL}:passage", input=[TEXT, "서울"], dimensions=16)
        rows = [item.embedding for item in found.data]
        expected = short.encode_passages([TEXT, "서울"], dim=16)
        np.testing.assert_allclose(rows, expected, atol=SERVED, rtol=0)
        with pytest.raises(openai.BadRequestError, match="dimensions is 12: expected one of 8, 16, 64") as no:
            official.embeddings.create(model=MODEL, input=TEXT, dimensions=12)
    assert no.value.param == "dimensions"


@pytest.mark.parametrize("dimensions", [-8, 0, 1, 12, 33])
def test_others_are_refused_by_both(allowing, dimensions):
    message = f"dimensions is {dimensions}: expected one of 8, 16, 64"
    answer = allowing.post("/v1/embeddings", json={"input": TEXT, "dimensions": dimensions})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)
    answer = allowing.post("/embed", json={"inputs": TEXT, "dimensions": dimensions})
    assert (answer.status_code, answer.json()) == (422, {"error": message, "error_type": "Validation"})


def test_what_is_allowed_is_listed(allowing, client):
    for server, expected in ((allowing, [8, 16, 64]), (client, [64])):
        assert server.get("/info").json()["dimensions"] == expected
        models = server.get("/v1/models").json()["data"]
        assert [model["dimensions"] for model in models] == [expected] * len(models)
        assert server.get(f"/v1/models/{MODEL}").json()["dimensions"] == expected


def test_the_log_says_the_width(serving, folder, caplog):
    caplog.set_level("INFO")
    with serving(folder) as client:
        tei_row(client, dimensions=8)
    # The server has stopped, so its log is complete.
    requests = [record.fields for record in caplog.records if record.getMessage() == "request"]
    assert [fields["dim"] for fields in requests if fields.get("route") != "/health"] == [8]
