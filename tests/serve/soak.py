"""Soak test: a real server under mixed load, with disconnecting clients, invalid requests, and SIGTERM.

Every accepted request must be answered once and correctly, or its connection must end with an error that the
client sees. Memory must not grow. `make soak` runs it for minutes, test_soak.py for seconds:

    python tests/serve/soak.py ARTIFACT --seconds 180
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

import koe5_onnx
from koe5_onnx import Embedder

CLIENTS = 12
MOST_GROWTH = 0.03
"""Maximum growth of memory after the first third of the time."""
LEAVING, WRONG = 0.1, 0.1
"""Shares of requests whose client disconnects, and of invalid requests."""
WORDS = (
    "서울",
    "부산",
    "the",
    "quick",
    "brown",
    "fox",
    "대한민국의",
    "수도는",
    "고래는",
    "포유류이다",
    "검색",
)
MALFORMED = (b"{", b'{"input": 5}', b'{"input": []}', b'{"input": "\\ud800"}', b"\xff", b'{"model": "x"}')


@dataclass
class Report:
    """Observations of the clients."""

    statuses: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    """Requests whose answer equals that of the Python API."""
    left: int = 0
    """Requests whose client waits at most 50 ms and then disconnects."""
    cut_off: int = 0
    """Connections that ended after SIGTERM with an error that the client saw."""
    faults: list[str] = field(default_factory=list)
    """Violations of the requirements."""
    rss_bytes: list[int] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def growth(self) -> float:
        """Growth of resident memory from the end of the first third to the end."""
        settled = self.rss_bytes[len(self.rss_bytes) // 3 :]
        return settled[-1] / settled[0] - 1


def texts_of(chance: random.Random) -> list[str]:
    """Return 1, 2 or 8 texts of 1 to 600 words, mostly short."""
    lengths = [int(chance.paretovariate(0.8)) for _ in range(chance.choice((1, 1, 1, 2, 8)))]
    return [" ".join(chance.choices(WORDS, k=min(600, length))) for length in lengths]


async def soak(artifact: Path, seconds: float, seed: int = 0) -> Report:
    """Run a server and its clients. Send SIGTERM while requests are running."""
    report, stopping = Report(), asyncio.Event()
    with Embedder.open(artifact, threads=1) as offline:
        offline._warned = {koe5_onnx.TruncationWarning: None}
        process, url = _start(artifact)
        try:
            async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
                clients = [
                    asyncio.create_task(
                        _client(session, offline, report, stopping, random.Random(seed + one))
                    )
                    for one in range(CLIENTS)
                ]
                for _ in range(20):
                    await asyncio.sleep(seconds / 20)
                    report.rss_bytes.append(_rss_bytes(process.pid))
                stopping.set()
                process.send_signal(signal.SIGTERM)
                await asyncio.gather(*clients)
            report.exit_code = await asyncio.to_thread(process.wait, 60)
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
    return report


async def _client(session, offline, report, stopping, chance):
    """Send one request after another until the server has stopped."""
    for _ in range(1_000_000):
        try:
            await _request(session, offline, report, chance)
        except (aiohttp.ClientError, ConnectionError) as error:
            if stopping.is_set():
                report.cut_off += 1
                return
            report.faults.append(f"the connection ended: {error!r}")
            return


async def _request(session, offline, report, chance):
    dice = chance.random()
    if dice < LEAVING:
        report.left += 1
        await _leave(session, chance)
    elif dice < LEAVING + WRONG:
        async with session.post("/v1/embeddings", data=chance.choice(MALFORMED), headers=_JSON) as answer:
            report.statuses[str(answer.status)] += 1
            if answer.status != 400:
                report.faults.append(f"a malformed request got {answer.status}: {await answer.text()}")
    else:
        await _embed(session, offline, report, chance)


_JSON = {"content-type": "application/json"}


async def _leave(session, chance):
    """Send a request and disconnect after at most 50 ms, whether or not it has been answered."""
    try:
        async with asyncio.timeout(chance.random() * 0.05):
            async with session.post("/v1/embeddings", json={"input": texts_of(chance)}) as answer:
                await answer.read()
    except TimeoutError:
        pass


async def _embed(session, offline, report, chance):
    texts, prompt = texts_of(chance), chance.choice(("query", "passage"))
    body = {"input": texts, "input_type": prompt, "encoding_format": "base64"}
    async with session.post("/v1/embeddings", json=body) as answer:
        report.statuses[str(answer.status)] += 1
        found = await answer.json()
    if answer.status != 200:
        report.faults.append(f"{answer.status}: {found}")
        return
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in found["data"]]
    expected = await asyncio.to_thread(offline.encode, texts, prompt)
    error = float(np.abs(np.asarray(rows) - expected).max())
    if error > 1e-6:
        report.faults.append(f"an embedding differs by {error} in a request of {len(texts)}")
    report.answered += 1


def _start(artifact: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the server and return it with its address from the log."""
    source = str(Path(koe5_onnx.__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "koe5_onnx.cli", "serve", str(artifact), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    for line in process.stderr:
        if '"listening"' in line:
            break
    # Drain the log, so that the server does not block on it.
    threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
    return process, f"http://127.0.0.1:{json.loads(line)['port']}"


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Run the soak test and print the observations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=180)
    args = parser.parse_args()
    report = asyncio.run(soak(args.artifact, args.seconds))
    sys.stdout.write(json.dumps({**report.__dict__, "growth": report.growth}, indent=1) + "\n")
    return 1 if report.faults or report.exit_code or report.growth >= MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
