"""Compare an artifact with PyTorch (the reference) on the same texts."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

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
from koe5_export.texts import (
    SAMPLE_PASSAGES,
    SAMPLE_QUERIES,
    VerificationText,
    verification_texts,
    with_prompts,
)
from koe5_export.weights import Array
from koe5_onnx import (
    Artifact,
    Certificate,
    Contract,
    Embedder,
    EngineOptions,
    FidelityError,
    Tokenizer,
    Tokens,
)
from koe5_onnx.artifact import PACKED_CUDA_GRAPH, GoldenEmbedding
from koe5_onnx.artifact.hashes import sha256_of
from koe5_onnx.engine.cuda.provider import Driver, find_driver
from koe5_onnx.engine.machine import cpu_name
from koe5_onnx.engine.providers import CUDA, import_onnxruntime
from koe5_onnx.engine.session import Session
from koe5_onnx.options import GraphChoice

_BATCH_TOKENS = 2048
_ALONE = 28
"""Number of lengths for which a text is embedded alone. Several lengths may select the same text."""
_UNIT_LENGTH_ERROR = 1e-5
"""Allowed difference between the length of an embedding and 1, for rounding errors of float32 sums."""


@dataclass(frozen=True)
class Expected:
    """Texts and their reference embeddings."""

    texts: Sequence[VerificationText]
    lengths: npt.NDArray[np.int32]
    """int32[n]: tokens of each text with its prompt, after truncation."""
    embeddings: Array
    """float32[n, dim]."""


_Key = tuple[Contract, tuple[str, ...], str]
_EXPECTED: WeakKeyDictionary[Checkpoint, tuple[_Key, Expected]] = WeakKeyDictionary()
"""Latest result of `expect` per open checkpoint, so that exports in several precisions run PyTorch once. The
key includes the SHA-256 of the tokenizer, because `expect` also checks token ids."""


def expect(
    checkpoint: Checkpoint,
    contract: Contract,
    tokenizer_file: Path,
    given: Sequence[str] = (),
    report: Progress = silent,
) -> Expected:
    """Compute the reference embeddings of the built-in and the given texts, with the prompts in turn.

    Args:
        checkpoint: Checkpoint of the artifact.
        contract: Contract of the artifact.
        tokenizer_file: The artifact's tokenizer.json. Its token ids are compared with those of transformers.
        given: More texts, for example from the user's domain.
        report: Called with the number of embedded tokens.

    Raises:
        CheckpointError: The settings or token ids of sentence-transformers differ from the artifact's.
        MissingDependencyError: A package of the reference is not installed.
    """
    key = contract, tuple(given), sha256_of(tokenizer_file, remember=False)
    known = _EXPECTED.get(checkpoint)
    if known is not None and known[0] == key:
        return known[1]
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
    expected = Expected(texts, lengths, embeddings)
    _EXPECTED[checkpoint] = key, expected
    return expected


def certify(
    artifact: Artifact,
    expected: Expected,
    gate: Gate,
    graph: GraphChoice = "padded",
    report: Progress = silent,
) -> Certificate:
    """Measure one graph of an artifact: all texts in batches, and some texts alone.

    Raises:
        FidelityError: A measured value is outside its bound.
    """
    rows = _rows_alone(expected.lengths, _batch_tokens(artifact.manifest.contract.max_tokens))
    stage = "measure" if graph == "padded" else "measure_packed"
    count = _Count(stage, int(expected.lengths.sum() + expected.lengths[rows].sum()), report)
    with _open(artifact, graph) as embedder:
        order = np.random.default_rng(0).permutation(len(expected.texts))
        together = np.empty_like(expected.embeddings)
        together[order] = _embed(embedder, expected, order, count)
        alone = np.concatenate([_embed(embedder, expected, row, count) for row in rows[:, None]])
        provider = embedder.session.providers[0]
        file = embedder.session.graph.file.relative_to(artifact.path).as_posix()
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


def golden_embeddings(artifact: Artifact) -> tuple[GoldenEmbedding, ...]:
    """Embed the texts of the self-test with the padded graph."""
    pairs = zip(SAMPLE_QUERIES, SAMPLE_PASSAGES, strict=False)
    texts = with_prompts([text for pair in pairs for text in pair], artifact.manifest.contract)
    with _open(artifact, "padded") as embedder:
        tokens = embedder.tokenize(texts, prompt="")
        embeddings = [b64encode(row).decode() for row in embedder.embed_tokens(tokens).astype("<f4")]
    return tuple(map(GoldenEmbedding, texts, (tuple(ids.tolist()) for ids in tokens.ids), embeddings))


class _Count:
    def __init__(self, stage: str, total: int, report: Progress) -> None:
        self._stage, self._total, self._report = stage, total, report
        self._done = 0
        report(stage, 0, total)

    def add(self, tokens: int) -> None:
        self._done += tokens
        self._report(self._stage, self._done, self._total)


def _embed(embedder: Embedder, expected: Expected, rows: npt.NDArray[np.intp], count: _Count) -> Array:
    """Embed the texts with the indices `rows`, in batches with mixed prompts: float32[len(rows), dim]."""
    ids: list[npt.NDArray[np.int32]] = []
    for row in rows:
        text, name = expected.texts[row]
        prompt = {"prompt": ""} if name == NO_PROMPT else {"prompt_name": name}
        ids += embedder.tokenize([text], **prompt).ids
    return embedder.embed_tokens(Tokens.of(ids), on_batch=count.add)


def _rows_alone(lengths: npt.NDArray[np.int32], batch_tokens: int) -> npt.NDArray[np.intp]:
    """Choose texts to embed alone, with lengths evenly spaced on a logarithmic scale; return their indices.

    Texts longer than half a batch are not chosen, because such a text can be the only one in its batch.
    """
    candidates = np.flatnonzero(lengths <= batch_tokens // 2)
    found = lengths[candidates]
    wanted = np.geomspace(found.min(), found.max(), _ALONE)
    distances = np.abs(np.log(found) - np.log(wanted)[:, None])
    nearest: npt.NDArray[np.intp] = np.unique(distances.argmin(axis=1))
    return candidates[nearest]


def _batch_tokens(limit: int) -> int:
    """Return the maximum tokens per batch: four texts of `limit` tokens, up to 2,048, but at least one text.

    In graphs without fused attention, the memory for attention scores grows with the square of the length.
    """
    return min(4 * limit, max(limit, _BATCH_TOKENS))


def _open(artifact: Artifact, graph: GraphChoice) -> Embedder:
    """Open an Embedder on the CPU if the artifact supports it, otherwise on CUDA if it is available.

    An artifact that supports only CUDA is measured on the CPU if there is no GPU, although `Embedder.open`
    would reject this. ONNX Runtime then computes fp16 nodes in fp32 and rounds their outputs to fp16.
    simulated.py replaces the packed attention, which has no CPU kernel.
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
    """Check that embeddings have unit length, because cosines do not depend on the length."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    if not np.abs(lengths - 1).max() <= _UNIT_LENGTH_ERROR:
        raise FidelityError(
            f"embeddings have lengths from {lengths.min():.6f} to {lengths.max():.6f}; expected 1"
        )


def verify_artifact(
    artifact: Artifact,
    checkpoint: Checkpoint,
    given: Sequence[str] = (),
    tighten: Mapping[str, float] | None = None,
    graph: GraphChoice = "auto",
    report: Progress = silent,
) -> Certificate:
    """Measure an artifact again, and return the new certificate.

    Args:
        artifact: The artifact.
        checkpoint: The checkpoint from which the artifact was exported.
        given: Texts to measure on in addition to the built-in ones.
        tighten: Bounds stricter than those of the precision's gate, by name.
        graph: Graph to measure; see `EngineOptions.graph`.
        report: Callback for the progress of each stage.

    Raises:
        FidelityError: A measured value is outside its bound.
        InputError: The artifact was not exported from this checkpoint, or a bound of `tighten` is not valid.
        CheckpointError, MissingDependencyError: See `expect`.
    """
    total = checkpoint.weight_bytes
    checkpoint.require_source(artifact.manifest.source, lambda done: report("hash", done, total))
    gate = PRECISIONS[artifact.manifest.precision].gate.tightened(tighten or {})
    expected = expect(checkpoint, artifact.manifest.contract, artifact.tokenizer, given, report)
    return certify(artifact, expected, gate, graph, report)
