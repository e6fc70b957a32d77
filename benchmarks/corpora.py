"""Retrieval datasets, by name or folder. layouts.py reads their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from benchmarks.layouts import PATTERNS, Contents, read_contents
from koe5_onnx import HubError, InputError
from koe5_onnx.artifact.hub import fetch


@dataclass(frozen=True)
class OnHub:
    """A dataset of KoE5's model card on the Hub."""

    title: str
    """Name on KoE5's model card."""
    repository: str
    revision: str | None


KNOWN: Mapping[str, OnHub] = {
    # 720 pages, 114 questions: the AutoRAG benchmark with BEIR's columns.
    # Source: https://github.com/embeddings-benchmark/mteb (AutoRAGRetrieval, KoStrategyQA, PublicHealthQA)
    "autorag": OnHub("AutoRAG-benchmark", "yjoonjang/markers_bm", "fd7df84ac089bbec763b1c6bb1b56e985df5cc5c"),
    "ko-strategyqa": OnHub(
        "Ko-StrategyQA", "taeminlee/Ko-StrategyQA", "d243889a3eb6654029dbd7e7f9319ae31d58f97c"
    ),
    "publichealthqa": OnHub("PublicHealthQA", "xhluca/publichealth-qa", None),
}


@dataclass(frozen=True)
class Dataset:
    """Queries, passages, and relevance judgments."""

    name: str
    source: str
    """Folder, or Hub id and commit."""
    contents: Contents

    @property
    def queries(self) -> list[str]:
        """Query texts without prompts."""
        return list(self.contents.queries.values())

    @property
    def passages(self) -> list[str]:
        """Passage texts without prompts."""
        return list(self.contents.passages.values())

    @property
    def sha256(self) -> str:
        """Hash of all ids, texts and judgments, independent of the file layout."""
        text = json.dumps(self.contents, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def load(name: str, folder: Path | None = None, limit: int | None = None) -> Dataset:
    """Open a dataset.

    Args:
        name: A name in `KNOWN`, or a folder in any supported layout.
        folder: Folder of a known dataset; None downloads it from the Hub.
        limit: Number of queries to keep, with their relevant passages and `limit` others; None keeps all.

    Raises:
        InputError: The name is unknown, or the dataset cannot be used.
        HubError: The dataset cannot be downloaded.
    """
    if name in KNOWN:
        dataset = _known(KNOWN[name], name, folder)
    elif folder is not None:
        raise InputError(
            f"the folder {folder} was passed, but {name} is not a known dataset. Pass the folder with one of "
            f"{', '.join(KNOWN)}, or pass only a folder as the dataset"
        )
    elif Path(name).exists():
        dataset = Dataset(Path(name).name, name, read_contents(Path(name)))
    else:
        raise InputError(f"{name} is neither a folder nor a known dataset. Use one of {', '.join(KNOWN)}")
    if limit is not None:
        dataset = _limited(dataset, limit)
    _check(dataset)
    return dataset


def _known(known: OnHub, name: str, folder: Path | None) -> Dataset:
    if folder is not None:
        return Dataset(known.title, str(folder), read_contents(folder))
    try:
        fetched = fetch(known.repository, known.revision, PATTERNS, "dataset")
    except HubError as error:
        raise HubError(f"{error}. For {name}, pass the folder with --data FOLDER.") from error
    return Dataset(known.title, f"{known.repository}@{fetched.name}", read_contents(fetched))


def _limited(dataset: Dataset, limit: int) -> Dataset:
    """Keep the first `limit` queries, their relevant passages, and the first `limit` other passages."""
    if limit < 2:
        raise InputError(f"the limit is {limit}, expected at least 2 queries")
    contents = dataset.contents
    relevant = dict(islice(contents.relevant.items(), limit))
    wanted = {passage for judged in relevant.values() for passage in judged}
    others = set(islice((name for name in contents.passages if name not in wanted), limit))
    queries = {query: contents.queries[query] for query in relevant}
    passages = {name: text for name, text in contents.passages.items() if name in wanted | others}
    return replace(
        dataset,
        name=f"{dataset.name}, first {len(queries)} queries",
        contents=Contents(queries, passages, relevant),
    )


def _check(dataset: Dataset) -> None:
    """Reject datasets without enough data or with unknown passages.

    Raises:
        InputError: There are too few queries or passages, a query has no relevant passage, or a judgment
            refers to a missing passage.
    """
    queries, passages, relevant = dataset.contents
    if len(queries) < 2 or len(passages) < 2:
        raise InputError(
            f"{dataset.source} has {len(queries)} queries with a relevant passage and "
            f"{len(passages)} passages, expected at least 2 of each"
        )
    for query in queries:
        judged = relevant.get(query)
        if not judged:
            raise InputError(
                f"{dataset.source}: the query {query!r} has no relevant passage, expected at least one"
            )
        if strangers := sorted(judged.keys() - passages.keys()):
            raise InputError(
                f"{dataset.source}: the relevant passage {strangers[0]!r} of the query {query!r} "
                "is not in the corpus. Download the dataset again"
            )
