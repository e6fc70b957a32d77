"""Requests from TEI's documentation, errors in TEI's format, and /info."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import SERVED

import koe5_onnx


@pytest.mark.parametrize(
    "inputs", ["What is Deep Learning?", ["What is Deep Learning?"], ["Today is a nice day", "I like you"]]
)
def test_embed(client, offline, inputs):
    answer = client.post("/embed", json={"inputs": inputs})
    texts = [inputs] if isinstance(inputs, str) else inputs
    np.testing.assert_allclose(answer.json(), offline.encode(texts), atol=SERVED, rtol=0)


@pytest.fixture
def hub_online(monkeypatch):
    """Let huggingface_hub connect to the server on this machine."""
    from huggingface_hub import utils

    # Before huggingface_hub 1.0, a session created offline stays offline.
    renew_sessions = getattr(utils, "reset_sessions", lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        renew_sessions()
        yield
    renew_sessions()


@pytest.mark.usefixtures("hub_online")
@pytest.mark.parametrize("normalize", [True, False])
def test_the_hubs_client_knows_the_address_only(client, offline, normalize):
    from huggingface_hub import InferenceClient

    hub = InferenceClient(model=str(client.base_url))
    found = hub.feature_extraction("서울", prompt_name="query", normalize=normalize, truncate=True)
    np.testing.assert_allclose(found, offline.encode_queries(["서울"]), atol=SERVED, rtol=0)


@pytest.mark.usefixtures("hub_online")
def test_haystack(client, offline):
    """Haystack sends `normalize: false` by default, and adds the prompt itself."""
    embedders = pytest.importorskip(
        "haystack_integrations.components.embedders.huggingface_api", reason="Run make integrations"
    )
    from haystack import Document

    options = {"api_type": "text_embeddings_inference", "api_params": {"url": str(client.base_url)}}
    query = embedders.HuggingFaceAPITextEmbedder(**options, prefix="query: ").run("서울")
    np.testing.assert_allclose([query["embedding"]], offline.encode_queries(["서울"]), atol=SERVED, rtol=0)
    several = embedders.HuggingFaceAPIDocumentEmbedder(**options, prefix="passage: ", progress_bar=False)
    found = several.run([Document(content=text) for text in ("서울", "가 " * 600)])["documents"]
    expected = offline.encode_passages(["서울", "가 " * 600])
    np.testing.assert_allclose([one.embedding for one in found], expected, atol=SERVED, rtol=0)


def test_chromas_client(client, offline):
    functions = pytest.importorskip("chromadb.utils.embedding_functions", reason="Run make integrations")
    embed = functions.HuggingFaceEmbeddingServer(url=f"{client.base_url}/embed")
    found = embed(["passage: 서울", "passage: 가"])
    embed._session.close()  # it has no public method for this
    np.testing.assert_allclose(found, offline.encode_passages(["서울", "가"]), atol=SERVED, rtol=0)


@pytest.mark.parametrize("route", ["rerank", "predict", "embed_all", "embed_sparse", "decode"])
def test_unsupported_features_are_reported(client, route):
    answer = client.post(f"/{route}", json={"inputs": "a"})
    assert answer.status_code == 404
    assert f"there is no POST /{route}" in answer.json()["error"]


def test_embed_with_all_its_parameters(client, offline):
    answer = client.post(
        "/embed",
        json={
            "inputs": ["가 " * 600],
            "normalize": True,
            "prompt_name": "query",
            "truncate": True,
            "truncation_direction": "Right",
        },
    )
    np.testing.assert_allclose(answer.json(), offline.encode_queries(["가 " * 600]), atol=SERVED, rtol=0)


def test_similarity(client, offline):
    sentences = ["What is Machine Learning?", "한국의 수도"]
    body = {"inputs": {"source_sentence": "What is Deep Learning?", "sentences": sentences}}
    answer = client.post("/similarity", json={**body, "parameters": {"prompt_name": "query"}})
    one, *others = offline.encode_queries(["What is Deep Learning?", *sentences])
    np.testing.assert_allclose(answer.json(), np.asarray(others) @ one, atol=SERVED, rtol=0)


def test_tokenize(client, offline):
    answer = client.post("/tokenize", json={"inputs": ["서울의 밤", ""], "prompt_name": "query"})
    for tokens, text in zip(answer.json(), ["서울의 밤", ""], strict=True):
        assert [token["id"] for token in tokens] == offline.tokenize([text], "query").ids[0].tolist()
        assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
        body = [token for token in tokens if not token["special"]]
        assert all(token["text"] == f"query: {text}"[token["start"] : token["stop"]] for token in body)
    bare = client.post("/tokenize", json={"inputs": "서울", "add_special_tokens": False}).json()[0]
    assert [token["id"] for token in bare] == offline.tokenize(["서울"]).ids[0][1:-1].tolist()


def test_tokenize_never_cuts(client, offline):
    text = "가 나 " * 800
    (tokens,) = client.post("/tokenize", json={"inputs": text}).json()
    assert len(tokens) == offline.count_tokens([text])[0] > 1024
    assert sum(token["special"] for token in tokens) == 2


def test_info(client, offline):
    info = client.get("/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["dim"], info["auto_truncate"]) == (512, 64, True)
    assert info["prompts"] == dict(offline.contract.prompts)
    assert info["version"] == koe5_onnx.__version__
    assert info["provider"] == "CPUExecutionProvider"
    assert 0.99 < info["cosine_to_pytorch_min"] <= 1


def test_health(client):
    assert client.get("/health").status_code == 200


WRONG = {
    "nothing": ({}, 422, "Validation", "inputs is missing"),
    "empty": ({"inputs": []}, 400, "Empty", "is empty"),
    "a number": ({"inputs": 5}, 422, "Validation", "expected a text"),
    "many": ({"inputs": ["a"] * 2049}, 413, "Validation", "2,049 texts"),
    "a long prompt": ({"inputs": "a", "prompt": "a" * 4097}, 422, "Validation", "prompt is invalid"),
    "shortened": ({"inputs": "a", "dimensions": 8}, 422, "Validation", "dimensions is 8"),
    "left": ({"inputs": "a", "truncation_direction": "Left"}, 422, "Validation", "expected Right"),
    "prompt": ({"inputs": "a", "prompt_name": "x"}, 422, "Validation", "prompt_name is 'x'"),
    "long": ({"inputs": "가 " * 600, "truncate": False}, 413, "Validation", "expected at most 512"),
}


@pytest.mark.parametrize(("body", "status", "kind", "words"), WRONG.values(), ids=WRONG)
def test_wrong_requests_get_teis_error(client, body, status, kind, words):
    answer = client.post("/embed", json=body)
    error = answer.json()
    assert (answer.status_code, error["error_type"]) == (status, kind)
    assert words in error["error"]


@pytest.mark.parametrize(
    ("route", "inputs", "words"),
    [
        ("/embed", 5, "inputs is invalid: expected a text, a list of texts, the token IDs of a text, or"),
        ("/tokenize", [0, 5, 2], "inputs[0] is invalid: expected a text or a list of texts"),
        ("/similarity", "a", "inputs is invalid: Input should be"),
        ("/similarity", {"source_sentence": "a"}, "inputs.sentences is missing"),
        (
            "/similarity",
            {"source_sentence": "a", "sentences": [5]},
            "inputs.sentences.0 is invalid: Input sh",
        ),
        ("/similarity", {"source_sentence": "a", "sentences": []}, "sentences is empty"),
    ],
)
def test_errors_describe_the_inputs_of_their_route(client, route, inputs, words):
    answer = client.post(route, json={"inputs": inputs})
    assert answer.status_code == (400 if "empty" in words else 422)
    assert answer.json()["error"].startswith(words)
