"""Fixtures of the tests on trained weights. `make trained` passes the folder of the checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.simulated import SimulatedSession
from koe5_export.texts import SAMPLE_PASSAGES, SAMPLE_QUERIES, VERIFICATION

from benchmarks.corpora import Dataset, load
from koe5_onnx import Artifact, Embedder, EngineOptions, Tokenizer
from koe5_onnx.engine.session import Session

DATA = Path(__file__).resolve().parents[1] / "data"
SHARED = Path(__file__).resolve().parents[3] / "shared/data"
KORSTS, AUTORAG = SHARED / "korsts/sts-dev.tsv", SHARED / "autorag_ko"
AUTORAG_QUERIES = 114
EVERY_SENTENCE, EVERY_PAGE = 15, 22
"""Steps for sampling the real texts: they select 100 sentences and 33 pages."""

Texts = dict[str, list[str]]
"""Texts without prompts, by prompt name."""
Embed = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Golden:
    """Texts, and their token ids and embeddings when the golden files were written."""

    texts: list[str]
    prompts: list[str]
    ids: list[list[int]]
    """Token ids with prompt, `<s>` and `</s>`, truncated to 512 tokens."""
    embeddings: np.ndarray


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """Return the folder of the trained checkpoint."""
    folder = os.environ.get("KOE5_TRAINED_CHECKPOINT")
    if folder is None:
        pytest.skip("no trained checkpoint. Run make trained")
    return Path(folder)


@pytest.fixture(scope="session")
def reference(checkpoint) -> Embed:
    """Return a function that embeds `Texts` with sentence-transformers in fp32."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)

    def embed(texts):
        return np.concatenate(
            [
                encoder.encode(some, prompt_name=prompt, batch_size=8, show_progress_bar=False)
                for prompt, some in texts.items()
            ]
        )

    return embed


@pytest.fixture(scope="session")
def embed(checkpoint, tmp_path_factory) -> Embed:
    """Return a function that embeds `Texts` with the checkpoint's artifact of a precision."""
    folder, opened = tmp_path_factory.mktemp("trained"), Checkpoint.open(checkpoint)
    made: dict[str, Artifact] = {}

    def embed(texts, precision, graph="auto"):
        if precision not in made:
            options = ExportOptions(precision=precision)
            made[precision] = export_checkpoint(opened, folder / precision, options)
        with _opened(made[precision], graph) as embedder:
            return np.concatenate([embedder.encode(some, prompt) for prompt, some in texts.items()])

    return embed


@contextmanager
def _opened(artifact: Artifact, graph: str) -> Iterator[Embedder]:
    """Yield an Embedder. Artifacts for GPUs run on the CPU, as in an export without a GPU."""
    target = artifact.manifest.target
    if "cpu" in target.devices:
        with Embedder.open(artifact.path, graph=graph) as embedder:
            yield embedder
        return
    artifact = Artifact(artifact.path, replace(artifact.manifest, target=replace(target, devices=("cpu",))))
    simulated = graph == "packed"
    session = SimulatedSession(artifact) if simulated else Session(artifact, EngineOptions(graph=graph))
    tokenizer = Tokenizer(artifact.tokenizer, artifact.manifest.contract.max_tokens)
    with Embedder(artifact, session, tokenizer, max_batch_tokens=2048) as embedder:
        yield embedder


@pytest.fixture(scope="session")
def texts() -> Texts:
    """Return the built-in texts, and real sentences and pages if the data is next to the checkout."""
    sentences = [first for first, _, _ in _korsts()] if KORSTS.is_file() else []
    pages = load("autorag", AUTORAG).passages if AUTORAG.is_dir() else []
    return {
        "query": [*SAMPLE_QUERIES, *VERIFICATION[::2], *sentences[::EVERY_SENTENCE]],
        "passage": [*SAMPLE_PASSAGES, *VERIFICATION[1::2], "길이 " * 600, *pages[::EVERY_PAGE]],
    }


@pytest.fixture(scope="session")
def korsts() -> list[tuple[str, str, float]]:
    """Return the sentence pairs of KorSTS-dev with their scores of 0 to 5."""
    if not KORSTS.is_file():
        pytest.skip(f"no KorSTS next to the checkout: {KORSTS}")
    return _korsts()


def _korsts() -> list[tuple[str, str, float]]:
    rows = (line.split("\t") for line in KORSTS.read_text(encoding="utf-8").splitlines())
    head = next(rows)
    columns = [head.index(name) for name in ("sentence1", "sentence2", "score")]
    found = ([row[column] for column in columns] for row in rows)
    return [(first, second, float(score)) for first, second, score in found]


@pytest.fixture(scope="session")
def autorag() -> Dataset:
    """Return AutoRAG's 114 queries and 228 of its 720 pages. All pages would take two minutes in fp32."""
    if not AUTORAG.is_dir():
        pytest.skip(f"no AutoRAG benchmark next to the checkout: {AUTORAG}")
    return load("autorag", AUTORAG, AUTORAG_QUERIES)


@pytest.fixture(scope="session")
def golden() -> Golden:
    data = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
    rows = [row for row, prompt in enumerate(data["prompts"]) if prompt is not None]
    texts, prompts = ([data[name][row] for row in rows] for name in ("texts", "prompts"))
    with np.load(DATA / "golden-trained.npz") as arrays:
        ids = np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])
        return Golden(texts, prompts, [some.tolist() for some in ids], arrays["embeddings"])
