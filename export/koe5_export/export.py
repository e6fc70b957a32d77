"""The export pipeline: checkpoint -> contract -> graph -> verify -> artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from koe5_export.artifact_writer import ArtifactOptions, ArtifactSpec, write_artifact
from koe5_export.calibrate import Calibration
from koe5_export.checkpoint import Checkpoint
from koe5_export.config import read_config
from koe5_export.contract import read_contract
from koe5_export.graph import write_encoder
from koe5_export.optimum import require_optimum, write_with_optimum
from koe5_export.packed_cpu import why_not_packed_cpu, write_packed_cpu
from koe5_export.packed_cuda import why_not_packed_cuda, write_packed_cuda
from koe5_export.precision import PRECISIONS, Precision
from koe5_export.progress import Progress, silent
from koe5_export.smooth import SmoothLayer, plain, smooth
from koe5_export.texts import CALIBRATION, with_prompts
from koe5_export.weights import Layer, Norm
from koe5_export.writer import GraphWriter
from koe5_onnx import Artifact, InputError, Tokenizer
from koe5_onnx.artifact import GRAPHS, PACKED_CPU_GRAPH, PACKED_CUDA_GRAPH, TOKENIZER
from koe5_onnx.engine.graphs import installed_kernels


@dataclass(frozen=True)
class ExportOptions(ArtifactOptions):
    """Options of an export."""

    precision: str = "fp32"
    """Name in `PRECISIONS`: fp32, fp16, int8, int8-block or int4-block."""
    exporter: str = "builder"
    """"builder" writes the graph node by node (graph.py); "optimum" traces PyTorch (fp32 only)."""
    calibration: Sequence[str] = CALIBRATION
    """Texts for calibrating quantization; they get the query prompt and the passage prompt in turn."""


def export_checkpoint(
    checkpoint: Checkpoint, out: Path, options: ExportOptions | None = None, progress: Progress = silent
) -> Artifact:
    """Export a checkpoint, measure the artifact against PyTorch, and keep it as the folder `out`.

    Args:
        checkpoint: The opened checkpoint.
        out: Folder of the artifact.
        options: See ExportOptions.
        progress: Callback for the progress of each stage.

    Returns:
        The artifact; its manifest holds the certificate.

    Raises:
        InputError: `out` exists and cannot be replaced, an option is not valid, or the disk is full.
        CheckpointError: The checkpoint cannot be exported.
        FidelityError: The artifact is outside the bounds of its gate; no artifact is written.
        MissingDependencyError: torch, transformers, sentence-transformers or the requested exporter is not
            installed.
    """
    options = options or ExportOptions()
    _require_exporter(checkpoint, options)
    if options.precision not in PRECISIONS:
        raise InputError(f"precision is {options.precision!r}; expected one of {', '.join(PRECISIONS)}")
    precision = PRECISIONS[options.precision]
    spec = ArtifactSpec(
        checkpoint=checkpoint,
        contract=read_contract(checkpoint, options),
        precision=precision,
        options=options,
    )

    def write(folder: Path, report: Progress) -> Mapping[str, Any]:
        if options.exporter == "optimum":
            return write_with_optimum(spec, folder, report)
        exceptions = write_graph(spec, options.calibration, folder, report)
        recipe = _recipe(precision, options.calibration, exceptions)
        return recipe | {"packed_graph": _write_packed(spec, folder, exceptions)}

    return write_artifact(spec, write, out, progress)


def _require_exporter(checkpoint: Checkpoint, options: ExportOptions) -> None:
    if options.exporter == "optimum":
        require_optimum()
        if options.precision != "fp32":
            raise InputError(f"precision is {options.precision!r}, but the exporter optimum writes fp32 only")
    elif options.exporter == "builder":
        read_config(checkpoint.encoder_folder)  # rejects encoders that only `any_encoder` allows
    else:
        raise InputError(f"exporter is {options.exporter!r}; expected builder or optimum")


def write_graph(
    spec: ArtifactSpec, calibration: Sequence[str], folder: Path, report: Progress = silent
) -> list[str]:
    """Write the padded graph and its weights, layer by layer.

    Args:
        spec: Checkpoint, contract and precision.
        calibration: Texts without prompts; not used by precisions without smoothing.
        folder: Folder of the artifact, with its tokenizer.json.
        report: Called with the number of layers written so far.

    Returns:
        Names of the linear layers for which `Precision.is_exception` is True.
    """
    exceptions: list[str] = []
    stage = "layers" if spec.precision.strengths is None else "calibrate"
    total = spec.checkpoint.config.layers
    report(stage, 0, total)  # now, because writing the embedding tables before the first layer takes time
    with GraphWriter(folder / GRAPHS[spec.precision.name]) as writer:
        ready = _layers(spec, calibration, folder / TOKENIZER, exceptions)
        layers = _counted(ready, lambda done: report(stage, done, total))
        write_encoder(writer, spec.checkpoint, spec.contract, layers, spec.precision)
    return exceptions


def _write_packed(spec: ArtifactSpec, folder: Path, exceptions: Sequence[str]) -> str:
    """Write the packed graph if possible; return "yes", or "no: " and the reason."""
    if "cuda" not in spec.precision.target.devices or "cpu" in spec.precision.target.devices:
        return _write_packed_cpu(spec, folder, exceptions)
    config = spec.checkpoint.config
    if reason := why_not_packed_cuda(spec.precision.name, config.hidden // config.heads):
        return f"no: {reason}"
    write_packed_cuda(folder / GRAPHS[spec.precision.name], folder / PACKED_CUDA_GRAPH, spec.contract)
    return "yes"


def _write_packed_cpu(spec: ArtifactSpec, folder: Path, exceptions: Sequence[str]) -> str:
    """Write the packed graph for CPUs if possible; return "yes", or "no: " and the reason.

    The fused kernels must be installed, because the graph must be measured.
    """
    config = spec.checkpoint.config
    if reason := why_not_packed_cpu(spec.precision.name, exceptions, config):
        return f"no: {reason}"
    kernels = installed_kernels()
    if isinstance(kernels, str):
        return f"no: it cannot be measured because {kernels}"
    padded = folder / GRAPHS[spec.precision.name]
    write_packed_cpu(padded, folder / PACKED_CPU_GRAPH, config, spec.contract)
    return "yes"


def _recipe(precision: Precision, texts: Sequence[str], exceptions: Sequence[str]) -> dict[str, Any]:
    recipe = dict(precision.recipe())
    if precision.strengths is not None:
        recipe |= {
            "smoothing_strengths": asdict(precision.strengths),
            "linears_in_finer_blocks": list(exceptions),
            "calibration_texts": len(texts),
            "calibration_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        }
    return recipe


def _layers(
    spec: ArtifactSpec, calibration: Sequence[str], tokenizer_file: Path, exceptions: list[str]
) -> Iterator[SmoothLayer]:
    """Yield the encoder layers in order, smoothed and rounded as the precision requires.

    Each layer is read when it is requested. The names of linear layers for which `Precision.is_exception` is
    True are added to `exceptions`.
    """
    checkpoint, strengths = spec.checkpoint, spec.precision.strengths
    if strengths is None:
        yield from (plain(norm, layer) for norm, layer in _read(checkpoint))
        return
    tokenizer = Tokenizer(tokenizer_file, spec.contract.max_tokens, spec.contract.unicode_form)
    texts = Calibration(checkpoint, tokenizer.encode(with_prompts(calibration, spec.contract)).ids)
    heads = checkpoint.config.heads
    for number, (norm, layer) in enumerate(_read(checkpoint)):
        inputs = texts.advance(norm, layer)
        ready = smooth(norm, layer, inputs, strengths, heads, spec.precision.round_weight)
        exceptions += [f"layer.{number}.{name}" for name in _exceptions(ready, spec.precision)]
        yield ready


def _exceptions(layer: SmoothLayer, precision: Precision) -> Iterator[str]:
    for name in ("query", "key", "value", "output", "up", "down"):
        rounded = getattr(layer, name).rounded
        if rounded is not None and precision.is_exception(rounded):
            yield name


def _read(checkpoint: Checkpoint) -> Iterator[tuple[Norm, Layer]]:
    """Yield each encoder layer together with the LayerNorm before it."""
    norm = checkpoint.embedding_norm()
    for number in range(checkpoint.config.layers):
        layer = checkpoint.layer(number)
        yield norm, layer
        norm = layer.output_norm


def _counted(layers: Iterator[SmoothLayer], report: Callable[[int], None]) -> Iterator[SmoothLayer]:
    for done, layer in enumerate(layers, 1):
        yield layer
        report(done)
