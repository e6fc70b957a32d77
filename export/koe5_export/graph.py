"""Write the padded graph of an encoder as ONNX nodes: embeddings, layers and pooling.

The graph is built from the weights and uses ONNX Runtime's fused operators; nothing is traced or optimized.
Weights are written to disk layer by layer. precision/ defines how tables and linear layers are written.

    input_ids, attention_mask int64[n, width]
        ->  last_hidden_state float32[n, width, hidden], sentence_embedding float32[n, hidden]

n is the number of texts, and width their padded length. This runtime reads only sentence_embedding.
Functions with an argument `g` add nodes to the graph. They take the names of tensors, and return the names
of their results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from koe5_export.checkpoint import Checkpoint
from koe5_export.config import EncoderConfig
from koe5_export.precision import PRECISIONS, Precision
from koe5_export.smooth import SmoothLayer
from koe5_export.weights import Array, Linear, Norm
from koe5_export.writer import MICROSOFT, GraphWriter, subgraph
from koe5_onnx import Contract
from koe5_onnx.engine.batching import ROUNDED_TOKENS
from koe5_onnx.engine.graphs import HIDDEN, OUTPUT

_MASKED = -3.4e38
"""Attention score of padding keys, which makes their softmax weight exactly 0."""


@dataclass(frozen=True)
class Attention:
    """Settings and inputs that all attention nodes of a graph share."""

    heads: int
    key_mask: str
    """Name of int32[n, width]: 1 for tokens, 0 for padding."""
    is_unmasked: str
    """Name of bool[1]: True if attention runs without a mask, which is faster; "" if `lengths` is not
    None."""
    lengths: str | None
    """Name of int32[n], tokens per text, for precisions with lengths instead of a mask; None for others."""


@dataclass(frozen=True)
class Sum:
    """A residual sum as the input of a norm: one tensor, or terms that the norm's node adds."""

    x: str
    """Name of the sum, or of its first term."""
    y: str | None = None
    """Name of the second term, the output of a linear layer without its bias; None if `x` is the sum."""
    bias: Array | None = None
    """float32[hidden], the third term: the bias of this linear layer; None if `x` is the sum."""


def write_encoder(
    g: GraphWriter,
    checkpoint: Checkpoint,
    contract: Contract,
    layers: Iterable[SmoothLayer],
    precision: Precision,
) -> None:
    """Write the complete graph.

    Args:
        g: Writer of the graph.
        checkpoint: Source of the embedding tables.
        contract: Pooling and normalization.
        layers: The encoder's layers in order, smoothed and rounded.
        precision: Precision of tables and linear layers.
    """
    config = checkpoint.config
    attention = _attention(g, config.heads, precision)
    summed = Sum(_embeddings(g, checkpoint, contract, precision))
    norm = checkpoint.embedding_norm()
    for number, layer in enumerate(layers):
        layer = precision.prepare(layer)
        summed = _layer(g, summed, layer, f"layer.{number}", config, attention, precision)
        norm = layer.output_norm
    widened = replace(summed, x=precision.widen(g, summed.x), y=summed.y and precision.widen(g, summed.y))
    epsilon = config.epsilon * precision.residual_scale**2
    hidden = _norm(g, widened, norm, HIDDEN, epsilon, PRECISIONS["fp32"])
    finish(g, pool(g, hidden, contract.pooling), contract)


def _embeddings(g: GraphWriter, checkpoint: Checkpoint, contract: Contract, precision: Precision) -> str:
    """Add the sum of word, position and token-type embeddings: float32[n, width, hidden]."""
    config = checkpoint.config
    shape = (config.vocabulary, config.hidden)
    words = precision.table(g, "words", shape, checkpoint.word_embeddings(), "input_ids")
    table = checkpoint.positions(contract.max_tokens)
    where = _counted_positions(g, config.pad_id) if config.counts_from_pad else _plain_positions(g)
    return g.node("Add", [words, precision.positions(g, table, where)], "embeddings")


