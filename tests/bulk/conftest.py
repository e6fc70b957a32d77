"""Fixtures for the tests of koe5-onnx bulk, which use the tiny artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bulk_output import ARTIFACT
from shortened import allow

from koe5_onnx import Embedder, EngineOptions
from koe5_onnx.bulk import BulkOptions, Summary, embed_files

AUTORAG = Path(__file__).resolve().parents[3] / "shared/data/autorag_ko/corpus.parquet"
"""Pages of the dataset AutoRAG, next to the checkout. Tests are skipped if they need it and it is missing."""


@pytest.fixture(scope="session")
def artifact() -> Path:
    return ARTIFACT


@pytest.fixture(scope="session")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the artifact that allows shorter embeddings."""
    return allow(ARTIFACT, tmp_path_factory.mktemp("allowed") / "artifact")


@pytest.fixture(scope="session")
def autorag() -> Path:
    if not AUTORAG.is_file():
        pytest.skip("no ../shared/data/autorag_ko next to the checkout")
    return AUTORAG


@pytest.fixture(scope="session")
def embedder() -> Iterator[Embedder]:
    with Embedder.open(ARTIFACT, threads=1) as opened:
        yield opened


@pytest.fixture
def embed(tmp_path: Path) -> Callable[..., Summary]:
    """Return a function that embeds a file or folder of tmp_path into its folder "out"."""

    def run(
        name: str,
        output: str = "out",
        *,
        artifact=ARTIFACT,
        strict=False,
        max_bad_share=0.5,
        dedupe=False,
        restart=False,
        ray=None,
        threads=1,
        overflow="truncate",
        **options,
    ):
        return embed_files(
            tmp_path / name,
            tmp_path / output,
            artifact,
            BulkOptions(**{"prompt_name": "passage", **options}),
            engine=EngineOptions(threads=threads, overflow=overflow),
            strict=strict,
            max_bad_share=max_bad_share,
            dedupe=dedupe,
            restart=restart,
            ray=ray,
        )

    return run


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write
