"""What config.json says: the shape of the encoder, and whether it is one that this project can export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from koe5_onnx import Architecture, CheckpointError

_ROBERTA_TYPES = ("xlm-roberta", "roberta")


@dataclass(frozen=True)
class EncoderConfig:
    """What config.json says about the encoder."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    """Rows of the position table."""
    token_types: int
    pad_id: int
    epsilon: float
    """Added to the variance by every LayerNorm."""

    @property
    def counts_from_pad(self) -> bool:
        """Whether positions start at pad_id + 1 and skip pad tokens, as in RoBERTa."""
        return self.model_type in _ROBERTA_TYPES

    @property
    def max_tokens(self) -> int:
        """Longest input that the position table has rows for: 512 of 514 in XLM-R."""
        return self.positions - self.pad_id - 1 if self.counts_from_pad else self.positions

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the encoder needs, with its PyTorch shape."""
        width, inner = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, width),
            "embeddings.position_embeddings.weight": (self.positions, width),
            "embeddings.token_type_embeddings.weight": (self.token_types, width),
            "embeddings.LayerNorm.weight": (width,),
            "embeddings.LayerNorm.bias": (width,),
        }
        linears = {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }
        for layer in range(self.layers):
            for name, shape in linears.items():
                shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
                shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
            for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes[f"encoder.layer.{layer}.{norm}.weight"] = (width,)
                shapes[f"encoder.layer.{layer}.{norm}.bias"] = (width,)
        return shapes

    @property
    def parameters(self) -> int:
        """Number of weights that the encoder uses."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def architecture(self) -> Architecture:
        """The same for the manifest."""
        return Architecture(
            model_type=self.model_type,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            intermediate=self.intermediate,
            vocabulary=self.vocabulary,
            parameters=self.parameters,
        )


def read_json(file: Path, kind: type = dict) -> Any:
    """Parse a JSON file of a checkpoint.

    Raises:
        CheckpointError: It is not JSON, or holds no `kind`.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(data, kind):
        raise CheckpointError(f"{file} holds a {type(data).__name__}: expected a {kind.__name__}")
    return data


def read_config(folder: Path) -> EncoderConfig:
    """Read a checkpoint's config.json.

    Raises:
        CheckpointError: It is missing, incomplete, or of an encoder that cannot be exported.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json: expected a transformers checkpoint")
    data = read_json(file)
    _require_known(file, data)
    try:
        return EncoderConfig(
            model_type=data["model_type"],
            layers=int(data["num_hidden_layers"]),
            hidden=int(data["hidden_size"]),
            heads=int(data["num_attention_heads"]),
            intermediate=int(data["intermediate_size"]),
            vocabulary=int(data["vocab_size"]),
            positions=int(data["max_position_embeddings"]),
            token_types=int(data["type_vocab_size"]),
            pad_id=int(data["pad_token_id"]),
            epsilon=float(data["layer_norm_eps"]),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{file} lacks {error}: expected a complete {data['model_type']} config"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has a value of a wrong type: {error}") from error


def _require_known(file: Path, data: dict[str, Any]) -> None:
    """Refuse architectures and variants whose graph would be wrong."""
    expected: dict[str, tuple[Any, ...]] = {
        "model_type": (*_ROBERTA_TYPES, "bert"),
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
    }
    for key, allowed in expected.items():
        found = data.get(key)
        if found not in allowed:
            names = ", ".join(repr(value) for value in allowed if value is not None)
            raise CheckpointError(
                f"{file}: {key} is {found!r}, expected {names}: this encoder cannot be exported"
            )
