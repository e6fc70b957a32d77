"""Write an ONNX graph node by node, with large tensors streamed to one external-data file.

A large tensor is written when it is added, as a whole or in parts, so the writer does not keep it in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from koe5_onnx import __version__
from koe5_onnx.artifact import weights_of

OPSET = 21
"""First opset with blocked QuantizeLinear. Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html"""
MICROSOFT = "com.microsoft"
_OPSETS = {"": OPSET, MICROSOFT: 1}
_IR_VERSION = 10
_PAGE_BYTES = 4096
"""Page size; tensor offsets are multiples of it so that each tensor can be memory-mapped."""
_INLINE_BYTES = 65536
"""Largest size of a constant in the graph file; larger ones, and those of `stream`, are external data."""


class GraphWriter(AbstractContextManager["GraphWriter"]):
    """Writer of one graph and its external data.

    Args:
        graph: File of the graph; its folder must exist. Large tensors go to `weights_of(graph)`.
        opsets: Operator domains and their versions. Pass those of the original graph to copy its nodes.
    """

    def __init__(self, graph: Path, opsets: Mapping[str, int] = _OPSETS) -> None:
        self._opsets = opsets
        self._graph = graph
        self._weights = Path(weights_of(str(graph)))
        self._stream = self._weights.open("wb")
        self._nodes: list[Any] = []
        self._names: set[str] = set()
        self._constants: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def node(self, op: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return `name`, which is also the output's name."""
        if name in self._names:
            raise ValueError(f"the graph already has a node {name}")
        self._names.add(name)
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def add(self, node: Any) -> None:
        """Add a NodeProto unchanged."""
        self._names.update(node.output)
        self._nodes.append(node)

    def add_tensor(self, tensor: Any) -> None:
        """Add a TensorProto that contains its data. The dtype and the values do not change."""
        if not tensor.HasField("raw_data"):
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
        if len(tensor.raw_data) <= _INLINE_BYTES:
            self._constants[tensor.name] = tensor
            return
        offset = self._start_tensor()
        self._stream.write(tensor.raw_data)
        external = self._external(
            tensor.name, tensor.data_type, tensor.dims, offset, self._stream.tell() - offset
        )
        self._constants[tensor.name] = external

    def has(self, name: str) -> bool:
        """Return True if a node with an output of this name has been added."""
        return name in self._names

    def constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        """Add a constant, unless one with this name exists, and return its name."""
        array = np.asarray(value)
        if name not in self._constants:
            if array.nbytes <= _INLINE_BYTES:
                self._constants[name] = numpy_helper.from_array(array, name)
            else:
                self.stream(name, array.dtype, array.shape, [array])
        return name

    def stream(
        self, name: str, dtype: npt.DTypeLike, shape: Sequence[int], parts: Iterable[npt.NDArray[Any]]
    ) -> str:
        """Add a large constant and return its name. `parts` are groups of rows, written to disk one by one.

        Raises:
            ValueError: The parts do not add up to `shape`.
        """
        offset = self._start_tensor()
        for part in parts:
            np.ascontiguousarray(part, dtype=dtype).tofile(self._stream)
        length = self._stream.tell() - offset
        expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if length != expected:
            raise ValueError(f"{name} has {length} bytes; expected {expected}")
        data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._constants[name] = self._external(name, data_type, shape, offset, length)
        return name

    def branch(self, name: str, condition: str, then: Any, otherwise: Any) -> str:
        """Add an `If` node; `then` and `otherwise` are subgraphs made by `subgraph`."""
        return self.node("If", [condition], name, then_branch=then, else_branch=otherwise)

    def save(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Write the graph file, with the given graph inputs and outputs."""
        graph = helper.make_graph(
            self._nodes, "koe5", inputs, outputs, initializer=list(self._constants.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in self._opsets.items()],
            producer_name="koe5-onnx",
            producer_version=__version__,
            ir_version=_IR_VERSION,
        )
        self._stream.flush()
        onnx.save(model, self._graph)

    def _start_tensor(self) -> int:
        """Pad the weights file to the next page, and return the file offset."""
        self._stream.write(b"\0" * (-self._stream.tell() % _PAGE_BYTES))
        return self._stream.tell()

    def _external(self, name: str, data_type: int, shape: Sequence[int], offset: int, length: int) -> Any:
        tensor = TensorProto(name=name, data_type=data_type, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._weights.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def subgraph(op: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> Any:
    """Return a graph with one node, as a branch of an `If`. `inputs` are names in the enclosing graph."""
    node = helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes)
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([node], name, [], [output])
