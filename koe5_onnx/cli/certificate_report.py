"""Describe a certificate in words: agreement with PyTorch, influence of batches, search results, the gate.

The gate is the set of bounds that the measured figures had to satisfy. This module measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from koe5_onnx import Agreement, ArtifactError, Certificate, Retrieval, Target
from koe5_onnx.artifact import ERROR_BINS
from koe5_onnx.cli.report import Fact, Histogram, Histograms, Section, Table, counted

_NAMES = {"cpu": "CPU", "onnxruntime": "ONNX Runtime", "torch": "PyTorch"}
"""Display names of keys of `Certificate.measured_with`; other keys are shown as they are."""
_BOUNDS: Mapping[str, tuple[str, Callable[[Certificate], float]]] = {
    "cosine_min": ("smallest cosine", lambda found: found.overall.cosine_min),
    "cosine_mean": ("mean cosine", lambda found: found.overall.cosine_mean),
    "max_abs_diff": ("largest difference of a component", lambda found: found.overall.max_abs_diff),
    "batch_cosine_min": ("smallest cosine, alone vs. in a batch", lambda found: found.batch_cosine_min),
}
_FAILED, _UNKNOWN = "FAILED", "unknown bound"


def certificate_sections(found: Certificate, target: Target) -> Iterator[Section]:
    """Yield the sections of a certificate.

    Raises:
        ArtifactError: A histogram has invalid counts.
    """
    agreements = {"all lengths": found.overall}
    agreements.update((f"{bucket} tokens", agreement) for bucket, agreement in found.by_length.items())
    yield Section(
        "Agreement with PyTorch",
        notes=_measured_elsewhere(found, target),
        tables=[_cosines(agreements)],
        histograms=_histograms(agreements, found.gate.get("cosine_min")),
    )
    yield Section("In batches and in a search", facts=_effects(found, found.retrieval))
    yield Section("Gate", tables=[_gate_table(found)])
    measured = [Fact(_NAMES.get(name, name), value) for name, value in found.measured_with.items()]
    texts = f"{counted(found.overall.texts, 'text')}, SHA-256 {short_hash(found.texts_sha256)}"
    yield Section("Measured with", facts=[*measured, Fact("texts", texts)])


def verdict(found: Certificate) -> str:
    """Return the result of the gate in one or two words, such as "passed"."""
    results = [row[-1] for row in _gate_table(found).rows]
    for result in (_FAILED, _UNKNOWN):
        if result in results:
            return result
    return "passed" if results else "none"


def agreement_in_words(found: Agreement) -> str:
    """Return the cosine statistics of an agreement on one line."""
    return (
        f"min {cosine(found.cosine_min)}, 1st percentile {cosine(found.cosine_p1)}, "
        f"mean {cosine(found.cosine_mean)} over {counted(found.texts, 'text')}"
    )


def batch_in_words(certificate: Certificate) -> str:
    """Return how much an embedding depends on the other texts in its batch."""
    count = certificate.overall.texts if certificate.batch_texts is None else certificate.batch_texts
    return f"cosine at least {cosine(certificate.batch_cosine_min)} over {counted(count, 'text')}"


def cosine(value: float) -> str:
    """Format a cosine with six decimals."""
    return f"{value:.6f}"


def short_hash(sha256: str) -> str:
    """Return the first 12 characters of a hash, followed by "..."."""
    return sha256 if len(sha256) <= 12 else f"{sha256[:12]}..."


def _measured_elsewhere(found: Certificate, target: Target) -> Sequence[str]:
    if found.measured_with.get("provider") != "CPUExecutionProvider" or "cpu" in target.devices:
        return ()
    devices = " and ".join(target.devices) or "no device"
    return (
        f"Measured on a CPU (CPUExecutionProvider), but the artifact is made for {devices}. The figures "
        "apply to the CPU and not to the kernels of the target device. To measure those, run koe5-onnx "
        "verify on such a device.",
    )


def _cosines(agreements: dict[str, Agreement]) -> Table:
    columns = ("length", "texts", "min", "1st percentile", "mean", "largest 1 - cosine", "largest component")
    rows = [
        (
            name,
            f"{found.texts:,}",
            *(cosine(value) for value in (found.cosine_min, found.cosine_p1, found.cosine_mean)),
            f"{abs(1 - found.cosine_min):.1e}",  # a cosine may be above 1 because of rounding
            f"{found.max_abs_diff:.1e}",
        )
        for name, found in agreements.items()
    ]
    return Table(
        "Cosine to PyTorch and largest difference of one component, by length of the text", columns, rows
    )


def _histograms(agreements: dict[str, Agreement], cosine_min: float | None) -> Histograms:
    panels = [
        Histogram(name, agreement_in_words(found), _counts(name, found)) for name, found in agreements.items()
    ]
    bound = None if cosine_min is None or not 0 < 1 - cosine_min <= ERROR_BINS[-1] else 1 - cosine_min
    return Histograms("Number of texts by 1 - cosine and length", panels, bound)


def _counts(name: str, found: Agreement) -> list[int]:
    known = {f"{end:g}": index for index, end in enumerate(ERROR_BINS)}
    counts = [0] * len(ERROR_BINS)
    for key, count in found.error_counts.items():
        if key not in known or count < 0:
            raise ArtifactError(
                f"the certificate's error_counts ({name}) have {count} texts in the bin {key!r}: expected "
                f"counts of 0 or more in the bins {', '.join(known)}. Export the artifact again"
            )
        counts[known[key]] = count
    if sum(counts) != found.texts:
        raise ArtifactError(
            f"the certificate's error_counts ({name}) have {sum(counts)} texts in total: expected "
            f"{found.texts}. Export the artifact again"
        )
    return counts


def _effects(found: Certificate, search: Retrieval) -> list[Fact]:
    facts = [
        Fact("alone or in a batch", batch_in_words(found)),
        Fact(
            "nearest neighbors kept",
            f"{search.overlap:.2%} of the {search.neighbors} nearest, "
            f"with each of {counted(search.texts, 'text')} as a query for the others",
        ),
        Fact("rank correlation", f"{search.rank_correlation:.6f} (Spearman, of each text's similarities)"),
        Fact("largest similarity change", f"{search.similarity_error:.2g} between two texts"),
    ]
    spread = (search.similarity_p5, search.similarity_p50, search.similarity_p95)
    if None not in spread:
        low, middle, high = (f"{value:.3f}" for value in spread)
        facts.append(
            Fact(
                "spread of similarities",
                f"{low} to {high} for 90% of the pairs of texts, median {middle} (PyTorch)",
            )
        )
    return facts


def _gate_table(found: Certificate) -> Table:
    columns = ("bound", "required", "measured", "result")
    rows = [_gate_row(found, name, bound) for name, bound in found.gate.items()]
    return Table("Bounds of the gate and measured values", columns, rows)


def _gate_row(found: Certificate, name: str, bound: float) -> tuple[str, str, str, str]:
    if name not in _BOUNDS:
        return name, f"{bound:.7g}", "", _UNKNOWN
    words, value_of = _BOUNDS[name]
    value = value_of(found)
    most = name == "max_abs_diff"
    passed = value <= bound if most else value >= bound
    required = f"at {'most' if most else 'least'} {bound:.7g}"
    return f"{words} ({name})", required, f"{value:.7g}", "passed" if passed else _FAILED
