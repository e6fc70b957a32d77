"""Shared code of the vector store examples: the command line, passages from parquet, printed hits.

corpus.parquet -> `passages` embeds -> the example's store -> `show` prints what a query finds
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.dataset

from koe5_onnx import Embedder, InputError

BATCH_ROWS = 1024
"""Maximum number of passages per batch."""


class Batch(NamedTuple):
    """Some passages with their embeddings."""

    doc_ids: list[str]
    contents: list[str]
    embeddings: npt.NDArray[np.float32]
    """float32[n, dim], unit length."""


class Hit(NamedTuple):
    """A passage that a query found."""

    doc_id: str
    contents: str
    score: float
    """Cosine to the query, or the fused score of hybrid_search.py."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the command line of the vector store examples."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("--artifact", required=True, help="folder or Hub id of an exported artifact")
    parser.add_argument("--store", required=True, help="where the vectors are, or where --corpus writes them")
    parser.add_argument(
        "--corpus",
        type=Path,
        help="fill a new store: a parquet file, or a folder of them, with the columns doc_id and contents",
    )
    parser.add_argument("--query", action="append", default=[], help="a question; can be repeated")
    parser.add_argument("--top", type=int, default=5, help="hits per query (default: %(default)s)")
    return parser


def passages(embedder: Embedder, corpus: Path) -> Iterator[Batch]:
    """Read passages and embed them, batch by batch.

    A column `embedding`, as `koe5-onnx bulk` writes it, is used unchanged. It must come from this artifact.

    Raises:
        InputError: The corpus does not exist, a column is missing, or an id or a passage is null.
    """
    if not corpus.exists():
        raise InputError(f"{corpus} does not exist. Pass a parquet file or a folder of them.")
    found = pyarrow.dataset.dataset(corpus, format="parquet")
    if missing := {"doc_id", "contents"} - set(found.schema.names):
        raise InputError(f"{corpus} has no column {sorted(missing)[0]!r}, only {found.schema.names}")
    columns = [name for name in ("doc_id", "contents", "embedding") if name in found.schema.names]
    for batch in found.to_batches(columns=columns, batch_size=BATCH_ROWS):
        if batch["doc_id"].null_count or batch["contents"].null_count:
            raise InputError(f"{corpus} has a null in doc_id or contents. Remove these rows.")
        contents = batch["contents"].to_pylist()
        if "embedding" in columns:
            embeddings = np.array(batch["embedding"].to_pylist(), np.float32).reshape(-1, embedder.dim)
        else:
            embeddings = embedder.encode_passages(contents)
        if contents:
            yield Batch(batch["doc_id"].to_pylist(), contents, embeddings)


@contextmanager
def new_folder(store: str) -> Iterator[Path]:
    """Yield a temporary folder and rename it to `store` at the end, so that `store` is never incomplete.

    Raises:
        InputError: The folder exists.
    """
    folder = Path(store)
    if folder.exists():
        raise InputError(f"{store} exists. Remove it, choose another name, or query it without --corpus.")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def filled_folder(store: str) -> Path:
    """Return the folder of an existing store.

    Raises:
        InputError: It does not exist. Some libraries would create an empty one.
    """
    if not Path(store).is_dir():
        raise InputError(f"The store {store} does not exist. Fill it first, with --corpus.")
    return Path(store)


def show(queries: Sequence[str], hits: Sequence[Sequence[Hit]]) -> None:
    """Print the hits of each query, best first."""
    for query, found in zip(queries, hits, strict=True):
        print(query)
        for rank, hit in enumerate(found, 1):
            start = " ".join(hit.contents.split())[:60]
            print(f"{rank:4}  {hit.score:.6f}  {hit.doc_id}\n      {start}")
