"""Write the packed graph for CPUs, which uses fused operators (distribution koe5-onnx-kernels).

The packed graph uses constants and the weight file of the padded int8 graph. The constants are found by their
names in that graph. Each encoder layer has five nodes. The inputs are the tokens of all texts without
padding; `offsets` has the index of the first token of each text, and the number of all tokens.

    input_ids, position_ids int64[tokens], offsets int32[texts + 1]
        ->  sentence_embedding float32[texts, dim]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from koe5_export.config import EncoderConfig
from koe5_export.precision.int8 import Int8
from koe5_export.precision.table import table_block
from koe5_export.rotate import LONGEST
from koe5_export.writer import MICROSOFT, OPSET
from koe5_onnx import Contract
from koe5_onnx.engine.graphs import FUSED_OPERATORS, HIDDEN, OUTPUT

KERNELS = "koe5"
"""Domain of the fused operators."""


def why_not_packed_cpu(precision: str, exceptions: Sequence[str], config: EncoderConfig) -> str | None:
    """Return why the packed graph for CPUs cannot be written; None if it can.

    `exceptions` are the names of linear layers that are quantized in blocks (see `Precision.is_exception`).
    """
    if precision != Int8.name:
        return f"fused kernels are for int8, not {precision}"
    if exceptions:
        return f"{len(exceptions)} linear layers are quantized in blocks, such as {', '.join(exceptions[:3])}"
    if config.hidden % LONGEST or config.intermediate % LONGEST or (config.hidden // config.heads) % 16:
        return (
            f"fused kernels require hidden and intermediate sizes that are multiples of {LONGEST}, and a "
            "head size that is a multiple of 16"
        )
    return None


def write_packed_cpu(padded: Path, packed: Path, config: EncoderConfig, contract: Contract) -> None:
    """Write the packed graph for CPUs.

    Args:
        padded: File of the padded int8 graph.
        packed: File of the packed graph, in the same folder.
        config: Shape of the encoder.
        contract: Pooling and normalization.
    """
    writer = _Writer(onnx.load(padded, load_external_data=False), config, contract)
    onnx.save(writer.model(), packed)


class _Writer:
    def __init__(self, padded: Any, config: EncoderConfig, contract: Contract) -> None:
        self._config, self._contract = config, contract
        self._padded = {tensor.name: tensor for tensor in padded.graph.initializer}
        self._used: dict[str, Any] = {}
        self._nodes: list[Any] = []
        self._producer = (padded.producer_name, padded.producer_version, padded.ir_version)

    def model(self) -> Any:
        """Return the complete graph."""
        x = self._fused(
            "NormQuantize", [self._embeddings(), *self._norm("layer.0.input")], "input", **self._epsilon
        )
        for number in range(self._config.layers):
            x = self._layer(x, number)
        self._finish(self._pool(x[0]))
        ids, position_ids = (_int64(name) for name in ("input_ids", "position_ids"))
        offsets = helper.make_tensor_value_info("offsets", TensorProto.INT32, ["ends"])
        output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["texts", self._contract.dim])
        inputs = [ids, position_ids, offsets]
        graph = helper.make_graph(
            self._nodes, "koe5-packed-cpu", inputs, [output], initializer=list(self._used.values())
        )
        name, version, ir_version = self._producer
        opsets = [helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid(KERNELS, FUSED_OPERATORS)]
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), *opsets],
            producer_name=name,
            producer_version=version,
            ir_version=ir_version,
        )

    def _layer(self, x: list[str], number: int) -> list[str]:
        """Add one encoder layer.

        `x` and the result are names of tensors: hidden states, their quantized values, and the scales.
        """
        at = f"layer.{number}"
        following = HIDDEN if number == self._config.layers - 1 else f"layer.{number + 1}.input"
        triple = [f"{at}.{name}" for name in ("query", "key", "value")]
        weights = [self._keep(f"{name}.{part}") for part in ("weight", "scale") for name in triple]
        (qkv,) = self._fused(
            "ProjectQkv",
            [*x[1:], *weights, self._keep(f"{at}.attention.bias")],
            f"{at}.qkv",
            heads=self._config.heads,
        )
        context = self._fused("RaggedAttention", [qkv, "offsets"], f"{at}.context")
        x = self._project_add_norm(context, x[0], f"{at}.output", f"{at}.attention_sum", f"{at}.middle")
        up = self._fused(
            "ProjectGelu",
            [
                *x[1:],
                self._keep(f"{at}.up.weight"),
                self._keep(f"{at}.up.scale"),
                self._keep(f"{at}.up.bias"),
                self._factors(f"{at}.down"),
            ],
            f"{at}.gelu",
        )
        return self._project_add_norm(up, x[0], f"{at}.down", f"{at}.ffn_sum", following)

    def _project_add_norm(
        self, quantized: list[str], x: str, linear: str, residual: str, norm: str
    ) -> list[str]:
        width = self._config.hidden
        inputs = [
            *quantized,
            self._keep(f"{linear}.weight"),
            self._keep(f"{linear}.scale"),
            x,
            self._keep_or(f"{residual}.skip", np.ones(width, np.float32)),
            self._keep_or(f"{residual}.bias", np.zeros(width, np.float32)),
            *self._norm(norm),
        ]
        return self._fused("ProjectAddNorm", inputs, norm, **self._epsilon)

    def _factors(self, linear: str) -> str:
        """Add the factors by which the channels of each block are multiplied before the rotation."""
        matrix = numpy_helper.to_array(self._padded[f"{linear}.rotation"])
        # The padded graph's matrix is a rotation with scaled rows. Unscaled rows have length 1.
        return self._constant(f"{linear}.factors", np.linalg.norm(matrix, axis=1))

    def _embeddings(self) -> str:
        integers = self._node("Gather", [self._keep("words.weight"), "input_ids"], "words.int8")
        scale = self._node("Gather", [self._keep("words.scale"), "input_ids"], "words.row_scale")
        block = table_block(self._config.hidden)
        words = self._node("DequantizeLinear", [integers, scale], "words", axis=-1, block_size=block)
        positions = self._node("Gather", [self._keep("positions.weight"), "position_ids"], "positions")
        return self._node("Add", [words, positions], "embeddings")

    def _pool(self, hidden: str) -> str:
        if self._contract.pooling == "mean":
            return self._fused("PoolMean", [hidden, "offsets"], "pooled")[0]
        first, last = (self._constant(f"from_{at}", np.array([at], np.int64)) for at in (0, -1))
        firsts = self._node("Slice", ["offsets", first, last], "first_tokens")
        return self._node("Gather", [hidden, firsts], "pooled", axis=0)

    def _finish(self, pooled: str) -> None:
        if self._contract.normalize:
            self._node("LpNormalization", [pooled], OUTPUT, axis=-1, p=2)
        else:
            self._node("Identity", [pooled], OUTPUT)

    @property
    def _epsilon(self) -> dict[str, float]:
        return {"epsilon": self._config.epsilon}

    def _norm(self, name: str) -> list[str]:
        return [self._keep(f"{name}.gain"), self._keep(f"{name}.shift")]

    def _keep(self, name: str) -> str:
        """Use a constant of the padded graph, with the same location in the weight file; return its name."""
        self._used[name] = self._padded[name]
        return name

    def _keep_or(self, name: str, otherwise: np.ndarray[Any, Any]) -> str:
        return self._keep(name) if name in self._padded else self._constant(f"{otherwise[0]:g}s", otherwise)

    def _constant(self, name: str, value: Any) -> str:
        self._used.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def _fused(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> list[str]:
        suffixes = _OUTPUTS[op]
        outputs = [f"{name}{suffix}" for suffix in suffixes]
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=KERNELS, **attributes))
        return outputs


_OUTPUTS = {
    "NormQuantize": ("", ".uint8", ".row_scale"),
    "ProjectQkv": ("",),
    "RaggedAttention": (".uint8", ".row_scale"),
    "ProjectAddNorm": ("", ".uint8", ".row_scale"),
    "ProjectGelu": (".uint8", ".row_scale"),
    "PoolMean": ("",),
}
"""Suffixes of the outputs of each fused operator, in order."""


def _int64(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["tokens"])
