"""The export line: checkpoint -> contract -> graph -> verify -> publish."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from koe5_export.calibrate import Calibration
from koe5_export.checkpoint import Checkpoint
from koe5_export.config import read_config
from koe5_export.contract import read_contract
from koe5_export.fused import why_not_fused, write_fused
from koe5_export.graph import write_encoder
from koe5_export.optimum import require_optimum, write_with_optimum
from koe5_export.packed import why_not_packed, write_packed
from koe5_export.precision import PRECISIONS, Precision
from koe5_export.progress import Progress, silent
from koe5_export.publish import Plan, PublishOptions, publish
from koe5_export.smooth import SmoothLayer, plain, smooth
from koe5_export.texts import CALIBRATION, with_prompts
from koe5_export.weights import Layer, Norm
from koe5_export.writer import GraphWriter
from koe5_onnx import Artifact, InputError, Tokenizer
from koe5_onnx.artifact import PACKED_CPU_GRAPH, PACKED_CUDA_GRAPH, TOKENIZER
from koe5_onnx.engine.graphs import installed_kernels


@dataclass(frozen=True)
class ExportOptions(PublishOptions):
    """What an export may be told."""

    precision: str = "fp32"
    exporter: str = "builder"
    """What writes the graph: this project's "builder", or "optimum", which traces PyTorch (fp32 only)."""
    calibration: Sequence[str] = CALIBRATION
    """Texts that quantization is fitted to; half get the query prompt, half the passage prompt."""


def export_checkpoint(
    checkpoint: Checkpoint, out: Path, options: ExportOptions | None = None, progress: Progress = silent
) -> Artifact:
    """Export a checkpoint, measure it against PyTorch, and publish it as the folder `out`.

    Args:
        checkpoint: The opened checkpoint.
        out: Folder of the artifact.
        options: See ExportOptions.
        progress: Told how far the steps are.

    Returns:
        The published artifact; its manifest holds the certificate.

    Raises:
        InputError: `out` exists, an option is out of range, or the disk has no room.
        CheckpointError: The checkpoint cannot be exported.
        FidelityError: The artifact misses its gate; nothing is left behind.
        MissingDependencyError: torch, transformers or (where it is asked for) optimum is not installed.
    """
    options = options or ExportOptions()
    _require_exporter(checkpoint, options)
    if options.precision not in PRECISIONS:
        raise InputError(f"precision is {options.precision!r}: expected one of {', '.join(PRECISIONS)}")
    precision = PRECISIONS[options.precision]
    plan = Plan(
        checkpoint=checkpoint,
        contract=read_contract(checkpoint, options),
        precision=precision,
        options=options,
    )

    def write(graph: Path, weights: Path, report: Progress) -> Mapping[str, Any]:
        if options.exporter == "optimum":
            return write_with_optimum(plan, graph, weights, report)
        exceptions = write_graph(plan, options.calibration, graph, weights, report)
        recipe = _recipe(precision, options.calibration, exceptions)
        return recipe | _write_second(plan, graph, exceptions)

    return publish(plan, write, out, progress)


def _require_exporter(checkpoint: Checkpoint, options: ExportOptions) -> None:
    """Check that the exporter is known, installed, and fits precision and encoder."""
    if options.exporter == "optimum":
        require_optimum()
        if options.precision != "fp32":
            raise InputError(f"precision is {options.precision!r}: the exporter optimum writes fp32 only")
    elif options.exporter == "builder":
        read_config(checkpoint.encoder_folder)  # refuses what was opened with `any_encoder`
    else:
        raise InputError(f"exporter is {options.exporter!r}: expected builder or optimum")


