"""The packed graph for CPUs over the same weights, made of fused operators (distribution koe5-onnx-kernels).

It is derived from the padded int8 graph by the names that graph.py gives to constants: the weights stay where
they are, in the one external-data file, and each layer becomes five nodes. Texts come token by token, end to
end, with offsets; nothing is padded.

    input_ids, places int64[tokens], offsets int32[texts + 1]  ->  embedding float32[texts, dim]
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
from koe5_export.rotate import LONGEST
from koe5_export.writer import MICROSOFT, OPSET
from koe5_onnx import Contract

KERNELS = "koe5"
"""Domain of the fused operators."""

OPERATORS = 3
"""Version of the operators that graphs are written for: OPSET_VERSION of the distribution that has them."""


def why_not_fused(precision: str, exceptions: Sequence[str], config: EncoderConfig) -> str | None:
    """Return why an encoder has no packed graph for CPUs; None if it has one."""
    if precision != Int8.name:
        return f"fused kernels are for int8, not {precision}"
    if exceptions:
        return f"{len(exceptions)} linears are in finer blocks: {', '.join(exceptions[:3])}"
    if config.hidden % LONGEST or config.intermediate % LONGEST or (config.hidden // config.heads) % 16:
        return f"fused kernels need widths that are multiples of {LONGEST}, and head sizes that are of 16"
    return None


def write_fused(padded: Path, fused: Path, config: EncoderConfig, contract: Contract) -> None:
    """Write the packed graph next to the padded int8 graph that it takes its weights from.

    Args:
        padded: The graph that graph.py wrote.
        fused: Where the new one goes, in the same folder.
        config: The encoder's shape.
        contract: Pooling and normalization.
    """
    writer = _Fused(onnx.load(padded, load_external_data=False), config, contract)
    onnx.save(writer.model(), fused)


class _Fused:
    def __init__(self, padded: Any, config: EncoderConfig, contract: Contract) -> None:
        self._config, self._contract = config, contract
        self._padded = {tensor.name: tensor for tensor in padded.graph.initializer}
        self._used: dict[str, Any] = {}
        self._nodes: list[Any] = []
        self._producer = (padded.producer_name, padded.producer_version, padded.ir_version)

    def model(self) -> Any:
        """The whole graph."""
        x = self._fused(
            "NormQuantize", [self._embeddings(), *self._norm("layer.0.input")], "input", **self._epsilon
        )
        for number in range(self._config.layers):
            x = self._layer(x, number)
        self._finish(self._pool(x[0]))
        ids, places = (_int64(name) for name in ("input_ids", "places"))
        offsets = helper.make_tensor_value_info("offsets", TensorProto.INT32, ["ends"])
        output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", self._contract.dim])
        graph = helper.make_graph(
            self._nodes, "koe5-fused", [ids, places, offsets], [output], initializer=list(self._used.values())
        )
        name, version, ir_version = self._producer
        opsets = [helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid(KERNELS, OPERATORS)]
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), *opsets],
            producer_name=name,
            producer_version=version,
            ir_version=ir_version,
        )

    def _layer(self, x: list[str], number: int) -> list[str]:
        """One layer, from (hidden states, their integers, their scales) to the same of the next."""
        at = f"layer.{number}"
        following = "final_norm" if number == self._config.layers - 1 else f"layer.{number + 1}.input"
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

    def _embeddings(self) -> str:
        """Word, position and token-type embeddings summed: float32[tokens, hidden]."""
        integers = self._node("Gather", [self._keep("words.weight"), "input_ids"], "words.int8")
        cast = self._node("Cast", [integers], "words.cast", to=TensorProto.FLOAT)
        scale = self._node("Gather", [self._keep("words.scale"), "input_ids"], "words.row_scale")
        words = self._node("Mul", [cast, scale], "words")
        where = self._counted_positions() if self._config.counts_from_pad else "places"
        positions = self._node("Gather", [self._keep("positions.weight"), where], "positions")
        return self._node("Add", [words, positions], "embeddings")

    def _counted_positions(self) -> str:
        """RoBERTa counts tokens of a text that are no pad tokens; a pad token typed in it is at row 0."""
        pad = self._constant("pad_id", np.int64(self._config.pad_id))
        axis, one = self._constant("axis_0", np.int64(0)), self._constant("int_1", np.int64(1))
        is_pad = self._node("Equal", ["input_ids", pad], "is_pad")
        counts = self._node(
            "Cast", [self._node("Not", [is_pad], "counts")], "counts.int", to=TensorProto.INT64
        )
        counted = self._node("CumSum", [counts, axis], "counted")
        tokens = self._node("Squeeze", [self._node("Shape", ["input_ids"], "shape")], "tokens")
        numbers = self._node("Range", [axis, tokens, one], "numbers")
        starts = self._node("Sub", [numbers, "places"], "starts")
        before = self._node("Sub", [counted, counts], "counted.before")
        own = self._node("Sub", [counted, self._node("Gather", [before, starts], "before_text")], "own_count")
        return self._node("Mul", [own, counts], "position_ids")

    def _pool(self, hidden: str) -> str:
        if self._contract.pooling == "mean":
            return self._fused("PoolMean", [hidden, "offsets"], "pooled")[0]
        first, last = (self._constant(f"from_{at}", np.array([at], np.int64)) for at in (0, -1))
        firsts = self._node("Slice", ["offsets", first, last], "first_tokens")
        return self._node("Gather", [hidden, firsts], "pooled", axis=0)

    def _finish(self, pooled: str) -> None:
        if self._contract.normalize:
            self._node("LpNormalization", [pooled], "embedding", axis=-1, p=2)
        else:
            self._node("Identity", [pooled], "embedding")

    @property
    def _epsilon(self) -> dict[str, float]:
        return {"epsilon": self._config.epsilon}

    def _norm(self, name: str) -> list[str]:
        return [self._keep(f"{name}.gain"), self._keep(f"{name}.shift")]

    def _keep(self, name: str) -> str:
        """A constant of the padded graph, with its place in the external data."""
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
