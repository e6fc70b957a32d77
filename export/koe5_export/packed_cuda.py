"""Write the packed graph for CUDA, whose inputs are the tokens of all texts without padding.

It is a copy of the padded fp16 graph with three changes, and uses the same weight file:

- Position ids are an input, because computing them on the CPU is cheaper.
- Attention is PackedMultiHeadAttention, which uses flash attention for texts of any length. A separate node
  adds the bias of the queries. If attention had a bias, ONNX Runtime would copy queries, keys and values.
- Pooling finds the tokens of each text by the inputs below instead of a mask.

    input_ids, position_ids, text_of_token int64[tokens], token_offset int32[texts, longest],
    cumulative_lengths int32[texts + 1]  ->  sentence_embedding float32[texts, dim]

Query, key and value are separate inputs of PackedMultiHeadAttention. If they were one tensor, ONNX Runtime
would use flash attention only for texts above 512 tokens. For shorter texts, it has no other fast kernel on
Hopper GPUs.
Source: contrib_ops/cuda/bert/packed_multihead_attention.cc of https://github.com/microsoft/onnxruntime
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from koe5_export.precision.fp16 import Fp16
from koe5_export.writer import MICROSOFT
from koe5_onnx import Contract
from koe5_onnx.engine.graphs import HIDDEN, INPUTS, OUTPUT

_HEAD_MULTIPLE, _LARGEST_HEAD = 8, 256
"""Flash attention supports head sizes that are multiples of 8, up to 256.
Source: https://github.com/Dao-AILab/flash-attention"""


def why_not_packed_cuda(precision: str, head_size: int) -> str | None:
    """Return why the packed graph for CUDA cannot be written; None if it can."""
    if precision != Fp16.name:
        return f"packed attention is for fp16 on CUDA, not {precision}"
    if head_size % _HEAD_MULTIPLE or head_size > _LARGEST_HEAD:
        return f"flash attention has no kernel for a head size of {head_size}"
    return None


def write_packed_cuda(padded: Path, packed: Path, contract: Contract) -> None:
    """Write the packed graph for CUDA.

    Args:
        padded: File of the padded fp16 graph.
        packed: File of the packed graph, in the same folder.
        contract: Pooling and normalization.
    """
    model = onnx.load(padded, load_external_data=False)
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[Any] = []
    biases: list[Any] = []
    for node in model.graph.node:
        if _is_attention(node):
            biases.append(_query_bias(values[node.input[3]]))
            nodes += _packed_attention(node, biases[-1].name)
        else:
            nodes.append(node)
    pooling, constants = _pooling(contract)
    initializers = [*model.graph.initializer, *biases, *constants]
    graph = _pruned([*nodes, *pooling], initializers, contract.dim)
    made = helper.make_model(
        graph,
        opset_imports=model.opset_import,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        ir_version=model.ir_version,
    )
    onnx.save(made, packed)


def _is_attention(node: Any) -> bool:
    return bool(node.op_type == "MultiHeadAttention")


def _query_bias(bias: Any) -> Any:
    """Return the first third of the bias of queries, keys and values, float16[3 x hidden]; the rest is 0."""
    query, key, value = np.split(numpy_helper.to_array(bias), 3)
    if key.any() or value.any():
        raise ValueError(f"{bias.name} contains biases of keys or values, expected zeros (see fp16.py)")
    return numpy_helper.from_array(query, f"{bias.name}.query")


def _packed_attention(node: Any, query_bias: str) -> list[Any]:
    query, key, value = list(node.input)[:3]
    biased = f"{query}.biased"
    attention = helper.make_node(
        "PackedMultiHeadAttention",
        [biased, key, value, "", "token_offset", "cumulative_lengths"],
        list(node.output),
        name=node.name,
        domain=MICROSOFT,
        num_heads=next(entry.i for entry in node.attribute if entry.name == "num_heads"),
    )
    return [helper.make_node("Add", [query, query_bias], [biased], name=biased), attention]


def _pooling(contract: Contract) -> tuple[list[Any], list[Any]]:
    """Return the nodes that pool and normalize HIDDEN, float32[tokens, hidden], and their constants."""
    constants = {
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
        "end": np.array([np.iinfo(np.int64).max], np.int64),
        "zeros": np.zeros((1, contract.dim), np.float32),
    }
    used = {name: f"pool.{name}" for name in constants}
    make = helper.make_node
    nodes = [make("Slice", ["cumulative_lengths", used["first"], used["last"]], ["pool.starts"])]
    if contract.pooling == "cls":
        nodes.append(make("Gather", [HIDDEN, "pool.starts"], ["pool.pooled"], axis=0))
    else:
        nodes += [
            make("Slice", ["cumulative_lengths", used["second"], used["end"]], ["pool.ends"]),
            make("Sub", ["pool.ends", "pool.starts"], ["pool.lengths"]),
            make("Cast", ["pool.lengths"], ["pool.lengths.float"], to=TensorProto.FLOAT),
            make("Unsqueeze", ["pool.lengths.float", used["second"]], ["pool.counts"]),
            # Zeros, float32[texts, hidden], from a product: ConstantOfShape requires the shape in CPU memory.
            make("Mul", ["pool.counts", used["zeros"]], ["pool.empty"]),
            make("Unsqueeze", ["text_of_token", used["second"]], ["pool.rows"]),
            make("ScatterND", ["pool.empty", "pool.rows", HIDDEN], ["pool.sums"], reduction="add"),
            make("Div", ["pool.sums", "pool.counts"], ["pool.pooled"]),
        ]
    finish = {"op_type": "Identity"} if not contract.normalize else {"op_type": "LpNormalization", "axis": -1}
    nodes.append(make(inputs=["pool.pooled"], outputs=[OUTPUT], **finish))
    for node in nodes:
        node.name = node.output[0]
    return nodes, [numpy_helper.from_array(value, used[name]) for name, value in constants.items()]


def _pruned(nodes: Sequence[Any], initializers: Sequence[Any], dim: int) -> Any:
    """Return the graph with only the nodes and constants that its output depends on."""
    # Two nodes write the embeddings: the last one of the padded graph, and that of `_pooling`, which is used.
    producers: dict[str, Any] = {name: node for node in nodes for name in node.output}
    kept: dict[str, Any] = {}
    wanted = [OUTPUT]
    while wanted:
        name = wanted.pop()
        if name in producers and name not in kept and name not in INPUTS["packed_cuda"]:
            node = producers[name]
            kept[name] = node
            wanted += node.input
    chosen = [one for one in nodes if one.output[0] in kept and kept[one.output[0]] is one]
    used = {name for one in chosen for name in one.input}
    inputs = [helper.make_tensor_value_info(name, *_INPUT_TYPES[name]) for name in INPUTS["packed_cuda"]]
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["texts", dim])
    constants = [tensor for tensor in initializers if tensor.name in used]
    return helper.make_graph(chosen, "koe5-packed-cuda", inputs, [output], initializer=constants)


_INPUT_TYPES = {
    "input_ids": (TensorProto.INT64, ["tokens"]),
    "position_ids": (TensorProto.INT64, ["tokens"]),
    "text_of_token": (TensorProto.INT64, ["tokens"]),
    "token_offset": (TensorProto.INT32, ["texts", "longest"]),
    "cumulative_lengths": (TensorProto.INT32, ["ends"]),
}
