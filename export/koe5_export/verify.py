"""Artifact against reference: runs both over the same texts and measures the distance.

What distance is allowed belongs to gate.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from koe5_export.agreement import agreement, by_length, cosines, retrieval
from koe5_export.checkpoint import Checkpoint
from koe5_export.gate import Gate
from koe5_export.precision import PRECISIONS
from koe5_export.progress import Progress, silent
from koe5_export.reference import NO_PROMPT, Reference, reference_versions, require_reference
from koe5_export.simulated import SimulatedSession
from koe5_export.texts import VerificationText, verification_texts
from koe5_export.weights import Array
from koe5_onnx import (
    Artifact,
    Certificate,
    Contract,
    Embedder,
    EngineOptions,
    FidelityError,
    InputError,
    Tokenizer,
    Tokens,
)
from koe5_onnx.artifact import PACKED_CUDA_GRAPH
from koe5_onnx.engine.cuda.provider import Driver, find_driver
from koe5_onnx.engine.machine import cpu_name
from koe5_onnx.engine.providers import CUDA, import_onnxruntime
from koe5_onnx.engine.session import Session
from koe5_onnx.options import GraphChoice

_BATCH_TOKENS = 2048
_ALONE = 28
"""Lengths looked for. The shortest ones share a text."""
_UNIT_LENGTH_ERROR = 1e-5
"""Rounding of a float32 sum over some thousand components."""


@dataclass(frozen=True)
class Expected:
    """Texts and what sentence-transformers makes of them."""

    texts: Sequence[VerificationText]
    lengths: npt.NDArray[np.int32]
    """int32[n]: tokens of each text with its prompt, after truncation."""
    embeddings: Array
    """float32[n, dim]."""


def expect(
    checkpoint: Checkpoint,
    contract: Contract,
    tokenizer_file: Path,
    given: Sequence[str] = (),
    report: Progress = silent,
) -> Expected:
    """Run the reference once over the built-in and the given texts, with each prompt in turn.

    Args:
        checkpoint: What the artifact is made from.
        contract: The artifact's.
        tokenizer_file: The artifact's tokenizer.json; its token ids are compared with transformers'.
        given: More texts, of the user's own domain.
        report: Told how many tokens are done.

    Raises:
        CheckpointError: sentence-transformers uses the checkpoint in another way than the contract says.
        MissingDependencyError: A package of the reference is not installed.
    """
    require_reference()
    tokenizer = Tokenizer(tokenizer_file, contract.max_tokens, contract.unicode_form)
    texts = verification_texts(tokenizer, contract, given)
    plain, names = [text.text for text in texts], [text.prompt_name for text in texts]
    reference = Reference(checkpoint.folder, contract)
    prompted = [reference.prompt(name) + text for text, name in texts]
    reference.require_same_ids(tokenizer, prompted)
    lengths = tokenizer.encode(prompted).lengths
    count = _Count("reference", int(lengths.sum()), report)
    embeddings = reference.embed(plain, names, lambda rows: count.add(int(lengths[rows].sum())))
    reference.close()
    return Expected(texts, lengths, embeddings)


def certify(
    artifact: Artifact,
    expected: Expected,
    gate: Gate,
    graph: GraphChoice = "padded",
    report: Progress = silent,
) -> Certificate:
    """Measure one graph of an artifact: all texts in shuffled mixed batches, and some of all lengths alone.

    Raises:
        FidelityError: The gate is missed.
    """
    rows = _rows_alone(expected.lengths, _batch_tokens(artifact.manifest.contract.max_tokens))
    stage = "measure" if graph == "padded" else "measure_packed"
    count = _Count(stage, int(expected.lengths.sum() + expected.lengths[rows].sum()), report)
    with _open(artifact, graph) as embedder:
        order = np.random.default_rng(0).permutation(len(expected.texts))
        together = np.empty_like(expected.embeddings)
        together[order] = _embed(embedder, expected, order, count)
        alone = np.concatenate([_embed(embedder, expected, row, count) for row in rows[:, None]])
        provider, file = embedder.session.providers[0], embedder.session.graph.file.name
    if artifact.manifest.contract.normalize:
        _require_unit_length(together)
    certificate = Certificate(
        overall=agreement(together, expected.embeddings),
        by_length=by_length(together, expected.embeddings, expected.lengths),
        batch_cosine_min=float(cosines(alone, together[rows]).min()),
        retrieval=retrieval(together, expected.embeddings),
        gate={name: bound for name, bound in vars(gate).items() if np.isfinite(bound)},
        texts_sha256=hashlib.sha256(json.dumps(list(expected.texts)).encode()).hexdigest(),
        measured_with={
            "cpu": cpu_name(),
            "provider": provider,
            "graph": file,
            "onnxruntime": import_onnxruntime().__version__,
            "tokenizers": tokenizers.__version__,
            **reference_versions(),
        },
        batch_texts=len(rows),
    )
    gate.check(certificate)
    return certificate


class _Count:
    """Adds up the tokens of a stage."""

    def __init__(self, stage: str, total: int, report: Progress) -> None:
        self._stage, self._total, self._report = stage, total, report
        self._done = 0
        report(stage, 0, total)

    def add(self, tokens: int) -> None:
        self._done += tokens
        self._report(self._stage, self._done, self._total)


def _embed(embedder: Embedder, expected: Expected, rows: npt.NDArray[np.intp], count: _Count) -> Array:
    """Embed some of the texts in batches that mix prompts: float32[len(rows), dim]."""
    ids: list[npt.NDArray[np.int32]] = []
    for row in rows:
        text, name = expected.texts[row]
        prompt = {"prompt": ""} if name == NO_PROMPT else {"prompt_name": name}
        ids += embedder.tokenize([text], **prompt).ids
    return embedder.embed_tokens(Tokens.of(ids), on_batch=count.add)


def _rows_alone(lengths: npt.NDArray[np.int32], batch_tokens: int) -> npt.NDArray[np.intp]:
    """Choose texts to embed alone too: some two dozen lengths, evenly on a logarithmic scale.

    A text that takes more than half of a batch has no company of its length there and is left out.
    """
    wanted = np.geomspace(lengths.min(), min(lengths.max(), batch_tokens // 2), _ALONE)
    distances = np.abs(np.log(lengths) - np.log(wanted)[:, None])
    return np.unique(distances.argmin(axis=1))


def _batch_tokens(limit: int) -> int:
    """Slots per batch: four of the longest texts, but one at a time if they have thousands of tokens.

    Without fused attention, the memory for its scores grows with the square of the length.
    """
    return min(4 * limit, max(limit, _BATCH_TOKENS))


def _open(artifact: Artifact, graph: GraphChoice) -> Embedder:
    """An embedder with large mixed batches, on the first device that the artifact is for.

    What is made for CUDA is measured on the CPU where there is no CUDA: ONNX Runtime then computes in fp32
    between the same roundings, and packed attention is spelled out (simulated.py). The runtime itself would
    refuse that.
    """
    device, target = "cpu", artifact.manifest.target
    if "cpu" not in target.devices:
        has_wheel = CUDA in import_onnxruntime().get_available_providers()
        device = "cuda" if has_wheel and isinstance(find_driver(), Driver) else "cpu"
        target = replace(target, devices=(*target.devices, "cpu"))
    opened = Artifact(artifact.path, replace(artifact.manifest, target=target))
    simulate = graph == "packed" and device == "cpu" and PACKED_CUDA_GRAPH in artifact.manifest.files
    session = (
        SimulatedSession(opened) if simulate else Session(opened, EngineOptions(device=device, graph=graph))
    )
    contract = artifact.manifest.contract
    tokenizer = Tokenizer(opened.tokenizer, contract.max_tokens, contract.unicode_form)
    return Embedder(opened, session, tokenizer, max_batch_tokens=_batch_tokens(contract.max_tokens))


def _require_unit_length(rows: Array) -> None:
    """Lengths need a check of their own: cosines do not see them."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    if not np.abs(lengths - 1).max() <= _UNIT_LENGTH_ERROR:
        raise FidelityError(
            f"embeddings have lengths from {lengths.min():.6f} to {lengths.max():.6f}: the contract says 1"
        )


def verify_artifact(
    artifact: Artifact,
    checkpoint: Checkpoint,
    given: Sequence[str] = (),
    tighten: Mapping[str, float] | None = None,
    graph: GraphChoice = "auto",
    report: Progress = silent,
) -> Certificate:
    """Repeat the measurement of a published artifact: by default of the graph that runs here.

    Raises:
        FidelityError: It misses its precision's gate, or the tightened one.
        InputError: The checkpoint is not the one that the artifact was made from.
    """
    made_from = artifact.manifest.source.weights_sha256
    total = checkpoint.weight_bytes
    if checkpoint.source(lambda done: report("hash", done, total)).weights_sha256 != made_from:
        raise InputError(
            f"{checkpoint.folder} has other weights than the artifact was made from "
            f"({artifact.manifest.source.repository}, SHA-256 {made_from[:12]}...): give that checkpoint"
        )
    gate = PRECISIONS[artifact.manifest.precision].gate.tightened(tighten or {})
    expected = expect(checkpoint, artifact.manifest.contract, artifact.tokenizer, given, report)
    return certify(artifact, expected, gate, graph, report)
