"""Run the packed CUDA graph on a CPU, with attention and ScatterND replaced by other operators.

The graph can thus be measured without a GPU. All other nodes and the weights are unchanged; ONNX Runtime
computes fp16 nodes in fp32 and rounds their outputs to fp16. This does not test the GPU kernels.

The attention operator has no CPU kernel. ScatterND sums the tokens of each text for mean pooling. On a GPU,
it adds atomically. On a CPU, several threads may add to the same row without synchronization, so a product
with a matrix of zeros and ones replaces it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from koe5_export.writer import MICROSOFT
from koe5_onnx import Artifact, EngineOptions
from koe5_onnx.engine.graphs import packed_cuda_graph
from koe5_onnx.engine.session import Session

FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"
"""Session option for the folder of external data if the graph is passed as bytes.
Source: onnxruntime_session_options_config_keys.h of https://github.com/microsoft/onnxruntime"""


class SimulatedSession(Session):
    """Session that runs an artifact's packed CUDA graph on the CPU, with the same inputs.

    Args:
        artifact: Artifact with a packed CUDA graph; its target must include the CPU.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact, EngineOptions(), packed_cuda_graph(artifact, "simulated on the CPU"))

    def _source(self) -> str | bytes:
        model = onnx.load(self.graph.file, load_external_data=False)
        return bytes(spelled_out(model).SerializeToString())

    def _session_options(self, ort: Any) -> Any:
        options = super()._session_options(ort)
        options.add_session_config_entry(FOLDER_OF_WEIGHTS, str(self.graph.file.parent))
        return options


def spelled_out(model: Any) -> Any:
    """Return the graph with each PackedMultiHeadAttention and ScatterND replaced by other operators.

    The tokens are scattered to the slots in `token_offset`, MultiHeadAttention runs on the padded texts, and
    the tokens are gathered again. Wrong offsets thus cause wrong embeddings, as on a GPU.
    """
    graph = model.graph
    nodes = [*_shared(), *(one for node in graph.node for one in _unpacked(node))]
    constants = [numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items()]
    made = helper.make_graph(
        nodes, graph.name, graph.input, graph.output, initializer=[*graph.initializer, *constants]
    )
    return helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)


_CONSTANTS = {
    "sim.zero": np.array([0], np.int64),
    "sim.one": np.array([1], np.int64),
    "sim.last": np.array([-1], np.int64),
    "sim.end": np.array([np.iinfo(np.int64).max], np.int64),
}


def _shared() -> list[Any]:
    """Return nodes that compute slots of tokens, int64[tokens, 1], and lengths of texts, int32[texts]."""
    make = helper.make_node
    return [
        make("Shape", ["input_ids"], ["sim.tokens"]),
        make("Reshape", ["token_offset", "sim.last"], ["sim.flat"]),
        make("Slice", ["sim.flat", "sim.zero", "sim.tokens"], ["sim.real"]),
        make("Cast", ["sim.real"], ["sim.places"], to=onnx.TensorProto.INT64),
        make("Unsqueeze", ["sim.places", "sim.one"], ["sim.rows"]),
        make("Slice", ["cumulative_lengths", "sim.zero", "sim.last"], ["sim.starts"]),
        make("Slice", ["cumulative_lengths", "sim.one", "sim.end"], ["sim.ends"]),
        make("Sub", ["sim.ends", "sim.starts"], ["sim.lengths"]),
        make("Shape", ["token_offset"], ["sim.padded_shape"]),
        make("Shape", ["sim.flat"], ["sim.places_in_all"]),
        make("Shape", ["sim.lengths"], ["sim.texts"]),
    ]


def _unpacked(node: Any) -> list[Any]:
    if node.op_type == "ScatterND":
        return _summed(node)
    return _attended(node) if node.op_type == "PackedMultiHeadAttention" else [node]


def _summed(node: Any) -> list[Any]:
    """Return nodes that replace ScatterND, which sums the tokens of each text: float32[texts, hidden]."""
    make, at = helper.make_node, node.name
    _, indices, updates = node.input
    on_off = numpy_helper.from_array(np.array([0, 1], np.float32), f"{at}.on_off")
    return [
        make("Constant", [], [f"{at}.on_off"], value=on_off),
        make("Squeeze", [indices, "sim.one"], [f"{at}.texts"]),
        make("OneHot", [f"{at}.texts", "sim.texts", f"{at}.on_off"], [f"{at}.members"], axis=0),
        make("MatMul", [f"{at}.members", updates], list(node.output)),
    ]


def _attended(node: Any) -> list[Any]:
    make, at = helper.make_node, node.name
    width = f"{at}.width"
    nodes = [
        make("Shape", [node.input[0]], [width], start=1, end=2),
        make("Concat", ["sim.places_in_all", width], [f"{at}.flat"], axis=0),
        make("Concat", ["sim.padded_shape", width], [f"{at}.shape"], axis=0),
        make("ConstantOfShape", [f"{at}.flat"], [f"{at}.empty"], value=_HALF_ZERO),
    ]
    for name in list(node.input)[:3]:
        nodes += [
            make("ScatterND", [f"{at}.empty", "sim.rows", name], [f"{name}.scattered"]),
            make("Reshape", [f"{name}.scattered", f"{at}.shape"], [f"{name}.padded"]),
        ]
    inputs = [*(f"{name}.padded" for name in list(node.input)[:3]), node.input[3], "sim.lengths"]
    attention = make("MultiHeadAttention", inputs, [f"{at}.padded"], domain=MICROSOFT)
    attention.attribute.extend(node.attribute)
    return [
        *nodes,
        attention,
        make("Reshape", [f"{at}.padded", f"{at}.flat"], [f"{at}.rows"]),
        make("Gather", [f"{at}.rows", "sim.places"], [node.output[0]], axis=0),
    ]


_HALF_ZERO = numpy_helper.from_array(np.zeros(1, np.float16))
