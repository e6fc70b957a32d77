"""The official OpenAI client and others work unmodified, and invalid requests get OpenAI's errors."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import unicodedata

import numpy as np
import pytest
from edited_json import set_contract
from tolerances import SERVED

from koe5_onnx import EngineOptions

TEXTS = ["대한민국의 수도는 어디인가요?", "서울", "The quick brown fox", "", "가 " * 600]
MODEL = "tiny-seeded"


def post(client, **body):
    return client.post("/v1/embeddings", json=body)


def embeddings_of(answer):
    assert answer.status_code == 200, answer.text
    return np.asarray([item["embedding"] for item in answer.json()["data"]], np.float32)


@pytest.fixture(scope="module")
def official(client):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="unused", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("encoding_format", ["float", "base64", None])
def test_the_official_client_gets_offline_embeddings(official, offline, encoding_format):
    options = {} if encoding_format is None else {"encoding_format": encoding_format}
    found = official.embeddings.create(model=f"{MODEL}:query", input=TEXTS, **options)
    rows = [item.embedding for item in found.data]
    if encoding_format == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    np.testing.assert_allclose(np.asarray(rows), offline.encode_queries(TEXTS), atol=SERVED, rtol=0)
    assert [item.index for item in found.data] == list(range(len(TEXTS)))
    counts = offline.count_tokens(TEXTS, "query")
    assert found.usage.prompt_tokens == found.usage.total_tokens == np.minimum(counts, 512).sum()


def test_the_official_client_lists_the_model(official):
    names = [model.id for model in official.models.list()]
    assert {MODEL, f"{MODEL}:query", f"{MODEL}:passage"} <= set(names)
    assert official.models.retrieve(f"{MODEL}:query").id == f"{MODEL}:query"


def test_the_official_client_raises_its_own_errors(official):
    import openai

    with pytest.raises(openai.NotFoundError, match="expected one of"):
        official.embeddings.create(model="text-embedding-3-small", input="가")
    with pytest.raises(openai.BadRequestError, match="dimensions is 8: expected 64") as caught:
        official.embeddings.create(model=MODEL, input="가", dimensions=8)
    assert caught.value.param == "dimensions"


def test_langchain(client, offline):
    langchain_openai = pytest.importorskip("langchain_openai")
    langchain = langchain_openai.OpenAIEmbeddings(
        base_url=f"{client.base_url}/v1",
        api_key="unused",
        model=f"{MODEL}:passage",
        check_embedding_ctx_length=False,
    )
    expected = offline.encode_passages(TEXTS)
    np.testing.assert_allclose(langchain.embed_documents(TEXTS), expected, atol=SERVED, rtol=0)


def test_azures_client(serving, offline):
    """Azure's client puts the model into the path, omits "/v1", and sends its key in the header api-key."""
    openai = pytest.importorskip("openai")
    keys = (hashlib.sha256(b"key").hexdigest(),)
    with (
        serving(root_path=f"/openai/deployments/{MODEL}", api_keys_sha256=keys) as client,
        openai.AzureOpenAI(
            azure_endpoint=str(client.base_url), api_key="key", api_version="2024-10-21", max_retries=0
        ) as azure,
    ):
        found = azure.embeddings.create(model=MODEL, input=TEXTS, extra_body={"input_type": "query"})
    rows = [item.embedding for item in found.data]
    np.testing.assert_allclose(rows, offline.encode_queries(TEXTS), atol=SERVED, rtol=0)


def test_clients_for_node(client, offline):
    if (folder := os.environ.get("KOE5_NODE_CLIENTS")) is None:
        pytest.skip("the packages of npm are not installed. Run make integrations")
    command = ["node", f"{folder}/clients.mjs", f"{client.base_url}/v1", f"{MODEL}:passage", *TEXTS]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
    assert found["refusal"]["status"] == 400
    assert "surrogate" in found["refusal"]["message"]
    assert len(found["embeddings"]) == 4
    expected = offline.encode_passages(TEXTS)
    for name, rows in found["embeddings"].items():
        np.testing.assert_allclose(rows, expected, atol=SERVED, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, None),
        ({"input_type": "query"}, "query"),
        ({"input_type": "search_query"}, "query"),
        ({"input_type": "document"}, "passage"),
        ({"input_type": "none", "model": f"{MODEL}:query"}, None),
        ({"prompt_name": "passage"}, "passage"),
        ({"prompt_name": "passage", "input_type": "passage"}, "passage"),
        ({"model": f"{MODEL}:passage"}, "passage"),
        ({"model": f"{MODEL}:passage", "input_type": "query"}, "query"),
        ({"model": "text-embeddings-inference"}, None),
    ],
)
def test_the_prompt(client, offline, fields, prompt):
    found = embeddings_of(post(client, input=["서울"], **fields))
    np.testing.assert_allclose(found, offline.encode(["서울"], prompt), atol=SERVED, rtol=0)


