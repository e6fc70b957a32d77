"""The environment of the documentation's code blocks: one folder per page, a simulated Hub, a server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from doc_blocks import ROOT
from hub_server import serving, settings
from koe5_onnx_server import listening

from koe5_onnx import Embedder

ARTIFACT = ROOT / "tests/data/tiny-int8"
CHECKPOINT = "nlpai-lab/KoE5"
FILES = {
    "passages.txt": "서울은 대한민국의 수도이다.\n고래는 포유류이다.\nSeoul lies on the river Han.\n",
    "queries.txt": "대한민국의 수도는 어디인가요?\n",
    "pages.jsonl": '{"id": 1, "contents": "서울은 대한민국의 수도이다."}\n{"id": 2, "contents": "고래"}\n',
    "domain.txt": "계약은 당사자의 합의로 성립한다.\n소멸시효는 십 년이다.\nA contract needs consent.\n",
    "keys.txt": "# of the tests\nnot-a-secret\n",
}
"""Text files that the pages use as inputs."""
_NOT_IN_KOE5S_REPOSITORY = {
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
}
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Place:
    """The folder and the environment variables in which the blocks of one page run in order."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder, with stderr merged into stdout, as on a terminal."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )


@pytest.fixture(scope="session")
def hub_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Yield environment variables of a simulated Hub, which has a small checkpoint under KoE5's name.

    The checkpoint lacks the settings files that KoE5's repository lacks.
    """
    pytest.importorskip("onnx")
    from koe5_export.seeded import Size, write_seeded_checkpoint

    checkpoint = tmp_path_factory.mktemp("hub") / "checkpoint"
    write_seeded_checkpoint(checkpoint, Size(layers=2, hidden=64, heads=4, intermediate=128, vocabulary=1200))
    files = {
        str(file.relative_to(checkpoint)): file.read_bytes()
        for file in checkpoint.rglob("*")
        if file.is_file() and file.name not in _NOT_IN_KOE5S_REPOSITORY and file.parent == checkpoint
    }
    with serving(files, CHECKPOINT) as hub:
        yield settings(hub.endpoint, tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, hub_environment: dict[str, str]) -> dict[str, str]:
    """Return environment variables with `python`, `koe5-onnx`, the simulated Hub and an empty cache."""
    commands = tmp_path_factory.mktemp("bin")
    for name, module in (("python", ""), ("koe5-onnx", "-m koe5_onnx_server")):
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"},
        **hub_environment,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "export", ROOT / "tests"))),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "KOE5_ONNX_CACHE": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="session")
def places() -> dict[str, Place]:
    return {}


@pytest.fixture
def place_of(places: dict[str, Place], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    """Return a function from a page to the place where its blocks run, with an artifact and input files."""

    def of(page: str) -> Place:
        if page not in places:
            folder = tmp_path_factory.mktemp(page.replace("/", "-").removesuffix(".md"))
            shutil.copytree(ARTIFACT, folder / "koe5-int8")
            for name, text in FILES.items():
                (folder / name).write_text(text, encoding="utf-8")
            for name in ("corpus.parquet", "parts.parquet"):
                write_corpus(folder / name)
            write_index(folder / "index.jsonl")
            places[page] = Place(folder, environment)
        return places[page]

    return of


def write_corpus(file: Path) -> None:
    """Write passages with their ids, if pyarrow is installed."""
    with contextlib.suppress(ImportError):
        import pyarrow as pa
        from pyarrow import parquet

        rows = {"doc_id": ["a", "b"], "contents": ["서울은 대한민국의 수도이다.", "고래는 포유류이다."]}
        parquet.write_table(pa.table(rows), file)


def write_index(file: Path) -> None:
    """Write texts with their vectors in CLS pooling and without a prompt, as some servers make them."""
    texts = [
        f"{place}은 대한민국의 도시이다."
        for place in ("서울", "부산", "대전", "광주", "울산", "인천", "수원", "춘천")
    ]
    with Embedder.open(ARTIFACT, threads=1) as embedder, closing(embedder.session.padded()) as session:
        lines = []
        for text, ids in zip(texts, embedder.tokenize(texts, prompt="").ids, strict=True):
            row = session.token_embeddings(ids[None].astype(np.int64), np.ones((1, len(ids)), np.int64))[0, 0]
            lines.append(json.dumps({"text": text, "vector": (row / np.linalg.norm(row)).tolist()}))
    file.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[str]:
    """Return the address of a server of the tiny artifact."""
    arguments = [str(ARTIFACT), "--threads", "1", "--model-name", CHECKPOINT]
    with listening(arguments, environment) as (address, process):
        yield address
        assert process.poll() is None, "the server ended unexpectedly"
