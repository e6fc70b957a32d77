"""One run of a quality measurement: an artifact or a checkpoint, and what it makes of a dataset.

Knows who embeds and how; figures and comparisons are made from what it returns.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import ContractOptions, read_contract
from koe5_export.reference import embed_reference, reference_versions, require_reference

from benchmarks.cache import Array, Embed, embed_cached
from benchmarks.corpora import Dataset
from koe5_onnx import Artifact, Contract, Embedder, Source, Tokenizer, TruncationWarning
from koe5_onnx.artifact import TOKENIZER, describe_file
from koe5_onnx.machine import cpu_name
from koe5_onnx.providers import import_onnxruntime

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Encoder:
    """Something that embeds."""

    label: str
    source: Source
    contract: Contract
    identity: dict[str, Any]
    """Whatever can change an embedding, as plain data."""
    tokenizer: Path
    embed: Embed


@dataclass(frozen=True)
class Run:
    """The embeddings of a dataset."""

    label: str
    source: Source
    identity: dict[str, Any]
    max_tokens: int
    queries: Array
    """float32[queries, dim]."""
    passages: Array
    """float32[passages, dim]."""
    query_tokens: Tokens
    """int32[queries]: tokens with the prompt, before truncation."""
    passage_tokens: Tokens
    """int32[passages]: likewise."""

    @property
    def embeddings(self) -> Array:
        """float32[queries + passages, dim]."""
        return np.concatenate([self.queries, self.passages])

    @property
    def lengths(self) -> Tokens:
        """int32[queries + passages]: tokens after truncation."""
        tokens = np.concatenate([self.query_tokens, self.passage_tokens])
        return np.asarray(np.minimum(tokens, self.max_tokens), np.int32)

    def describe(self) -> dict[str, Any]:
        """What embedded, and what it cut, as plain data."""
        return {
            "label": self.label,
            "source": asdict(self.source),
            **self.identity,
            "truncated": {
                "queries": int((self.query_tokens > self.max_tokens).sum()),
                "passages": int((self.passage_tokens > self.max_tokens).sum()),
            },
        }


@contextmanager
def open_artifact(artifact: Artifact) -> Iterator[Encoder]:
    """An artifact as an encoder, its graph loaded."""
    manifest = artifact.manifest
    with Embedder.open(artifact.path) as embedder:
        identity = {
            "kind": "artifact",
            "precision": manifest.precision,
            "contract": asdict(manifest.contract),
            "files": {file: described.sha256 for file, described in manifest.files.items()},
            "measured_with": {**_machine(), "onnxruntime": import_onnxruntime().__version__},
        }
        yield Encoder(
            f"{manifest.precision} {artifact.path.name}",
            manifest.source,
            manifest.contract,
            identity,
            artifact.tokenizer,
            _quietly(lambda texts: embedder.encode(texts, "")),  # the prompts are in the texts
        )


@contextmanager
def open_checkpoint(name: str, like: str | None = None) -> Iterator[Encoder]:
    """A checkpoint's folder or Hub id as an encoder: PyTorch in fp32.

    Raises:
        CheckpointError: It cannot be used, or does not say how to pool.
        MissingDependencyError: torch or transformers is not installed.
    """
    require_reference()
    checkpoint = Checkpoint.open(name)
    contract, source = read_contract(checkpoint, ContractOptions(like)), checkpoint.source()
    identity = {
        "kind": "checkpoint",
        "precision": "fp32",
        "contract": asdict(contract),
        "files": {"weights": source.weights_sha256, TOKENIZER: describe_file(checkpoint.tokenizer).sha256},
        "measured_with": {**_machine(), **reference_versions()},
    }

    def embed(texts: Sequence[str]) -> Array:
        return embed_reference(checkpoint.folder, contract, texts)  # the prompts are in the texts

    yield Encoder("PyTorch fp32", source, contract, identity, checkpoint.tokenizer, embed)


def run_on(encoder: Encoder, dataset: Dataset, folder: Path) -> Run:
    """Embed a dataset with the contract's prompts, or take what the cache in `folder` has.

    The prompts are put in front here, and not by the encoder, so that the cache's keys hold all of a text.
    """
    prompts = encoder.contract.prompts
    texts = {
        "queries": [prompts["query"] + text for text in dataset.queries],
        "passages": [prompts["passage"] + text for text in dataset.passages],
    }
    tokenizer = Tokenizer(encoder.tokenizer, encoder.contract.max_tokens, encoder.contract.unicode_form)
    tokens = {kind: tokenizer.encode(some).full_lengths for kind, some in texts.items()}
    found = {
        kind: embed_cached(folder, encoder.identity, some, encoder.embed, _progress(encoder.label, kind))
        for kind, some in texts.items()
    }
    return Run(
        encoder.label,
        encoder.source,
        encoder.identity,
        encoder.contract.max_tokens,
        **found,
        query_tokens=tokens["queries"],
        passage_tokens=tokens["passages"],
    )


def with_unique_labels(runs: Sequence[Run]) -> list[Run]:
    """The runs, a number after each label that is there more than once."""
    labels = [run.label for run in runs]
    return [
        replace(run, label=f"{run.label} #{number}") if labels.count(run.label) > 1 else run
        for number, run in enumerate(runs, 1)
    ]


def _machine() -> dict[str, str]:
    return {"cpu": cpu_name(), "tokenizers": tokenizers.__version__}


def _quietly(embed: Embed) -> Embed:
    """Without the warning of cut texts: they are counted from the tokens."""

    def quiet(texts: Sequence[str]) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            return embed(texts)

    return quiet


def _progress(label: str, kind: str) -> Callable[[int, int], None]:
    return lambda done, total: print(f"{label}: {done} of {total} {kind}", file=sys.stderr)
