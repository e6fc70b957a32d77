"""What the server reports in headers, the log line and metrics.

This includes fields without an effect (rejected with --strict), truncated and repeated texts, and doubled
prompts.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
from tolerances import SERVED

from koe5_onnx.serve.tei_api import EmbedRequest

ROUTES = {
    "/v1/embeddings": {"input": ["서울"]},
    "/embed": {"inputs": ["서울"]},
    "/similarity": {"inputs": {"source_sentence": "서울", "sentences": ["가"]}},
    "/tokenize": {"inputs": ["서울"]},
}
EMBEDDING = ["/v1/embeddings", "/embed", "/similarity"]


def embeddings_of(answer):
    assert answer.status_code == 200, answer.text
    return np.asarray(answer.json()["data"][0]["embedding"], np.float32)


@pytest.fixture
def log(caplog):
    """Return a function that returns the fields of the last request's log line."""
    caplog.set_level(logging.INFO, "koe5_onnx.serve")
    return lambda: [record.fields for record in caplog.records if record.message == "request"][-1]


@pytest.mark.parametrize("route", ROUTES)
def test_fields_without_an_effect_are_named(serving, log, route):
    fields = {"더": 1, "a, b": 2, "c\r\nd: e": {"f": [None]}, "nothing": None, "task": "text-matching"}
    with serving() as client:
        answer = client.post(route, json=ROUTES[route] | fields, headers={"user-agent": "reader/1.0"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ignored-fields"] == "task, ?, a??b, c??d:?e"
        assert "koe5_ignored_fields_total 4.0" in client.get("/metrics").text
        logged = log()  # the server wrote this line before it sent the metrics
        plain = client.post(route, json=ROUTES[route] | {"nothing": None})
    assert (logged["ignored_fields"], logged["user_agent"]) == ("task, ?, a??b, c??d:?e", "reader/1.0")
    assert "x-ignored-fields" not in plain.headers
    assert plain.json() == answer.json()
    assert not {"ignored_fields", "user_agent"} & set(log())


@pytest.mark.parametrize("route", ROUTES)
def test_a_field_that_is_null_is_one_that_is_not_sent(client, route):
    """LiteLLM and others send null for every option that is not set."""
    description = client.get("/openapi.json").json()
    body = description["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = description["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    answer = client.post(route, json=dict.fromkeys([*fields, "more"]) | ROUTES[route])
    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers
    assert answer.json() == client.post(route, json=ROUTES[route]).json()


@pytest.mark.parametrize("route", ["/", *ROUTES])
def test_fields_may_be_nested_in_parameters(client, route):
    """Clients of Hugging Face's inference API nest the fields."""
    body = ROUTES.get(route, ROUTES["/embed"])
    fields = {"prompt_name": "query", "truncate": True, "max_new_tokens": 5}
    if route == "/tokenize":
        fields = {"prompt_name": "query", "add_special_tokens": False, "max_new_tokens": 5}
    expected = client.post(route, json=body | fields)
    answer = client.post(route, json=body | {"parameters": fields, "prompt_name": None})
    assert answer.status_code == expected.status_code == 200, answer.text
    assert answer.json() == expected.json() != client.post(route, json=body).json()
    assert answer.headers["x-ignored-fields"] == "max_new_tokens"
    both = client.post(route, json=body | {"parameters": fields, "prompt_name": "passage"})
    assert both.json() == client.post(route, json=body | fields | {"prompt_name": "passage"}).json()
    for invalid in ({"prompt_name": "x"}, ["prompt_name"]):
        answer = client.post(route, json=body | {"parameters": invalid})
        assert answer.status_code == (400 if route.startswith("/v1") else 422)
    assert client.post(route, json=body | {"parameters": {}}).json() == client.post(route, json=body).json()


def test_a_null_does_not_hide_another_name_of_a_field(client):
    fields = {"output_dtype": None, "embedding_type": None, "embedding_types": ["ubinary"]}
    answer = client.post("/v1/embeddings", json={"input": "서울", **fields})
    assert len(answer.json()["data"][0]["embedding"]) == 64 // 8


@pytest.mark.parametrize("half", [r"\ud83d", r"a\ude00b", r"\\\ud83d"])
def test_a_text_that_was_cut_within_an_emoji(client, half):
    """JavaScript cuts texts between UTF-16 units, and JSON.stringify escapes half of a pair."""
    body = rf'{{"inputs": ["\ud83d\ude00", "{half}"]}}'
    answer = client.post("/embed", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "surrogate" in answer.text


def test_values_of_unknown_fields_are_not_kept():
    body = EmbedRequest.model_validate_json('{"inputs": "a", "more": [[], [], []], "nothing": null}')
    assert body.model_extra == {"more": None}


def test_a_response_names_few_fields_of_many(client):
    fields = {f"field-{number}" * 20: 1 for number in range(1000)}
    found = client.post("/embed", json={"inputs": "가", **fields}).headers["x-ignored-fields"].split(", ")
    assert len(found) == 16
    assert {len(name) for name in found} == {64}


@pytest.mark.parametrize("route", EMBEDDING)
@pytest.mark.parametrize("field", ["normalize", "normalized"])
def test_embeddings_have_unit_length_whatever_the_request_says(client, route, field):
    answers = [client.post(route, json=ROUTES[route] | {field: value}) for value in (True, False)]
    assert [answer.headers.get("x-ignored-fields") for answer in answers] == [None, "normalize"]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize("route", EMBEDDING)
def test_a_strict_server_rejects_what_it_would_ignore(serving, route):
    with serving(strict=True) as client:
        status = 400 if route.startswith("/v1") else 422
        for fields, words in (
            ({"normalize": False}, "normalize would have no effect, and the server runs with --strict"),
            (
                {"late_chunking": True},
                "late_chunking would have no effect, and the server runs with --strict",
            ),
            ({"task": "classification"}, "task would have no effect"),
        ):
            answer = client.post(route, json=ROUTES[route] | fields)
            assert answer.status_code == status
            assert words in answer.text
        used = {"normalize": True, "task": "retrieval.query", "truncate": True, "late_chunking": None}
        assert client.post(route, json=ROUTES[route] | used).status_code == 200


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": ["서울"] * 2049}, "too_many_inputs", "input"),
        ({"input": "서울", "input_type": "title"}, "invalid_request_error", "input_type"),
        ({"input": {"비밀": 1}}, "invalid_request_error", "input"),
        ({"input": "서울", "model": "gpt"}, "model_not_found", "model"),
    ],
)
def test_the_log_says_what_was_rejected_and_from_whom(serving, log, body, code, param):
    with serving() as client:
        answer = client.post("/v1/embeddings", json=body, headers={"user-agent": "reader/1.0"})
        assert answer.status_code in (400, 404)
    logged = log()
    assert (logged["rejected"], logged["param"], logged["user_agent"]) == (code, param, "reader/1.0")
    assert not any(words in str(logged) for words in ("서울", "비밀", "title", "gpt"))


def test_truncated_texts_are_counted_in_a_header(client):
    answer = client.post("/embed", json={"inputs": ["가 " * 600, "가", "나 " * 600]})
    assert answer.headers["x-truncated"] == "2"
    assert "x-truncated" not in client.post("/embed", json={"inputs": "가"}).headers


def test_texts_that_were_not_computed(serving, log):
    with serving(cache_entries=10) as client:
        answers = [client.post("/v1/embeddings", json={"input": ["서울", "가", "서울"]}) for _ in range(2)]
        metrics = client.get("/metrics").text
    assert answers[0].json() == answers[1].json()
    assert (log()["cached"], log()["repeated"]) == (2, 1)
    for line in (
        "koe5_cached_inputs_total 2.0",
        "koe5_repeated_inputs_total 2.0",
        "koe5_run_seconds_count 1.0",
    ):
        assert line in metrics


DOUBLED = ["query: 서울", "passage: 서울", "  query:서울", "query", "서울 query: ", "Query: 서울", ""]


@pytest.mark.parametrize(
    ("fields", "doubled"),
    [
        ({"prompt_name": "passage"}, 3),
        ({"prompt_name": "query"}, 3),
        ({"prompt": "Query: "}, 4),
        ({"prompt_name": "none"}, 0),
        ({}, 0),
    ],
)
def test_texts_that_have_a_prompt_already(serving, offline, log, fields, doubled):
    with serving() as client:
        answer = client.post("/embed", json={"inputs": DOUBLED, **fields})
        assert answer.headers.get("x-doubled-prompts", "0") == str(doubled)
        assert f"koe5_doubled_prompt_inputs_total {doubled}.0" in client.get("/metrics").text
    assert log()["doubled_prompts"] == doubled
    prompt = fields.get("prompt") or offline.contract.prompts.get(fields.get("prompt_name"), "")
    expected = offline.encode([prompt + text for text in DOUBLED])
    np.testing.assert_allclose(answer.json(), expected, atol=SERVED, rtol=0)


def test_the_servers_default_prompt_is_doubled_too(serving):
    with serving(default_prompt_name="passage") as client:
        answer = client.post("/v1/embeddings", json={"input": ["query: 서울", "서울"]})
        assert answer.headers["x-doubled-prompts"] == "1"
        answer = client.post("/v1/embeddings", json={"input": ["query: 서울"], "input_type": "none"})
        assert "x-doubled-prompts" not in answer.headers


@pytest.mark.parametrize(
    ("fields", "prompt", "counted_as"),
    [
        ({"prompt": "query: "}, "query: ", "query"),
        ({"prompt": "질문: "}, "질문: ", "literal"),
        ({"prompt": "", "model": "tiny-seeded:query"}, "", "none"),
        ({"prompt": "passage: ", "input_type": "passage"}, "passage: ", "passage"),
        ({"task": "retrieval.query"}, "query: ", "query"),
        ({"task": "retrieval.passage", "input_type": "document"}, "passage: ", "passage"),
        ({"task": "query", "model": "tiny-seeded:passage"}, "query: ", "query"),
        ({"task": "classification", "model": "tiny-seeded:passage"}, "passage: ", "passage"),
    ],
)
def test_other_names_for_the_prompt(serving, offline, fields, prompt, counted_as):
    with serving() as client:
        found = embeddings_of(client.post("/v1/embeddings", json={"input": ["서울"], **fields}))
        np.testing.assert_allclose(found, offline.encode(["서울"], prompt=prompt)[0], atol=SERVED, rtol=0)
        assert f'koe5_inputs_total{{prompt_name="{counted_as}"}} 1.0' in client.get("/metrics").text
        if "model" not in fields:
            found = client.post("/embed", json={"inputs": "서울", **fields}).json()
            np.testing.assert_allclose(found, offline.encode(["서울"], prompt=prompt), atol=SERVED, rtol=0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "query: ", "input_type": "passage"}, "input_type and prompt are different prompts"),
        ({"task": "retrieval.query", "prompt_name": "passage"}, "prompt_name and task are different prompts"),
        ({"prompt": "", "input_type": "passage"}, "input_type and prompt are different prompts"),
        ({"prompt": "query: ", "input": [0, 5, 2]}, "no prompt ('query: ') can be added to token IDs"),
    ],
)
def test_contradictions_about_the_prompt(client, fields, words):
    answer = client.post("/v1/embeddings", json={"input": ["서울"], **fields})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
