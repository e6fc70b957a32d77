"""Embed a dataset with an artifact, a checkpoint or a contender: one run of a quality measurement.

quality.py computes metrics and comparisons from the results.
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
from koe5_export.reference import embed_reference, reference_versions, require_reference

from benchmarks.cache import Array, Embed, embed_cached
from benchmarks.contenders.engine import MAX_TOKENS
from benchmarks.contenders.prepared import PreparationError, Store
from benchmarks.contenders.process import ContenderError, ContenderProcess
from benchmarks.contenders.registry import Contender
from benchmarks.corpora import Dataset
from koe5_onnx import (
    Artifact,
    Contract,
    Embedder,
    InputError,
    Koe5Error,
    Source,
    Tokenizer,
    TruncationWarning,
)
from koe5_onnx.artifact import TOKENIZER, describe_file
from koe5_onnx.engine.machine import cpu_name
from koe5_onnx.engine.providers import import_onnxruntime

Tokens = npt.NDArray[np.int32]


class ImpossibleError(Koe5Error, RuntimeError):
    """A contender cannot embed with this checkpoint or contract."""

    def __init__(self, contender: str, reason: str) -> None:
        super().__init__(reason)
        self.contender = contender


@dataclass(frozen=True)
class Encoder:
    """An artifact, checkpoint or contender that embeds texts."""

    label: str
    source: Source
    contract: Contract
    identity: dict[str, Any]
    """Everything that can change an embedding, as JSON-serializable data."""
    tokenizer: Path
    embed: Embed
    timed_as: str
    """Contender name in the speed benchmarks."""


@dataclass(frozen=True)
class Run:
    """The embeddings of a dataset by one encoder."""

    label: str
    source: Source
    identity: dict[str, Any]
    max_tokens: int
    queries: Array
    """float32[queries, dim]."""
    passages: Array
    """float32[passages, dim]."""
    query_tokens: Tokens
    """int32[queries]: number of tokens with the prompt, before truncation."""
    passage_tokens: Tokens
    """int32[passages]: number of tokens with the prompt, before truncation."""
    timed_as: str = ""
    """Contender name in the speed benchmarks."""

    @property
    def embeddings(self) -> Array:
        """float32[queries + passages, dim]."""
        return np.concatenate([self.queries, self.passages])

    @property
    def lengths(self) -> Tokens:
        """int32[queries + passages]: number of tokens after truncation."""
        tokens = np.concatenate([self.query_tokens, self.passage_tokens])
        return np.asarray(np.minimum(tokens, self.max_tokens), np.int32)

    def describe(self) -> dict[str, Any]:
        """Return the encoder and the numbers of truncated texts as JSON-serializable data."""
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
    """Yield an encoder that embeds with an artifact."""
    manifest, name = artifact.manifest, artifact.path.name
    label = name if name == manifest.precision else f"{manifest.precision} {name}"
    with Embedder.open(artifact.path) as embedder:
        identity = {
            "kind": "artifact",
            "precision": manifest.precision,
            "contract": asdict(manifest.contract),
            "files": {file: described.sha256 for file, described in manifest.files.items()},
            "measured_with": {**_machine(), "onnxruntime": import_onnxruntime().__version__},
        }
        yield Encoder(
            label,
            manifest.source,
            manifest.contract,
            identity,
            artifact.tokenizer,
            _quietly(lambda texts: embedder.encode(texts, prompt="")),  # the texts include the prompts
            f"koe5-{manifest.precision}",
        )


@contextmanager
def open_checkpoint(checkpoint: Checkpoint, contract: Contract) -> Iterator[Encoder]:
    """Yield an encoder that embeds with a checkpoint, by PyTorch in fp32 and with the given contract.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        MissingDependencyError: A package of the reference is not installed.
    """
    require_reference()
    source = checkpoint.source()
    identity = {
        "kind": "checkpoint",
        "precision": "fp32",
        "contract": asdict(contract),
        "files": {"weights": source.weights_sha256, TOKENIZER: describe_file(checkpoint.tokenizer).sha256},
        "measured_with": {**_machine(), **reference_versions()},
    }
    yield Encoder(
        "PyTorch fp32",
        source,
        contract,
        identity,
        checkpoint.tokenizer,
        lambda texts: embed_reference(checkpoint.folder, contract, texts),
        "sentence-transformers-fp32",
    )


@contextmanager
def open_contender(
    contender: Contender, store: Store, checkpoint: Checkpoint, contract: Contract, threads: int
) -> Iterator[Encoder]:
    """Yield an encoder that embeds with a contender. Prepare missing files and start the contender's process.

    Raises:
        ImpossibleError: The contender does not support the checkpoint or the contract, or it failed.
        InputError: The contender's Python environment is missing.
    """
    if (contract.pooling, contract.normalize, contract.max_tokens) != ("mean", True, MAX_TOKENS):
        raise ImpossibleError(
            contender.name,
            f"contenders use mean pooling, normalization and {MAX_TOKENS} tokens, but the contract has "
            f"pooling {contract.pooling}, normalize {contract.normalize} and {contract.max_tokens} tokens",
        )
    try:
        with ContenderProcess(contender, store.files_of(contender), store.checkpoint, threads) as worker:
            yield _contender_encoder(contender, worker, checkpoint, contract)
    except (ContenderError, PreparationError) as error:
        raise ImpossibleError(contender.name, str(error).splitlines()[-1]) from error


def _contender_encoder(
    contender: Contender, worker: ContenderProcess, checkpoint: Checkpoint, contract: Contract
) -> Encoder:
    source = checkpoint.source()
    identity = {
        "kind": "contender",
        "precision": contender.name,
        "contract": asdict(contract),
        "files": {"weights": source.weights_sha256, "made as": contender.files},
        "options": dict(contender.options),
        "measured_with": {**_machine(), **worker.ask("load")["versions"]},
    }
    opened: list[object] = []

    def embed(texts: Sequence[str]) -> Array:
        if not opened:  # opened here, because it is not needed if all embeddings are cached
            opened.append(worker.ask("open"))
        found = worker.embed(texts)
        if found.shape[1] != contract.dim:
            raise ImpossibleError(
                contender.name,
                f"its embeddings have {found.shape[1]} dimensions, expected {contract.dim}",
            )
        return found

    return Encoder(contender.name, source, contract, identity, checkpoint.tokenizer, embed, contender.name)


def shared_contract(artifacts: Sequence[Artifact]) -> Contract | None:
    """Return the contract that all artifacts share, or None if there are none.

    Raises:
        InputError: Two artifacts have different contracts; the message lists the differences.
    """
    if not artifacts:
        return None
    first, *others = artifacts
    expected = asdict(first.manifest.contract)
    for other in others:
        found = asdict(other.manifest.contract)
        differing = [
            f"{name} is {found[name]!r}, not {value!r}"
            for name, value in expected.items()
            if found[name] != value
        ]
        if differing:
            raise InputError(
                f"{other.path} and {first.path} have different contracts: {'; '.join(differing)}. "
                "Compare artifacts with the same contract"
            )
    return first.manifest.contract


def run_on(encoder: Encoder, dataset: Dataset, folder: Path) -> Run:
    """Embed a dataset with the contract's prompts, using the cache in `folder`.

    Prompts are added here rather than by the encoder, so that the cache keys cover the complete texts.
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
        timed_as=encoder.timed_as,
    )


def with_unique_labels(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with numbers added to labels that occur more than once."""
    labels = [run.label for run in runs]
    return [
        replace(run, label=f"{run.label} #{number}") if labels.count(run.label) > 1 else run
        for number, run in enumerate(runs, 1)
    ]


def _machine() -> dict[str, str]:
    return {"cpu": cpu_name(), "tokenizers": tokenizers.__version__}


def _quietly(embed: Embed) -> Embed:
    """Suppress truncation warnings, because a run counts its truncated texts."""

    def quiet(texts: Sequence[str]) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            return embed(texts)

    return quiet


def _progress(label: str, kind: str) -> Callable[[int, int], None]:
    return lambda done, total: print(f"{label}: {done} of {total} {kind}", file=sys.stderr)
