"""Startup, graceful shutdown, workers, options, metrics and traces, mostly in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from mapped_files import maps_of, memory_of
from tolerances import SERVED

import koe5_onnx
from koe5_onnx import EngineOptions, InputError, cli
from koe5_onnx.cli.serve import hash_keys
from koe5_onnx.engine.graphs import installed_kernels
from koe5_onnx.serve import Settings

ARTIFACT = Path(__file__).resolve().parents[1] / "data" / "tiny-int8"


@contextmanager
def process(*arguments, artifact=ARTIFACT, **environment):
    """Run the server in a separate process. Yield the process, a client, and the lines of the log."""
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    command = [sys.executable, "-m", "koe5_onnx.cli", "serve", str(artifact), "--port", "0", *arguments]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": source, **environment}
    ) as running:
        try:
            lines = []
            for line in running.stderr:
                lines.append(line)
                if '"listening"' in line or '"starting"' in line:
                    break
            else:
                raise AssertionError(f"the server ended: {lines}")
            port = json.loads(lines[-1])["port"]
            # Drain the log, so that the server does not block on it.
            threading.Thread(target=lambda: lines.extend(running.stderr), daemon=True).start()
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield running, client, lines
        finally:
            # Do not kill it, because its workers would keep running and hold its log open.
            running.terminate()
            running.wait(40)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_good_order(number):
    """Accepted requests are answered, and the exit code is 0."""
    with process("--max-wait-ms", "3000") as (running, client, lines), ThreadPoolExecutor(4) as pool:
        assert client.get("/health").status_code == 200
        waiting = [pool.submit(client.post, "/embed", json={"inputs": "가나다"}) for _ in range(4)]
        _wait_for_metric(client, "koe5_requests_in_work", 4)
        running.send_signal(number)
        assert [one.result().status_code for one in waiting] == [200] * 4
        assert running.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{client.base_url}/health")
    assert '"stopped"' in "".join(lines)


def test_the_command_reads_keys_from_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\nsecond\n")
    with process("--api-key-file", str(file), KOE5_ONNX_API_KEYS="third, fourth") as (_, client, _lines):
        for key, status in (("second", 200), ("fourth", 200), ("# ours", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert client.post("/embed", json={"inputs": "a"}, headers=headers).status_code == status


def test_a_key_file_without_keys_does_not_open_the_server(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(InputError, match="has no API key"):
        hash_keys(file, "")


def test_workers_and_parallel_batches_divide_the_cores(monkeypatch):
    served = []
    monkeypatch.setattr("koe5_onnx.serve.serve", lambda settings, **_: served.append(settings) or 0)
    monkeypatch.setenv("KOE5_ONNX_THREADS", "8")
    assert cli.main(["serve", str(ARTIFACT), "--workers", "2", "--parallel-batches", "2"]) == 0
    assert cli.main(["serve", str(ARTIFACT)]) == 0
    assert [one.engine.threads for one in served] == [2, None]  # None lets a result of tune apply


@pytest.mark.slow
def test_two_workers_share_a_port_and_their_numbers(offline):
    with process("--workers", "2") as (running, client, _lines):
        _wait_until_healthy(client, running)
        for _ in range(20):
            answer = httpx.post(f"{client.base_url}/embed", json={"inputs": "서울"}, timeout=30)
            np.testing.assert_allclose(answer.json(), offline.encode(["서울"]), atol=SERVED, rtol=0)
        assert 'koe5_inputs_total{prompt_name="none"} 20.0' in client.get("/metrics").text
        running.terminate()
        assert running.wait(20) == 0


@pytest.mark.slow
@pytest.mark.skipif(isinstance(installed_kernels(), str), reason=str(installed_kernels()))
def test_two_workers_hold_packed_weights_once():
    with process("--workers", "2") as (running, client, _lines):
        _wait_for_metric(client, "koe5_engine", 2)
        one, other = _workers_of(running)
        assert maps_of(one, ".packed") == maps_of(other, ".packed") != set()
        assert memory_of(one, ".packed").private_bytes == 0


@pytest.mark.parametrize(
    ("arguments", "shares"),
    [
        ((), False),
        (("--workers", "2"), True),
        (("--share-weights",), True),
        (("--workers", "2", "--no-share-weights"), False),
    ],
)
def test_when_weights_are_shared(arguments, shares, monkeypatch):
    from koe5_onnx.cli import main

    told = []
    monkeypatch.setattr("koe5_onnx.serve.serve", lambda settings, **_where: told.append(settings) or 0)
    assert main(["serve", str(ARTIFACT), *arguments]) == 0
    assert [settings.engine.share_weights for settings in told] == [shares]


def test_what_is_for_a_gpu_reaches_the_embedder(monkeypatch):
    from koe5_onnx import Embedder, InputError
    from koe5_onnx.cli import main

    told = []

    def opened(_artifact, options):
        told.append(options)
        raise InputError("stopped by the test")

    monkeypatch.setattr(Embedder, "open", opened)
    options = ("--device", "cuda:1", "--gpu-mem-limit", "9000000000", "--cuda-graphs")
    assert main(["serve", str(ARTIFACT), *options]) == 1
    (options,) = told
    assert (options.device, options.gpu_mem_limit, options.cuda_graphs) == ("cuda:1", 9_000_000_000, True)


@pytest.mark.slow
def test_two_workers_stop_in_good_order():
    with (
        process("--workers", "2", "--max-wait-ms", "3000") as (running, client, _lines),
        ThreadPoolExecutor(8) as pool,
    ):
        _wait_for_metric(client, "koe5_engine", 2)
        waiting = [pool.submit(client.post, "/embed", json={"inputs": "가나다"}) for _ in range(8)]
        _wait_for_metric(client, "koe5_requests_in_work", 8)
        running.terminate()
        assert [one.result().status_code for one in waiting] == [200] * 8
        assert running.wait(20) == 0


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_not_counted():
    with process("--workers", "2") as (running, client, _lines):
        _wait_for_metric(client, "koe5_engine", 2)
        first = _workers_of(running)
        os.kill(first[0], signal.SIGKILL)
        for _ in range(600):
            if len(set(_workers_of(running)) - set(first)) == 1:
                break
            time.sleep(0.05)
        _wait_for_metric(client, "koe5_engine", 2)
        for _ in range(4):
            answer = httpx.post(f"{client.base_url}/embed", json={"inputs": "서울"}, timeout=30)
            assert answer.status_code == 200


def _workers_of(running):
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _wait_for_metric(client, name, value):
    for _ in range(600):
        try:
            text = client.get("/metrics").text
        except httpx.TransportError:
            text = ""
        found = re.search(rf"^{name}(?:{{.*}})? (.*)$", text, re.M)
        if found is not None and float(found[1]) == value:
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} was never {value}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("artifact", "arguments", "words"),
    [
        ("nowhere", (), "nowhere does not exist"),
        (ARTIFACT, ("--default-prompt-name", "title"), "default_prompt_name is 'title'"),
    ],
)
def test_workers_that_cannot_start_end_the_server(artifact, arguments, words):
    command = [sys.executable, "-m", "koe5_onnx.cli", "serve", str(artifact), "--port", "0", "--workers", "2"]
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        timeout=60,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def _wait_until_healthy(client, running):
    for _ in range(600):
        assert running.poll() is None
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not start")


@pytest.fixture
def loggers():
    """Restore the process's loggers after the command has changed them."""
    known = [logging.getLogger(name) for name in ("koe5_onnx.serve", "uvicorn", "py.warnings")]
    before = [(one, one.handlers, one.level, one.propagate) for one in known]
    yield
    logging.captureWarnings(capture=False)
    for one, handlers, level, propagate in before:
        one.handlers, one.level, one.propagate = handlers, level, propagate


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--default-prompt-name", "title"), "default_prompt_name is 'title'"),
        (("--max-inputs", "0"), "max_inputs is 0"),
        (("--workers", "0"), "--workers is 0"),
        (("--max-wait-ms", "-1"), "max_wait_ms is -1"),
        (("--cache-entries", "-1"), "cache_entries is -1"),
        (("--keep-alive-s", "0"), "keep_alive_s is 0"),
        (("--api-key-file", "nowhere"), "nowhere"),
        (("--device", "gpu"), "device is 'gpu'"),
        (("--port", "99999"), "--port is 99999"),
        (("--threads", "0"), "threads is 0"),
    ],
)
def test_wrong_options(arguments, words, capsys, loggers):
    from koe5_onnx.cli import main

    assert main(["serve", str(ARTIFACT), *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_port_in_use_is_reported():
    with process() as (_running, client, _lines):
        taken = str(client.base_url.port)
        command = [sys.executable, "-m", "koe5_onnx.cli", "serve", str(ARTIFACT), "--port", taken]
        source = str(Path(koe5_onnx.__file__).resolve().parents[1])
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}, timeout=60
        )
    assert done.returncode == 1
    assert "in use" in done.stderr