def _counted_positions(g: GraphWriter, pad_id: int) -> str:
    """Add RoBERTa's position ids minus `pad_id`: 0 for pad tokens, and a running count of all others."""
    pad = g.constant("pad_id", np.int64(pad_id))
    axis = g.constant("width_axis", np.int64(1))
    is_pad = g.node("Equal", ["input_ids", pad], "is_pad")
    is_token = g.node("Cast", [g.node("Not", [is_pad], "is_token")], "is_token.int", to=TensorProto.INT64)
    return g.node("Mul", [g.node("CumSum", [is_token, axis], "counted"), is_token], "position_ids")


def _plain_positions(g: GraphWriter) -> str:
    width = g.node("Shape", ["input_ids"], "width", start=1, end=2)
    zero, one = g.constant("int_0", np.int64(0)), g.constant("int_1", np.int64(1))
    scalar = g.node("Squeeze", [width], "width.scalar")
    return g.node("Range", [zero, scalar, one], "position_ids")


def _attention(g: GraphWriter, heads: int, precision: Precision) -> Attention:
    """Add a mask and the condition under which attention omits it, or the lengths of texts instead."""
    mask = g.node("Cast", ["attention_mask"], "key_mask", to=TensorProto.INT32)
    if precision.masks_by_length:
        axis = g.constant("width_axes", np.array([1], dtype=np.int64))
        return Attention(heads, mask, "", g.node("ReduceSum", [mask, axis], "lengths", keepdims=0))
    smallest = g.node("ReduceMin", ["attention_mask"], "smallest_mask", keepdims=0)
    full = g.node("Cast", [smallest], "is_full", to=TensorProto.BOOL)
    # A short text may be padded in one batch and not in another, but must use the same kernel in both.
    short = g.constant("short_tokens", np.array([ROUNDED_TOKENS], dtype=np.int64))
    width = g.node("Shape", ["input_ids"], "batch_width", start=1, end=2)
    unmasked = g.node("And", [full, g.node("Greater", [width, short], "is_long")], "is_unmasked")
    return Attention(heads, mask, unmasked, None)


def _layer(
    g: GraphWriter,
    summed: Sum,
    layer: SmoothLayer,
    at: str,
    config: EncoderConfig,
    attention: Attention,
    precision: Precision,
) -> Sum:
    """Add the norm of `summed` and the encoder layer after it. Return the input of the layer's last norm."""
    # `prepare` has scaled all residual sums except the embeddings. This has multiplied the variance of these
    # sums by the square of the scale, and epsilon must be multiplied by the same factor.
    epsilon = config.epsilon * precision.residual_scale**2
    x = _norm(g, summed, layer.input_norm, f"{at}.input", epsilon if summed.y else config.epsilon, precision)
    triple = [(f"{at}.{name}", getattr(layer, name)) for name in ("query", "key", "value")]
    bias = np.concatenate([layer.query.bias, layer.key.bias, layer.value.bias])
    bias_name = precision.vector(g, f"{at}.attention.bias", bias)
    products = _project(g, x, triple, precision)
    context = _attend(g, [*products, bias_name], f"{at}.attention", attention)
    (output,) = _project(g, context, [(f"{at}.output", layer.output)], precision)
    summed = _residual(g, x, output, layer.output, layer.attention_skip, f"{at}.attention_sum", precision)

    x = _norm(g, summed, layer.attention_norm, f"{at}.middle", epsilon, precision)
    (up,) = _project(g, x, [(f"{at}.up", layer.up)], precision)
    up_bias = precision.vector(g, f"{at}.up.bias", layer.up.bias)
    gelu = g.node("BiasGelu", [up, up_bias], f"{at}.gelu", domain=MICROSOFT)
    (down,) = _project(g, gelu, [(f"{at}.down", layer.down)], precision)
    return _residual(g, x, down, layer.down, layer.ffn_skip, f"{at}.ffn_sum", precision)


def _project(
    g: GraphWriter, x: str, linears: Sequence[tuple[str, Linear]], precision: Precision
) -> list[str]:
    """Add x @ weight for each (name, linear layer); x is rotated first if the layers require it."""
    name, first = linears[0]
    if first.rotation is not None:
        x = _rotate(g, x, name, first, first.rotation)
    return precision.project(g, x, linears)


