"""Convert an encoder graph exported by other tools to a padded graph.

The input is a graph of this form::

    input_ids, attention_mask (, token_type_ids)  ->  last_hidden_state or another known output

and the output has the interface of all padded graphs::

    input_ids, attention_mask int64[n, width]
        ->  last_hidden_state float32[n, width, dim], sentence_embedding float32[n, dim]

last_hidden_state is missing if the original graph returns only pooled embeddings.

Nothing is fused, quantized or converted to another opset. Nodes and tensors on which the embedding does not
depend are removed. External data is read one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, inliner, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from koe5_export.graph import finish, pool
from koe5_export.writer import GraphWriter
from koe5_onnx import Contract, InputError
from koe5_onnx.engine.graphs import HIDDEN, OUTPUT

_OPSET_MIN = 13
"""First opset in which Squeeze, Unsqueeze and ReduceSum take axes as an input, which pooling requires.
Source: https://github.com/onnx/onnx/blob/main/docs/Changelog.md#version-13-of-the-default-onnx-operator-set"""
_REQUIRED = ("input_ids", "attention_mask")
_KNOWN = (*_REQUIRED, "token_type_ids")
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
_TOKEN_OUTPUTS = (HIDDEN, "token_embeddings")
_PREFIX = "traced/"
"""Prefix of all names of the original graph, so that they do not clash with those of added nodes."""


def read_graph(file: Path) -> Any:
    """Read a graph as ModelProto, without external data and with its local functions inlined.

    Raises:
        InputError: The file is not an ONNX graph.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # onnx does not document which exceptions protobuf raises
        raise InputError(f"{file} cannot be read as ONNX ({error}). Export it again") from error
    return inliner.inline_local_functions(model) if model.functions else model


def write_traced(file: Path, contract: Contract, graph: Path) -> dict[str, Any]:
    """Convert the graph in `file` to a padded graph, with pooling and normalization as in the contract.

    Args:
        file: The original graph; its external data is in the same folder.
        contract: Pooling, normalization and dimension.
        graph: File of the converted graph.

    Returns:
        Producer, opset and output of the original graph, for the manifest's recipe.

    Raises:
        InputError: Inputs, outputs or opset are not supported, or the data of a tensor is missing.
    """
    model = read_graph(file)
    opsets = _opsets(file, model)
    inputs = _inputs(file, model.graph)
    output = _output(file, model.graph, contract)
    nodes, names = _needed(model.graph, output.name)
    for part in (*model.graph.initializer, *model.graph.output, *nodes):
        _rename(part)
    with GraphWriter(graph, opsets) as g:
        _add_tensors(g, (t for t in model.graph.initializer if t.name.removeprefix(_PREFIX) in names), file)
        _feed(g, inputs)
        _add_nodes(g, nodes, file)
        is_pooled = output.name == _PREFIX + OUTPUT
        name = "traced_output" if is_pooled else HIDDEN
        vectors = g.node("Cast", [output.name], name, to=TensorProto.FLOAT)
        finish(g, vectors if is_pooled else pool(g, vectors, contract.pooling), contract)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return {"producer": producer, "opset": opsets[""], "output": output.name.removeprefix(_PREFIX)}


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the subgraphs of a node: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _opsets(file: Path, model: Any) -> dict[str, int]:
    opsets = {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import
    }
    if opsets.get("", 0) < _OPSET_MIN:
        raise InputError(
            f"{file} has opset {opsets.get('', 0)}; expected {_OPSET_MIN} or later. Export it again "
            "(with Optimum: --opset 18)"
        )
    return opsets


def _inputs(file: Path, graph: Any) -> dict[str, int]:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {entry.name: entry.type.tensor_type for entry in graph.input if entry.name not in constants}
    if set(inputs) - set(_KNOWN) or set(_REQUIRED) - set(inputs):
        raise InputError(
            f"{file} has the inputs {', '.join(inputs)}. Expected input_ids, attention_mask and, optionally, "
            "token_type_ids. Export it again as an encoder (with Optimum: --task feature-extraction)"
        )
    for name, kind in inputs.items():
        if kind.elem_type not in _INTEGERS:
            found = helper.tensor_dtype_to_string(kind.elem_type)
            raise InputError(f"{file} has the input {name} of type {found}; expected int64 or int32")
        if fixed := [dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value")]:
            raise InputError(
                f"{file} has the input {name} with a fixed size ({fixed}). Export it again with dynamic axes"
            )
    return {name: kind.elem_type for name, kind in inputs.items()}


def _output(file: Path, graph: Any, contract: Contract) -> Any:
    """Return the graph output with token embeddings or, if there is none, the one with pooled embeddings.

    Pooled embeddings may be normalized, so they are accepted only if the contract normalizes.
    """
    outputs = {entry.name: entry for entry in graph.output}
    names = _TOKEN_OUTPUTS if not contract.normalize else (*_TOKEN_OUTPUTS, OUTPUT)
    found = next((outputs[name] for name in names if name in outputs), None)
    if found is None:
        raise InputError(
            f"{file} has the outputs {', '.join(outputs)}; expected one of {', '.join(names)}. "
            "Export it again (with Optimum: --task feature-extraction)"
        )
    shape = found.type.tensor_type.shape.dim
    if shape and shape[-1].HasField("dim_value") and shape[-1].dim_value != contract.dim:
        raise InputError(
            f"{file} has outputs of dimension {shape[-1].dim_value}, but the checkpoint has {contract.dim}. "
            "Pass the checkpoint that the graph was exported from"
        )
    return found


def _needed(graph: Any, output: str) -> tuple[list[Any], set[str]]:
    """Return the nodes on which `output` depends, in order, and the names of all their inputs."""
    nodes: list[Any] = []
    names = {output}
    for node in reversed(graph.node):
        if names.intersection(filter(None, node.output)):
            nodes.append(node)
            names.update(_reads(node))
    return nodes[::-1], names


def _reads(node: Any) -> Iterator[str]:
    """Yield the names of a node's inputs and, for its subgraphs, of all outputs and inputs of nodes."""
    yield from node.input
    for graph in subgraphs(node):
        yield from (entry.name for entry in graph.output)
        for inner in graph.node:
            yield from _reads(inner)