def test_the_default_prompt_is_for_requests_that_name_none(serving, offline):
    with serving(default_prompt_name="passage", model_names=("my-model",)) as client:
        for fields, prompt in (({}, "passage"), ({"model": "my-model:query"}, "query")):
            found = embeddings_of(post(client, input=["서울"], **fields))
            np.testing.assert_allclose(found, offline.encode(["서울"], prompt), atol=SERVED, rtol=0)


def test_the_contracts_default_prompt(serving, offline, tmp_path):
    artifact = shutil.copytree(offline.artifact.path, tmp_path / "artifact")
    set_contract(artifact, default_prompt_name="passage")
    with serving(artifact) as client:
        asked = {None: {}, "": {"prompt_name": "none"}, "query": {"input_type": "query"}}
        for prompt, fields in asked.items():
            found = embeddings_of(post(client, input=["서울"], **fields))
            name = {None: "passage", "": None}.get(prompt, prompt)
            expected = offline.encode(["서울"], name)
            np.testing.assert_allclose(found, expected, atol=SERVED, rtol=0)
            tei = client.post("/embed", json={"inputs": ["서울"], **fields}).json()
            if "input_type" not in fields:
                np.testing.assert_allclose(tei, expected, atol=SERVED, rtol=0)
        assert client.get("/info").json()["default_prompt_name"] == "passage"
        ids = offline.tokenize(["서울"]).ids[0].tolist()
        found = embeddings_of(post(client, input=ids))
        np.testing.assert_allclose(found, offline.encode(["서울"]), atol=SERVED, rtol=0)


def test_decomposed_hangul_is_composed_and_counted(serving, offline):
    decomposed = [unicodedata.normalize("NFD", text) for text in TEXTS]
    changed = sum(a != b for a, b in zip(decomposed, TEXTS, strict=True))
    with serving() as client:
        pairs = [(post(client, input=texts, input_type="query"), texts) for texts in (TEXTS, decomposed)]
        composed, from_decomposed = (embeddings_of(answer) for answer, _ in pairs)
        np.testing.assert_array_equal(from_decomposed, composed)
        tei = [client.post("/embed", json={"inputs": texts, "truncate": True}).json() for _, texts in pairs]
        np.testing.assert_array_equal(tei[0], tei[1])
        assert f"koe5_composed_inputs_total {2 * changed}.0" in client.get("/metrics").text
    np.testing.assert_allclose(composed, offline.encode_queries(TEXTS), atol=SERVED, rtol=0)


@pytest.mark.parametrize("many", [False, True])
def test_token_ids(client, offline, many):
    ids = [row.tolist() for row in offline.tokenize(["서울 seoul", "가"]).ids]
    found = embeddings_of(post(client, input=ids if many else ids[0]))
    np.testing.assert_allclose(found, offline.encode(["서울 seoul", "가"])[: len(found)], atol=SERVED, rtol=0)
    assert len(found) == (2 if many else 1)


def test_each_embedding_says_its_tokens_and_whether_it_was_cut(client, offline):
    items = post(client, input=TEXTS, input_type="query").json()["data"]
    counts = offline.count_tokens(TEXTS, "query").tolist()
    assert [item["tokens"] for item in items] == counts
    assert [item["truncated"] for item in items] == [count > 512 for count in counts]
    assert any(item["truncated"] for item in items)


@pytest.mark.parametrize("field", ["output_dtype", "embedding_type", "embedding_types", "encoding_format"])
@pytest.mark.parametrize("dtype", ["int8", "ubinary", "binary"])
def test_small_vectors_have_the_bytes_of_bulk(client, offline, dtype, field):
    pytest.importorskip("pyarrow")
    from koe5_onnx.bulk.vectors import to_arrow

    arrow = to_arrow(offline.encode_queries(TEXTS), "int8" if dtype == "int8" else "binary")
    values = np.asarray(arrow[0].values).reshape(len(TEXTS), -1)
    value = [dtype] if field == "embedding_types" else dtype
    answer = post(client, input=TEXTS, input_type="query", **{field: value})
    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers
    items = answer.json()["data"]
    found = np.asarray([item["embedding"] for item in items])
    np.testing.assert_array_equal(found + 128 if dtype == "binary" else found, values)
    if dtype == "int8":
        scale = np.asarray([item["scale"] for item in items], np.float32)
        np.testing.assert_array_equal(scale, np.asarray(arrow[1]))
    else:
        assert "scale" not in items[0]
    if field != "encoding_format":
        packed = post(client, input=TEXTS, input_type="query", encoding_format="base64", **{field: value})
        rows = [base64.b64decode(item["embedding"]) for item in packed.json()["data"]]
        assert rows == [row.tobytes() for row in found.astype(np.uint8 if dtype == "ubinary" else np.int8)]


