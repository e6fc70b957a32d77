"""Folders that Optimum or somebody else exported, taken over as artifacts, or refused if too far off.

The folder gives the graph, and nothing else that counts: tokenizer, contract and reference are those of the
PyTorch checkpoint, which is the folder itself if it holds weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import TensorProto

from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.precision import PRECISIONS
from koe5_export.progress import Progress, silent
from koe5_export.publish import Plan, PublishOptions, publish
from koe5_export.tensors import SAFETENSORS, TORCH, has_weights
from koe5_export.traced import read_graph, subgraphs, write_traced
from koe5_onnx import Artifact, InputError
from koe5_onnx.artifact import describe_file

_PLACES = ("onnx/model.onnx", "model.onnx")
_INT8_OPERATORS = {
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QEmbedLayerNormalization",
    "QGemm",
    "QLinearMatMul",
    "QuantizeLinear",
}


@dataclass(frozen=True)
class ImportOptions(PublishOptions):
    """What an import may be told."""

    checkpoint: str | Path | None = None
    """Folder or Hub id of the PyTorch checkpoint; None takes the imported folder's own weights."""
    file: str | None = None
    """The graph inside the folder; None takes onnx/model.onnx or model.onnx."""
    precision: str | None = None
    """What the graph claims to be, which decides the gate; None looks at its operators and weights."""


def import_folder(
    folder: Path, out: Path, options: ImportOptions | None = None, progress: Progress = silent
) -> Artifact:
    """Give an exported graph an artifact's interface, measure it against PyTorch, and publish it as `out`.

    Args:
        folder: Holds the graph, and (unless `options.checkpoint` names it) its checkpoint.
        out: Folder of the artifact.
        options: See ImportOptions.
        progress: Told how far the steps are.

    Returns:
        The published artifact; its manifest holds the certificate.

    Raises:
        InputError: There is no graph, no checkpoint to measure against, or the graph has an interface or a
            precision that cannot be dealt with; `out` exists, or an option is out of range.
        CheckpointError: The checkpoint cannot be measured against.
        FidelityError: The graph misses the gate of its precision; nothing is left behind.
        MissingDependencyError: torch or transformers is not installed.
    """
    options = options or ImportOptions()
    name = _graph_name(folder, options.file)
    file = folder / name
    checkpoint = _checkpoint(folder, options.checkpoint)
    detected = detect_precision(file)
    precision = PRECISIONS[_require_known(file, options.precision or detected)]
    plan = Plan(
        checkpoint=checkpoint,
        contract=read_contract(checkpoint, options),
        precision=precision,
        options=options,
    )

    def write(graph: Path, weights: Path, report: Progress) -> Mapping[str, Any]:
        report("import", 0, 1)
        about = write_traced(file, plan.contract, graph, weights)
        report("import", 1, 1)
        imported = {"file": name, "file_sha256": describe_file(file).sha256, "detected_precision": detected}
        return {"exporter": "import", **imported, **about}

    return publish(plan, write, out, progress)


def detect_precision(file: Path) -> str:
    """The precision of a graph, by this project's names, from its operators and weights.

    Raises:
        InputError: The file is no ONNX graph.
    """
    graph = read_graph(file).graph
    nodes = list(_nodes(graph))
    if any(node.op_type == "MatMulIntegerToFloat" for node in nodes):
        return "int8"  # this project's, which may have a few linears in blocks
    for node in nodes:
        if node.op_type == "MatMulNBits":
            bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
            return f"int{bits}-block"
    if any(node.op_type in _INT8_OPERATORS for node in nodes):
        return "int8"
    types = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    narrow = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    return next((name for type_, name in narrow.items() if type_ in types), "fp32")


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from _nodes(inner)


def _graph_name(folder: Path, name: str | None) -> str:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: expected one with {' or '.join(_PLACES)}")
    names = _PLACES if name is None else (name,)
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None:
        there = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.onnx"))
        raise InputError(
            f"{folder} has no {' or '.join(names)}: name the graph with --file "
            f"({', '.join(there) if there else 'the folder has no .onnx file'})"
        )
    return found


def _checkpoint(folder: Path, name: str | Path | None) -> Checkpoint:
    if name is None and not has_weights(folder):
        raise InputError(
            f"{folder} has no {SAFETENSORS} or {TORCH}: nothing can be proved without the PyTorch checkpoint "
            "that the graph was exported from; name its folder or Hub id with --checkpoint"
        )
    return Checkpoint.open(folder if name is None else name, any_encoder=True)


def _require_known(file: Path, precision: str) -> str:
    if precision not in PRECISIONS:
        raise InputError(
            f"{file} is {precision}: expected {', '.join(PRECISIONS)}, which have a gate; "
            "name one of them with --precision if that is what it should be held to"
        )
    return precision
