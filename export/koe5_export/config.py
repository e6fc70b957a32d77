"""Read the shape of an encoder from config.json, and check if the graph builder (graph.py) supports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from koe5_onnx import Architecture, CheckpointError, files
from koe5_onnx.artifact import COUNTING_TYPES

_ROBERTA_TYPES = ("xlm-roberta", "roberta")
_OTHER_NAMES = {
    "num_hidden_layers": "n_layers",
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}
"""Maps the usual name of a setting to DistilBERT's name.
Source: https://huggingface.co/docs/transformers/model_doc/distilbert#transformers.DistilBertConfig"""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder, from config.json."""

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
    """Epsilon of every LayerNorm."""
    buildable: bool = True
    """True if the graph builder supports the encoder; otherwise `token_types` and `epsilon` are 0."""

    @property
    def counts_from_pad(self) -> bool:
        """True if position ids start at pad_id + 1 and skip pad tokens, as in RoBERTa."""
        return self.model_type in COUNTING_TYPES

    @property
    def max_tokens(self) -> int:
        """Longest input that the position table supports: XLM-R has 514 rows for 512 tokens."""
        return self.positions - self.pad_id - 1 if self.counts_from_pad else self.positions

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """PyTorch shapes of all tensors that the encoder needs, by name; empty if not `buildable`."""
        if not self.buildable:
            return {}
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

    def architecture(self, parameters: int) -> Architecture:
        """Return the manifest's description of the encoder; `parameters` is its number of weights."""
        return Architecture(
            model_type=self.model_type,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            intermediate=self.intermediate,
            vocabulary=self.vocabulary,
            parameters=parameters,
        )


def read_json(file: Path, kind: type = dict) -> Any:
    """Parse a JSON file of a checkpoint."""
    return files.read_json(file, CheckpointError, "download it again", kind)


def read_config(folder: Path, *, any_encoder: bool = False) -> EncoderConfig:
    """Read a checkpoint's config.json.

    Args:
        folder: The checkpoint.
        any_encoder: True to also accept encoders that the graph builder does not support.

    Raises:
        CheckpointError: The file is missing or incomplete, or the encoder is not supported.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json. Expected a transformers checkpoint")
    data = read_json(file)
    unknown = _unknown_trait(data)
    if unknown is not None and not any_encoder:
        raise CheckpointError(
            f"{file}: {unknown}. The graph builder does not support this encoder. "
            "Trace it with --exporter optimum"
        )
    try:
        return _encoder_config(data, buildable=unknown is None)
    except KeyError as error:
        raise CheckpointError(
            f"{file} lacks {error}. Expected the complete configuration of an encoder"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has a value of the wrong type: {error}") from error


def _encoder_config(data: dict[str, Any], *, buildable: bool) -> EncoderConfig:
    def number(name: str) -> int:
        other = _OTHER_NAMES.get(name)
        return int(data[other] if name not in data and other in data else data[name])

    return EncoderConfig(
        model_type=str(data["model_type"]),
        layers=number("num_hidden_layers"),
        hidden=number("hidden_size"),
        heads=number("num_attention_heads"),
        intermediate=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        positions=number("max_position_embeddings"),
        token_types=number("type_vocab_size") if buildable else 0,
        pad_id=number("pad_token_id"),
        epsilon=float(data["layer_norm_eps"]) if buildable else 0.0,
        buildable=buildable,
    )


def _unknown_trait(data: dict[str, Any]) -> str | None:
    """Describe a setting that the graph builder does not support; None if there is none."""
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
            return f"{key} is {found!r}; expected {names}"
    return None