def _rotate(g: GraphWriter, x: str, name: str, linear: Linear, rotation: Array) -> str:
    """Divide each block of the last axis of x by `linear.divisors`, if there are any, and rotate it."""
    block, width = len(rotation), len(linear.weight)
    in_blocks = g.constant(f"blocks_of_{block}", np.array([0, 0, -1, block], dtype=np.int64))
    whole = g.constant(f"rows_of_{width}", np.array([0, 0, width], dtype=np.int64))
    if linear.divisors is None:
        matrix = g.constant(f"rotation_{block}", rotation)
    else:
        matrix = g.constant(f"{name}.rotation", rotation / linear.divisors[:, None])
    blocks = g.node("Reshape", [x, in_blocks], f"{x}.blocks")
    return g.node("Reshape", [g.node("MatMul", [blocks, matrix], f"{x}.turned"), whole], f"{x}.rotated")


def _attend(g: GraphWriter, inputs: list[str], name: str, attention: Attention) -> str:
    """Add attention over the tokens of each text. `inputs` are query, key, value and their bias."""
    settings: dict[str, Any] = {"domain": MICROSOFT, "num_heads": attention.heads}
    if attention.lengths is not None:
        return g.node("MultiHeadAttention", [*inputs, attention.lengths], name, **settings)
    settings["mask_filter_value"] = _MASKED
    full = subgraph("MultiHeadAttention", inputs, f"{name}.full", **settings)
    masked = subgraph("MultiHeadAttention", [*inputs, attention.key_mask], f"{name}.masked", **settings)
    return g.branch(name, attention.is_unmasked, full, masked)


def _residual(
    g: GraphWriter, x: str, y: str, linear: Linear, skip: Array | None, name: str, precision: Precision
) -> Sum:
    """Add the residual sum x + y + bias, where y is the output of `linear` without its bias.

    With smoothing, `skip` is not None, x is smoothed, and x * skip is the original x + bias (see smooth.py).
    """
    if precision.adds_in_norm:
        return Sum(x, y, linear.bias)
    if skip is None:
        y = g.node("Add", [y, precision.vector(g, f"{name}.bias", linear.bias)], f"{name}.biased")
    else:
        x = g.node("Mul", [x, precision.vector(g, f"{name}.skip", skip)], f"{name}.unsmoothed")
    return Sum(g.node("Add", [x, y], name))


def _norm(g: GraphWriter, summed: Sum, norm: Norm, name: str, epsilon: float, precision: Precision) -> str:
    gain, shift = (
        precision.vector(g, f"{name}.gain", norm.gain),
        precision.vector(g, f"{name}.shift", norm.shift),
    )
    if summed.y is None or summed.bias is None:
        return g.node("LayerNormalization", [summed.x, gain, shift], name, axis=-1, epsilon=epsilon)
    bias = precision.vector(g, f"{name}.bias", summed.bias)
    inputs = [summed.x, summed.y, gain, shift, bias]
    return g.node("SkipLayerNormalization", inputs, name, domain=MICROSOFT, epsilon=epsilon)


def pool(g: GraphWriter, hidden: str, pooling: str) -> str:
    """Add pooling of `hidden`, float32[n, width, hidden], with the attention_mask: float32[n, hidden]."""
    axis = g.constant("width_axes", np.array([1], dtype=np.int64))
    if pooling == "cls":
        return g.node("Gather", [hidden, g.constant("first_token", np.int64(0))], "pooled", axis=1)
    mask = g.node("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
    count = g.node("ReduceSum", [mask, axis], "token_count", keepdims=1)
    share = g.node("Unsqueeze", [g.node("Div", [mask, count], "token_share"), axis], "token_share.row")
    return g.node("Squeeze", [g.node("MatMul", [share, hidden], "pooled.row"), axis], "pooled")


def finish(g: GraphWriter, pooled: str, contract: Contract) -> None:
    """Normalize `pooled`, float32[n, hidden], if the contract requires it, and save the graph.

    If the graph has HIDDEN, that is the first output, since other runtimes read the first one.
    """
    if contract.normalize:
        g.node("LpNormalization", [pooled], OUTPUT, axis=-1, p=2)
    else:
        g.node("Identity", [pooled], OUTPUT)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "width"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["texts", contract.dim])]
    if g.has(HIDDEN):
        shape = ["texts", "width", contract.dim]
        outputs.insert(0, helper.make_tensor_value_info(HIDDEN, TensorProto.FLOAT, shape))
    g.save(inputs, outputs)