def test_metrics(serving):
    with serving() as client:
        client.post("/v1/embeddings", json={"input": ["서울", "가 " * 600], "input_type": "query"})
        text = client.get("/metrics").text
    for line in (
        'koe5_request_seconds_count{route="/v1/embeddings",status="200"} 1.0',
        "koe5_queue_seconds_count 1.0",
        "koe5_tokenize_seconds_count 1.0",
        'koe5_inputs_total{prompt_name="query"} 2.0',
        "koe5_truncated_inputs_total 1.0",
        'precision="int8",provider="CPUExecutionProvider"',
    ):
        assert line in text
    runs = float(
        next(line for line in text.splitlines() if line.startswith("koe5_run_seconds_count")).split()[1]
    )
    assert runs == 2, "a short text and a long one do not share a batch"


def test_settings_survive_the_way_to_a_worker():
    engine = EngineOptions(threads=3, graph="padded")
    settings = Settings("a", engine, model_names=("x", "y"), api_keys_sha256=("00",), timeout_s=1.5)
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_traces(serving, monkeypatch):
    exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    from opentelemetry.sdk.trace.export import SpanExportResult

    seen = []

    def export(self, spans):
        seen.extend(spans)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(exporter.OTLPSpanExporter, "export", export)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with serving(otlp_endpoint="http://127.0.0.1:9/v1/traces") as client:
        assert client.post("/embed", json={"inputs": "서울"}).status_code == 200
        for _ in range(500):
            client.get("/health")
            if len(seen) >= 4:
                break
    spans = {span.name: span for span in seen}
    assert {"tokenize", "queue", "run", "POST /embed"} <= set(spans)
    request = spans["POST /embed"]
    for name in ("tokenize", "queue", "run"):
        assert spans[name].context.trace_id == request.context.trace_id
        assert request.start_time <= spans[name].start_time <= spans[name].end_time <= request.end_time