def write_graph(
    plan: Plan, calibration: Sequence[str], graph: Path, weights: Path, report: Progress = silent
) -> list[str]:
    """Write graph and weights, layer by layer: only one layer is in memory at a time.

    Args:
        plan: Says what and in which precision.
        calibration: Texts without prompts; used where the precision asks for smoothing.
        graph: File of the graph.
        weights: File of its weights, in the same folder.
        report: Told how many layers are done.

    Returns:
        Names of the linears that were rounded more finely than the precision usually does.
    """
    exceptions: list[str] = []
    stage = "layers" if plan.precision.strengths is None else "calibrate"
    total = plan.checkpoint.config.layers
    report(stage, 0, total)  # the embedding tables come before the first layer
    with GraphWriter(graph, weights) as writer:
        ready = _layers(plan, calibration, graph.with_name(TOKENIZER), exceptions)
        layers = _counted(ready, lambda done: report(stage, done, total))
        write_encoder(writer, plan.checkpoint, plan.contract, layers, plan.precision)
    return exceptions


def _write_second(plan: Plan, graph: Path, exceptions: Sequence[str]) -> dict[str, str]:
    """Write the graph that pads nothing, where there is one; what the manifest says of it."""
    if "cuda" not in plan.precision.target.devices or "cpu" in plan.precision.target.devices:
        return {"fused_graph": _write_fused(plan, graph, exceptions)}
    config = plan.checkpoint.config
    if reason := why_not_packed(plan.precision.name, config.hidden // config.heads):
        return {"packed_graph": f"no: {reason}"}
    write_packed(graph, graph.with_name(PACKED_CUDA_GRAPH), plan.contract)
    return {"packed_graph": "yes"}


def _write_fused(plan: Plan, graph: Path, exceptions: Sequence[str]) -> str:
    """Write the graph for fused kernels where it exists and can be measured; "yes", or why there is none."""
    config = plan.checkpoint.config
    if reason := why_not_fused(plan.precision.name, exceptions, config):
        return f"no: {reason}"
    kernels = installed_kernels()
    if isinstance(kernels, str):
        return f"no: it could not be measured, {kernels}"
    write_fused(graph, graph.with_name(PACKED_CPU_GRAPH), config, plan.contract)
    return "yes"


def _recipe(precision: Precision, texts: Sequence[str], exceptions: Sequence[str]) -> dict[str, Any]:
    """How the precision was reached, for the manifest."""
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
    plan: Plan, calibration: Sequence[str], tokenizer_file: Path, exceptions: list[str]
) -> Iterator[SmoothLayer]:
    """The layers in order, each read once and as it is asked for, ready to be written.

    Names of linears that were rounded in an exceptional way are added to `exceptions`.
    """
    checkpoint, strengths = plan.checkpoint, plan.precision.strengths
    if strengths is None:
        yield from (plain(norm, layer) for norm, layer in _read(checkpoint))
        return
    tokenizer = Tokenizer(tokenizer_file, plan.contract.max_tokens, plan.contract.unicode_form)
    texts = Calibration(checkpoint, tokenizer.encode(with_prompts(calibration, plan.contract)).ids)
    heads = checkpoint.config.heads
    for number, (norm, layer) in enumerate(_read(checkpoint)):
        inputs = texts.advance(norm, layer)
        ready = smooth(norm, layer, inputs, strengths, heads, plan.precision.round_weight)
        exceptions += [f"layer.{number}.{name}" for name in _exceptions(ready, plan.precision)]
        yield ready


def _exceptions(layer: SmoothLayer, precision: Precision) -> Iterator[str]:
    for name in ("query", "key", "value", "output", "up", "down"):
        rounded = getattr(layer, name).rounded
        if rounded is not None and precision.is_exception(rounded):
            yield name


def _read(checkpoint: Checkpoint) -> Iterator[tuple[Norm, Layer]]:
    """Each layer with the norm in front of it."""
    norm = checkpoint.embedding_norm()
    for number in range(checkpoint.config.layers):
        layer = checkpoint.layer(number)
        yield norm, layer
        norm = layer.output_norm


def _counted(layers: Iterator[SmoothLayer], report: Callable[[int], None]) -> Iterator[SmoothLayer]:
    for done, layer in enumerate(layers, 1):
        yield layer
        report(done)
