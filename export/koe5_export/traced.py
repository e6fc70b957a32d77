"""A graph that somebody else wrote, given the interface of an artifact.

Owns the surgery that optimum.py and folder.py share; knows neither Optimum nor folders::

    input_ids, attention_mask (, token_type_ids) -> last_hidden_state, or whatever else      is turned into
    input_ids, attention_mask int64[n, width]    -> embedding float32[n, dim]

The nodes stay as they are: nothing is fused, quantized or converted to another opset. What the embedding does
not need is left out. Tensors pass to the disk one by one.
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

_OPSET_MIN = 13
"""Squeeze, Unsqueeze and ReduceSum take their axes as an input since then, as the pooling gives them.
Source: https://github.com/onnx/onnx/blob/main/docs/Changelog.md#version-13-of-the-default-onnx-operator-set"""
_REQUIRED = ("input_ids", "attention_mask")
_KNOWN = (*_REQUIRED, "token_type_ids")
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
_TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_TEXT_OUTPUT = "sentence_embedding"
_PREFIX = "traced/"
"""In front of every name of the graph, so that none meets a name of the nodes around it."""


def read_graph(file: Path) -> Any:
    """Read a ModelProto without its external data, local functions written out.

    Raises:
        InputError: The file is no ONNX graph.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's errors belong to a package that onnx does not name
        raise InputError(f"{file} cannot be read as ONNX ({error}): export it again") from error
    return inliner.inline_local_functions(model) if model.functions else model


def write_traced(file: Path, contract: Contract, graph: Path, weights: Path) -> dict[str, Any]:
    """Write the graph of `file` as an artifact's, pooled and normalized by the contract.

    Args:
        file: The graph; its external data lies beside it.
        contract: Pooling, normalization and width.
        graph: File to write.
        weights: File of its large tensors, in the same folder.

    Returns:
        What the graph says about itself, for the recipe.

    Raises:
        InputError: Inputs, outputs or opset are others than can be dealt with, or a tensor's data is missing.
    """
    model = read_graph(file)
    opsets = _opsets(file, model)
    inputs = _inputs(file, model.graph)
    output = _output(file, model.graph, contract)
    nodes, names = _needed(model.graph, output.name)
    for part in (*model.graph.initializer, *model.graph.output, *nodes):
        _rename(part)
    with GraphWriter(graph, weights, opsets) as g:
        _add_tensors(g, (t for t in model.graph.initializer if t.name.removeprefix(_PREFIX) in names), file)
        _feed(g, inputs)
        _add_nodes(g, nodes, file)
        vectors = g.node("Cast", [output.name], "traced_output", to=TensorProto.FLOAT)
        is_pooled = output.name == _PREFIX + _TEXT_OUTPUT
        finish(g, vectors if is_pooled else pool(g, vectors, contract.pooling), contract)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return {"producer": producer, "opset": opsets[""], "output": output.name.removeprefix(_PREFIX)}


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs inside a node: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _opsets(file: Path, model: Any) -> dict[str, int]:
    """Domain to version, the standard domain as ""."""
    opsets = {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import
    }
    if opsets.get("", 0) < _OPSET_MIN:
        raise InputError(
            f"{file} has opset {opsets.get('', 0)}, expected {_OPSET_MIN} or later: export it again, with "
            "Optimum: --opset 18"
        )
    return opsets


def _inputs(file: Path, graph: Any) -> dict[str, int]:
    """Name to element type of each input."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {entry.name: entry.type.tensor_type for entry in graph.input if entry.name not in constants}
    if set(inputs) - set(_KNOWN) or set(_REQUIRED) - set(inputs):
        raise InputError(
            f"{file} takes {', '.join(inputs)}: expected input_ids and attention_mask, perhaps "
            "token_type_ids; export it again as an encoder (with Optimum: --task feature-extraction)"
        )
    for name, kind in inputs.items():
        if kind.elem_type not in _INTEGERS:
            found = helper.tensor_dtype_to_string(kind.elem_type)
            raise InputError(f"{file} takes {name} as {found}: expected int64 or int32")
        if fixed := [dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value")]:
            raise InputError(
                f"{file} takes {name} of a fixed size ({fixed}): export it again with dynamic axes"
            )
    return {name: kind.elem_type for name, kind in inputs.items()}


def _output(file: Path, graph: Any, contract: Contract) -> Any:
    """The output to pool, or the one that is pooled already where there is no other."""
    outputs = {entry.name: entry for entry in graph.output}
    names = _TOKEN_OUTPUTS if not contract.normalize else (*_TOKEN_OUTPUTS, _TEXT_OUTPUT)
    found = next((outputs[name] for name in names if name in outputs), None)
    if found is None:
        raise InputError(
            f"{file} gives {', '.join(outputs)}: expected one of {', '.join(names)}; export it again "
            "(with Optimum: --task feature-extraction)"
        )
    shape = found.type.tensor_type.shape.dim
    if shape and shape[-1].HasField("dim_value") and shape[-1].dim_value != contract.dim:
        raise InputError(
            f"{file} gives vectors of {shape[-1].dim_value}, the checkpoint's have {contract.dim}: "
            "they do not belong together"
        )
    return found


def _needed(graph: Any, output: str) -> tuple[list[Any], set[str]]:
    """The nodes that `output` depends on, in order, and every name that they read."""
    nodes: list[Any] = []
    names = {output}
    for node in reversed(graph.node):
        if names.intersection(filter(None, node.output)):
            nodes.append(node)
            names.update(_reads(node))
    return nodes[::-1], names


def _reads(node: Any) -> Iterator[str]:
    """Names that a node reads, also inside its subgraphs and from outside them."""
    yield from node.input
    for graph in subgraphs(node):
        yield from (entry.name for entry in graph.output)
        for inner in graph.node:
            yield from _reads(inner)


def _rename(part: Any) -> None:
    """Put the prefix in front of all names of a node, a tensor or a value, and in its subgraphs."""
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
    """Add the nodes; constants become tensors, so that large ones leave the graph file."""
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = _loaded(node.attribute[0].t, file)
            tensor.name = node.output[0]
            g.add_tensor(tensor)
        else:
            _load_inside(node, file)
            g.add(node)


def _load_inside(node: Any, file: Path) -> None:
    """Bring external data of a node's subgraphs into the graph file."""
    for graph in subgraphs(node):
        for tensor in graph.initializer:
            tensor.CopyFrom(_loaded(tensor, file))
        for inner in graph.node:
            for attribute in inner.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    attribute.t.CopyFrom(_loaded(attribute.t, file))
            _load_inside(inner, file)


def _loaded(tensor: Any, file: Path) -> Any:
    """A copy of the tensor that holds its values."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    if uses_external_data(copy):
        try:
            load_external_data_for_tensor(copy, str(file.parent))
            copy.data_location = TensorProto.DEFAULT  # older onnx leaves that to the caller
            del copy.external_data[:]
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            name = tensor.name.removeprefix(_PREFIX)
            raise InputError(
                f"{file}: the data of {name} cannot be read ({error}): export the folder again, or copy it "
                "with its links resolved (cp -rL)"
            ) from error
    return copy


def _feed(g: GraphWriter, inputs: dict[str, int]) -> None:
    """Connect the graph's own inputs; token types are 0, as PyTorch's where none are given."""
    for name, kind in inputs.items():
        if name in _REQUIRED:
            value = name
        else:
            zero = numpy_helper.from_array(np.zeros(1, np.int64))
            value = g.node("ConstantOfShape", [g.node("Shape", ["input_ids"], "ids_shape")], name, value=zero)
        g.node("Cast", [value], _PREFIX + name, to=kind)