def test_the_official_client_gets_small_vectors(official, offline):
    found = official.embeddings.create(
        model=f"{MODEL}:query", input=TEXTS, encoding_format="float", extra_body={"output_dtype": "ubinary"}
    )
    bits = np.packbits(offline.encode_queries(TEXTS) > 0, axis=1)
    np.testing.assert_array_equal([item.embedding for item in found.data], bits)


def test_jinas_name_for_base64(client):
    pair = [post(client, input="서울", **fields) for fields in ({"embedding_type": "base64"}, {})]
    (packed, plain) = (answer.json()["data"][0]["embedding"] for answer in pair)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.float32(plain))


def test_as_many_tokens_as_openai_allows(client, offline):
    """LangChain sends up to 1,000 texts at once."""
    texts = [f"{number} " + "가 " * 600 for number in range(580)]
    answer = post(client, input=texts, encoding_format="base64")
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["total_tokens"] == 580 * 512 > 290_000
    last = np.frombuffer(base64.b64decode(answer.json()["data"][-1]["embedding"]), "<f4")
    np.testing.assert_allclose(last, offline.encode(texts[-1:])[0], atol=SERVED, rtol=0)
    answer = post(client, input=texts + texts[:20])
    assert answer.status_code == 400
    assert "the request has 307,200 tokens: expected at most 300,000" in answer.text


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings"])
def test_both_paths(client, path):
    assert client.post(path, json={"input": "가"}).status_code == 200


LONG = "가 " * 600
WRONG = {
    "no input": ({}, "input", "input is missing"),
    "no texts": ({"input": []}, "input", "is empty"),
    "a number": ({"input": 5}, "input", "expected a text"),
    "a null": ({"input": None}, "input", "input is missing"),
    "texts and a null": ({"input": ["a", None]}, "input", r"input\[1\] is invalid: expected a text"),
    "ids and a text": ({"input": [[0, 2], [0, "a", 2]]}, "input", r"input\[1\] is invalid"),
    "a float as id": ({"input": [1.5]}, "input", "expected a text"),
    "a bool as id": ({"input": [True]}, "input", "expected a text"),
    "nested too deep": ({"input": [[["a"]]]}, "input", "expected a text"),
    "ids of another tokenizer": ({"input": [1923, 22, 99]}, "input", "check_embedding_ctx_length=False"),
    "an id outside": ({"input": [0, 2_000_000, 2]}, "input", "outside 0 to"),
    "an empty row of ids": ({"input": [[]]}, "input", "begin with"),
    "ids with a prompt": ({"input": [0, 5, 2], "input_type": "query"}, "input", "no prompt"),
    "too many": ({"input": ["a"] * 2049}, "input", "2,049 texts: expected at most 2,048"),
    "an unknown prompt name": ({"input": "a", "input_type": "title"}, "input_type", "none, passage, query"),
    "two prompts": ({"input": "a", "input_type": "query", "prompt_name": "passage"}, "prompt_name", "differ"),
    "a format": ({"input": "a", "encoding_format": "int4"}, "encoding_format", "encoding_format is invalid"),
    "a dtype": ({"input": "a", "output_dtype": "uint8"}, "output_dtype", "output_dtype is invalid"),
    "two dtypes": ({"input": "a", "embedding_types": ["int8", "float"]}, "embedding_types", "is invalid"),
    "a dtype and another": (
        {"input": "a", "encoding_format": "int8", "output_dtype": "binary"},
        "output_dtype",
        "expected one type",
    ),
    "too long": ({"input": ["a", LONG], "truncate": False}, "input", r"input 1 has [\d,]{3,5} tokens"),
    "too long, as NVIDIA says it": ({"input": LONG, "truncate": "NONE"}, "input", "expected at most 512"),
    "cut at the front": ({"input": LONG, "truncate": "START"}, "truncate", "Input should be 'NONE' or 'END'"),
    "too long, as Voyage says it": ({"input": LONG, "truncation": False}, "input", "expected at most 512"),
    "a size, as Voyage says it": ({"input": "a", "output_dimension": 8}, "dimensions", "dimensions is 8"),
    "a model as number": ({"input": "a", "model": 7}, "model", "model is invalid"),
}


@pytest.mark.parametrize(("body", "param", "words"), WRONG.values(), ids=WRONG)
def test_wrong_requests_get_openais_error(client, body, param, words):
    answer = client.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    import re

    assert re.search(words, error["message"]), error["message"]


def test_truncate_is_the_servers_policy_unless_the_request_says(serving):
    with serving(engine=EngineOptions(overflow="error")) as client:
        assert post(client, input=LONG).status_code == 400
        assert post(client, input=LONG, truncate=True).json()["data"][0]["truncated"] is True
        assert post(client, input=LONG, truncate="END").status_code == 200
