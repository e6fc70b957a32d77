"""Import an ONNX graph that Optimum or another tool exported, and write it as an artifact.

Only the graph comes from that tool. Tokenizer, contract and reference embeddings come from the PyTorch
checkpoint, which may be in the same folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import TensorProto

from koe5_export.artifact_writer import ArtifactOptions, ArtifactSpec, write_artifact
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.precision import PRECISIONS
from koe5_export.progress import Progress, silent
from koe5_export.tensors import SAFETENSORS, TORCH, has_weights
from koe5_export.traced import read_graph, subgraphs, write_traced
from koe5_onnx import Artifact, InputError
from koe5_onnx.artifact import GRAPHS, describe_file

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
class ImportOptions(ArtifactOptions):
    """Options of an import."""

    checkpoint: str | Path | None = None
    """Folder or Hub id of the PyTorch checkpoint; None uses the weights in the imported folder."""
    file: str | None = None
    """Path of the graph in the folder; None uses onnx/model.onnx or model.onnx."""
    precision: str | None = None
    """Precision whose bounds the artifact must satisfy; None detects it from the graph."""


def import_folder(
    folder: Path, out: Path, options: ImportOptions | None = None, progress: Progress = silent
) -> Artifact:
    """Convert an exported graph to a padded graph, measure it against PyTorch, and keep it as `out`.

    Args:
        folder: Folder of the graph and, unless `options.checkpoint` is set, of its checkpoint.
        out: Folder of the artifact.
        options: See ImportOptions.
        progress: Callback for the progress of each stage.

    Returns:
        The artifact; its manifest holds the certificate.

    Raises:
        InputError: The graph or the checkpoint is missing, the graph's interface or precision is not
            supported, `out` exists and cannot be replaced, an option is not valid, or the disk is full.
        CheckpointError: The checkpoint is not supported.
        FidelityError: The graph is outside the bounds of its precision; no artifact is written.
        MissingDependencyError: torch, transformers or sentence-transformers is not installed.
    """
    options = options or ImportOptions()
    name = _graph_name(folder, options.file)
    file = folder / name
    checkpoint = _checkpoint(folder, options.checkpoint)
    detected = detect_precision(file)
    precision = PRECISIONS[_require_known(file, options.precision or detected)]
    spec = ArtifactSpec(
        checkpoint=checkpoint,
        contract=read_contract(checkpoint, options),
        precision=precision,
        options=options,
    )

    def write(folder: Path, report: Progress) -> Mapping[str, Any]:
        report("import", 0, 1)
        about = write_traced(file, spec.contract, folder / GRAPHS[precision.name])
        report("import", 1, 1)
        imported = {"file": name, "file_sha256": describe_file(file).sha256, "detected_precision": detected}
        return {"exporter": "import", **imported, **about}

    return write_artifact(spec, write, out, progress)


def detect_precision(file: Path) -> str:
    """Detect the precision of a graph: a name in `PRECISIONS`, "bf16", or for example "int2-block".

    Raises:
        InputError: The file is not an ONNX graph.
    """
    graph = read_graph(file).graph
    nodes = list(_nodes(graph))
    if any(node.op_type == "MatMulIntegerToFloat" for node in nodes):
        return "int8"  # in exports of this project, a few linear layers may also be quantized in blocks
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
        raise InputError(f"{folder} is not a folder. Expected a folder with {' or '.join(_PLACES)}")
    names = _PLACES if name is None else (name,)
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None:
        there = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.onnx"))
        advice = f"Pass --file with one of {', '.join(there)}" if there else "It has no .onnx file"
        raise InputError(f"{folder} has no {' or '.join(names)}. {advice}")
    return found


def _checkpoint(folder: Path, name: str | Path | None) -> Checkpoint:
    if name is None and not has_weights(folder):
        raise InputError(
            f"{folder} has no {SAFETENSORS} or {TORCH}, but the graph must be measured against its PyTorch "
            "checkpoint. Pass the checkpoint's folder or Hub id with --checkpoint"
        )
    return Checkpoint.open(folder if name is None else name, any_encoder=True)


def _require_known(file: Path, precision: str) -> str:
    if precision not in PRECISIONS:
        raise InputError(
            f"no gate is known for the precision {precision} of {file}. To choose a gate, pass --precision "
            f"with one of {', '.join(PRECISIONS)}"
        )
    return precision