def _rename(part: Any) -> None:
    """Add the prefix to all names in a node and its subgraphs, or to the name of a tensor or value."""
    part.name = _PREFIX + part.name if part.name else ""
    if not hasattr(part, "op_type"):
        return
    for names in (part.input, part.output):
        names[:] = [_PREFIX + name if name else "" for name in names]
    for graph in subgraphs(part):
        for inner in (*graph.initializer, *graph.input, *graph.output, *graph.node):
            _rename(inner)
        del graph.value_info[:]


def _add_tensors(g: GraphWriter, tensors: Iterable[Any], file: Path) -> None:
    for tensor in tensors:
        g.add_tensor(_loaded(tensor, file))


def _add_nodes(g: GraphWriter, nodes: Iterable[Any], file: Path) -> None:
    """Add nodes. Constant nodes become initializers, so that large ones go to the external-data file."""
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = _loaded(node.attribute[0].t, file)
            tensor.name = node.output[0]
            g.add_tensor(tensor)
        else:
            _load_inside(node, file)
            g.add(node)


def _load_inside(node: Any, file: Path) -> None:
    """Replace external data in the subgraphs of a node by inline data."""
    for graph in subgraphs(node):
        for tensor in graph.initializer:
            tensor.CopyFrom(_loaded(tensor, file))
        for inner in graph.node:
            for attribute in inner.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    attribute.t.CopyFrom(_loaded(attribute.t, file))
            _load_inside(inner, file)


def _loaded(tensor: Any, file: Path) -> Any:
    """Return a copy of the tensor that contains its values."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    if uses_external_data(copy):
        try:
            load_external_data_for_tensor(copy, str(file.parent))
            # Tensors of graphs without external data do not have these fields.
            for field in ("data_location", "external_data"):
                copy.ClearField(field)
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            name = tensor.name.removeprefix(_PREFIX)
            raise InputError(
                f"{file}: the data of {name} cannot be read ({error}). Export the folder again, or copy it "
                "with symbolic links resolved (cp -rL)"
            ) from error
    return copy


def _feed(g: GraphWriter, inputs: dict[str, int]) -> None:
    """Connect the inputs of the original graph to the graph inputs. All token types are 0."""
    for name, kind in inputs.items():
        if name in _REQUIRED:
            value = name
        else:
            zero = numpy_helper.from_array(np.zeros(1, np.int64))
            value = g.node("ConstantOfShape", [g.node("Shape", ["input_ids"], "ids_shape")], name, value=zero)
        g.node("Cast", [value], _PREFIX + name, to=kind)
