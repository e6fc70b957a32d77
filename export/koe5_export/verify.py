"""Artifact against reference: measure, gate, report.

The gate is what "proved" means: an artifact that misses it is never published. It can be tightened, not
loosened.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from koe5_export.checkpoint import Checkpoint
from koe5_export.reference import embed_reference, reference_versions, require_reference
from koe5_export.texts import verification_texts, with_prompts
from koe5_onnx import (
    Agreement,
    Artifact,
    Certificate,
    Contract,
    Embedder,
    FidelityError,
    InputError,
    Tokenizer,
    TruncationWarning,
)
from koe5_onnx.machine import cpu_name
from koe5_onnx.session import import_onnxruntime

Array = npt.NDArray[np.float32]

_BUCKETS = (16, 32, 64, 128, 256, 512, 8192)
"""Upper ends of the length buckets in the certificate, in tokens."""
_UNIT_LENGTH_ERROR = 1e-5
"""Rounding of a float32 sum over some thousand components."""


@dataclass(frozen=True)
class Gate:
    """Bounds that a certificate must keep."""

    cosine_min: float
    cosine_mean: float
    max_abs_diff: float
    """Largest difference of one component at unit length; inf where only cosines are bounded."""
    batch_cosine_min: float = 0.99999
    """A text alone against the same text in a batch."""

    def tightened(self, wanted: Mapping[str, float]) -> Gate:
        """This gate with some bounds replaced by stricter ones.

        Raises:
            InputError: A name is unknown, or a bound is looser than this gate's.
        """
        bounds = dict(vars(self))
        for name, value in wanted.items():
            if name not in bounds:
                raise InputError(f"no bound is called {name!r}: expected one of {', '.join(bounds)}")
            looser = value > bounds[name] if name == "max_abs_diff" else value < bounds[name]
            if looser:
                raise InputError(
                    f"{name}={value:g} is looser than the gate's {bounds[name]:g}: it can only be tightened"
                )
            bounds[name] = value
        return Gate(**bounds)

    def check(self, certificate: Certificate) -> None:
        """Compare a certificate with the bounds.

        Raises:
            FidelityError: One is missed; the message has all figures.
        """
        found = certificate.overall
        misses = [
            f"{name} {value:.7g}, allowed {bound:.7g}"
            for name, value, bound, good in (
                ("cosine_min", found.cosine_min, self.cosine_min, found.cosine_min >= self.cosine_min),
                ("cosine_mean", found.cosine_mean, self.cosine_mean, found.cosine_mean >= self.cosine_mean),
                (
                    "max_abs_diff",
                    found.max_abs_diff,
                    self.max_abs_diff,
                    found.max_abs_diff <= self.max_abs_diff,
                ),
                (
                    "batch_cosine_min",
                    certificate.batch_cosine_min,
                    self.batch_cosine_min,
                    certificate.batch_cosine_min >= self.batch_cosine_min,
                ),
            )
            if not good
        ]
        if misses:
            raise FidelityError(
                f"too far from PyTorch over {found.texts} texts: {'; '.join(misses)}. "
                f"All figures: {describe(certificate)}"
            )


GATES = {
    "fp32": Gate(cosine_min=0.999999, cosine_mean=0.999999, max_abs_diff=1e-5),
    "int8": Gate(cosine_min=0.98, cosine_mean=0.995, max_abs_diff=float("inf")),
}


def describe(certificate: Certificate) -> str:
    """The figures of a certificate on one line."""
    found = certificate.overall
    return (
        f"cosine to PyTorch min {found.cosine_min:.6f}, mean {found.cosine_mean:.6f}; largest difference "
        f"{found.max_abs_diff:.2e}; alone against in a batch {certificate.batch_cosine_min:.7f}"
    )


@dataclass(frozen=True)
class Expected:
    """Texts and what PyTorch makes of them."""

    texts: Sequence[str]
    """With their prompts in front."""
    lengths: npt.NDArray[np.int32]
    """int32[n]: tokens of each text after truncation."""
    embeddings: Array
    """float32[n, dim]."""


def expect(checkpoint: Checkpoint, contract: Contract, given: Sequence[str] = ()) -> Expected:
    """Run the reference over the built-in and the given texts, half as queries, half as passages.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
    """
    require_reference()
    tokenizer = Tokenizer(checkpoint.tokenizer, contract.max_tokens)
    plain = verification_texts(tokenizer, given)
    # The long texts end exactly at the limit as they are; a prompt would push them over.
    prompted = with_prompts(plain, contract)
    texts = [text if len(text) > 200 else full for text, full in zip(plain, prompted, strict=True)]
    lengths = tokenizer.encode(texts).lengths
    return Expected(texts, lengths, embed_reference(checkpoint.folder, contract, texts))


def certify(artifact: Artifact, expected: Expected, gate: Gate) -> Certificate:
    """Measure an artifact: all texts in shuffled mixed batches, and each alone.

    Raises:
        FidelityError: The gate is missed.
    """
    order = np.random.default_rng(0).permutation(len(expected.texts))
    together = np.empty_like(expected.embeddings)
    limit = artifact.manifest.contract.max_tokens
    with warnings.catch_warnings(), Embedder.open(artifact.path, max_batch_tokens=4 * limit) as embedder:
        warnings.simplefilter("ignore", TruncationWarning)  # some of the texts are there to be cut
        together[order] = embedder.encode([expected.texts[row] for row in order])
        alone = np.concatenate([embedder.encode([text]) for text in expected.texts])
    if artifact.manifest.contract.normalize:
        _require_unit_length(together)
    certificate = Certificate(
        overall=agreement(together, expected.embeddings),
        by_length=by_length(together, expected.embeddings, expected.lengths),
        batch_cosine_min=float(cosines(alone, together).min()),
        gate={name: bound for name, bound in vars(gate).items() if np.isfinite(bound)},
        texts_sha256=hashlib.sha256(json.dumps(list(expected.texts)).encode()).hexdigest(),
        measured_with={
            "cpu": cpu_name(),
            "onnxruntime": import_onnxruntime().__version__,
            **reference_versions(),
        },
    )
    gate.check(certificate)
    return certificate


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
) -> Certificate:
    """Repeat the measurement of a published artifact.

    Raises:
        FidelityError: It misses its gate.
        InputError: The checkpoint is not the one that the artifact was made from.
    """
    made_from = artifact.manifest.source.weights_sha256
    if checkpoint.source().weights_sha256 != made_from:
        raise InputError(
            f"{checkpoint.folder} has other weights than the artifact was made from "
            f"({artifact.manifest.source.repository}, SHA-256 {made_from[:12]}...): give that checkpoint"
        )
    gate = GATES[artifact.manifest.precision].tightened(tighten or {})
    return certify(artifact, expect(checkpoint, artifact.manifest.contract, given), gate)


def by_length(found: Array, reference: Array, lengths: npt.NDArray[np.int32]) -> dict[str, Agreement]:
    """Agreement in each bucket of lengths that has texts.

    Args:
        found: float32[n, dim].
        reference: float32[n, dim], of the same texts.
        lengths: int32[n]: tokens of each text.

    Returns:
        Bucket in tokens, as "33-128", to its agreement, shortest first.
    """
    buckets = length_buckets(lengths)
    return {bucket: agreement(found[rows], reference[rows]) for bucket, rows in buckets.items()}


def length_buckets(lengths: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[np.bool_]]:
    """Bucket in tokens, as "33-128", to the texts in it, bool[n]; only buckets that have some."""
    buckets: dict[str, npt.NDArray[np.bool_]] = {}
    low = 1
    for high in _BUCKETS:
        rows = (lengths >= low) & (lengths <= high)
        if rows.any():
            buckets[f"{low}-{high}"] = rows
        low = high + 1
    return buckets


def agreement(found: Array, reference: Array) -> Agreement:
    """Cosines and differences between two embeddings of each text, both float32[n, dim]."""
    per_text = cosines(found, reference)
    return Agreement(
        texts=len(per_text),
        cosine_min=float(per_text.min()),
        cosine_p1=float(np.percentile(per_text, 1)),
        cosine_mean=float(per_text.mean()),
        max_abs_diff=float(np.abs(_unit(found) - _unit(reference)).max()),
    )


def cosines(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """float64[n]: cosine of each row of a with the same row of b."""
    return np.asarray((_unit(a) * _unit(b)).sum(axis=1))


def _unit(rows: Array) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))
