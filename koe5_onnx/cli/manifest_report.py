"""Describe a manifest in words, for the command info, its HTML page and the command doctor.

certificate_report.py describes the certificate, and report.py defines the classes of a report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from koe5_onnx import Architecture, Certificate, Contract, Manifest, Source, Target
from koe5_onnx.cli.certificate_report import (
    agreement_in_words,
    batch_in_words,
    certificate_sections,
    cosine,
    short_hash,
    verdict,
)
from koe5_onnx.cli.report import Fact, Section, Table

UNVERIFIED = "the artifact was never compared with PyTorch. Export it again"


def name_of(manifest: Manifest) -> str:
    """Return the display name of the artifact."""
    return f"{manifest.source.repository}, {manifest.precision}"


def headline(manifest: Manifest) -> list[Fact]:
    """Return the most important figures."""
    certificate, size = manifest.certificate, Fact("size", _size_in_words(manifest.total_bytes))
    if certificate is None:
        return [size, Fact("certificate", "none")]
    return [
        Fact("smallest cosine to PyTorch", cosine(certificate.overall.cosine_min)),
        Fact("mean cosine", cosine(certificate.overall.cosine_mean)),
        Fact("nearest neighbors kept", f"{certificate.retrieval.overlap:.1%}"),
        Fact("gate", verdict(certificate)),
        size,
    ]


def sections(manifest: Manifest) -> Iterator[Section]:
    """Yield all sections of the manifest.

    Raises:
        ArtifactError: A histogram of the certificate has invalid counts.
    """
    yield Section(
        "Model",
        facts=[
            Fact("checkpoint", source(manifest.source)),
            Fact("weights", f"SHA-256 {short_hash(manifest.source.weights_sha256)}"),
            *_architecture(manifest.architecture),
        ],
    )
    yield Section("Precision", facts=[Fact("precision", manifest.precision), *_recipe(manifest)])
    yield Section("Target", facts=[*_target(manifest.target)])
    yield Section("Contract", facts=contract(manifest.contract))
    yield Section("Files", tables=[_files(manifest)])
    if manifest.certificate is None:
        yield Section("Certificate", notes=[f"No certificate: {UNVERIFIED}."])
    else:
        yield from certificate_sections(manifest.certificate, manifest.target)
    if manifest.packed_certificate is not None:
        yield Section("Packed graph", facts=_packed(manifest.packed_certificate))


def _packed(certificate: Certificate) -> list[Fact]:
    return [
        Fact("cosine to PyTorch", agreement_in_words(certificate.overall)),
        Fact("alone or in a batch", batch_in_words(certificate)),
        Fact("nearest neighbors kept", f"{certificate.retrieval.overlap:.1%}"),
        Fact("gate", verdict(certificate)),
        Fact("CPU", certificate.measured_with.get("cpu", "unknown")),
    ]


def source(found: Source) -> str:
    """Return the repository and the revision of the checkpoint."""
    return f"{found.repository} at {found.revision or 'an unknown revision'}"


def contract(found: Contract) -> list[Fact]:
    """Describe how texts become embeddings. The values are clear without the names (doctor joins them)."""
    prompts = ", ".join(f"{_quoted(text)} for {name}" for name, text in found.prompts.items())
    return [
        Fact("pooling", f"{found.pooling} pooling"),
        Fact("length", "unit length" if found.normalize else "not normalized"),
        Fact("similarity", f"{found.similarity} similarity"),
        Fact("embedding", f"{found.dim:,} dimensions"),
        *_shortened(found),
        Fact("input", f"at most {found.max_tokens:,} tokens"),
        Fact("Unicode", "normalized to NFC" if found.unicode_form else "no Unicode normalization"),
        Fact("prompts", prompts or "no prompts"),
        *(
            [Fact("default prompt", f"{found.default_prompt_name} by default")]
            if found.default_prompt_name
            else []
        ),
    ]


def _shortened(found: Contract) -> Iterator[Fact]:
    if shorter := [f"{dim:,}" for dim in found.dims[:-1]]:
        yield Fact("shortened", f"to {' or '.join(shorter)} dimensions on request")


def _size_in_words(size_bytes: int) -> str:
    """Format a size in the largest unit, up to GB, in which it is at least 1."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} bytes"


def _architecture(found: Architecture) -> list[Fact]:
    shape = (
        f"{found.model_type}, {found.layers} layers, width {found.hidden:,}, {found.heads} heads, "
        f"FFN {found.intermediate:,}, vocabulary {found.vocabulary:,}"
    )
    return [Fact("architecture", shape), Fact("parameters", f"{found.parameters:,}")]


def _recipe(manifest: Manifest) -> Iterator[Fact]:
    for name, value in manifest.recipe.items():
        words = value if isinstance(value, str) else _quoted(value)
        yield Fact(name.replace("_", " "), short_hash(words) if name.endswith("sha256") else words)


def _target(found: Target) -> Iterator[Fact]:
    yield Fact("devices", " and ".join(found.devices) or "none")
    if found.instructions:
        yield Fact("instructions", f"one of {', '.join(found.instructions)}")
        yield Fact("without them", found.without)
    elif "cpu" in found.devices:
        yield Fact("instructions", "any CPU")


def _files(manifest: Manifest) -> Table:
    rows = [
        (name, _size_in_words(file.bytes), f"{file.bytes:,}", short_hash(file.sha256))
        for name, file in manifest.files.items()
    ]
    total = ("all", _size_in_words(manifest.total_bytes), f"{manifest.total_bytes:,}", "")
    return Table(
        "Files (sizes checked, hashes not checked)",
        ("file", "size", "bytes", "SHA-256"),
        [*rows, total],
    )


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
