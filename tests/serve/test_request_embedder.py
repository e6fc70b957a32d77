"""What the server makes of the runner's refusals and failures."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from koe5_onnx.serve import Settings
from koe5_onnx.serve.inputs import Inputs
from koe5_onnx.serve.metrics import Metrics
from koe5_onnx.serve.refusals import OVERLOADED, STOPPING, Refusal
from koe5_onnx.serve.request_embedder import RequestEmbedder
from koe5_onnx.serve.tracing import Tracing

INPUTS = Inputs(["서울"] * 5, [], None, True, "input")


def requests_to(offline, **settings):
    return RequestEmbedder(offline, Settings(artifact="", **settings), Metrics(), Tracing())


def test_a_full_queue_says_when_to_come_again(offline):
    requests = requests_to(offline, max_queue_tokens=12, max_request_tokens=12)
    requests.settings = Settings(artifact="")  # so that the request itself is not too large
    with pytest.raises(Refusal, match="0 tokens wait already: expected at most") as caught:
        asyncio.run(requests.embed(INPUTS))
    requests.close()
    assert caught.value.reason is OVERLOADED
    assert int(caught.value.headers["retry-after"]) >= 1


def test_a_server_that_shuts_down_sends_clients_to_another(offline):
    requests = requests_to(offline)
    requests.runner.close()
    with pytest.raises(Refusal, match="the server is shutting down") as caught:
        asyncio.run(requests.embed(INPUTS))
    assert caught.value.reason is STOPPING
    assert caught.value.headers["retry-after"] == "1"


def test_a_row_that_is_not_finite_is_a_fault_and_its_neighbors_are_not():
    rows = np.zeros((3, 4), np.float32)
    rows[1, 2] = np.inf
    first, second, third = Metrics().faults_of(rows)
    assert (first, third) == (None, None)
    assert isinstance(second, FloatingPointError)


def test_a_failure_is_one_line_of_the_log(caplog):
    Metrics().batch_failed(RuntimeError("out of luck"))
    assert [record.getMessage() for record in caplog.records] == ["a batch failed: out of luck"]
