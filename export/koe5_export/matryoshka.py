"""Find the Matryoshka dimensions that a checkpoint was trained for, in its config.json or model card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from koe5_export.checkpoint import Checkpoint
from koe5_export.config import read_json
from koe5_onnx import CheckpointError, InputError

# Sources: https://huggingface.co/jinaai/jina-embeddings-v3/blob/main/config.json (both keys),
# https://docs.vllm.ai/en/latest/models/pooling_models.html (matryoshka_dimensions)
_IN_CONFIG = ("matryoshka_dimensions", "truncate_dim")
"""Keys of config.json, each with one dimension or a list of them."""
_IN_CARD = re.compile(r'"matryoshka_dims":\s*(\[[\d\s,]*\])')
"""Matches the dimensions among the parameters of MatryoshkaLoss, which sentence-transformers writes to the
model card after training.
Source: MatryoshkaLoss.get_config_dict of sentence-transformers 6.2"""


def matryoshka_dims(
    checkpoint: Checkpoint, known: Sequence[int] = (), given: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the Matryoshka dimensions of the model in ascending order, without the full dimension.

    Args:
        checkpoint: The opened checkpoint.
        known: Dimensions to use if the checkpoint's files have none.
        given: If not None, dimensions that override all others.

    Raises:
        InputError: A dimension of `given` is below 1 or above the full dimension.
        CheckpointError: A dimension in a file of the checkpoint is out of this range.
    """
    dim = checkpoint.config.hidden
    if given is not None:
        for width in given:
            if not 1 <= width <= dim:
                raise InputError(f"matryoshka_dims has {width}; expected dimensions from 1 to {dim}")
        found = set(given)
    else:
        found = set(_stored(checkpoint, dim)) or set(known)
    return tuple(sorted(found - {dim}))


def _stored(checkpoint: Checkpoint, dim: int) -> Iterator[int]:
    file = checkpoint.encoder_folder / "config.json"
    config = read_json(file)
    for key in _IN_CONFIG:
        yield from _checked(config.get(key), dim, f"{file}: {key}")
    card = checkpoint.folder / "README.md"
    if card.is_file():
        for dims in _IN_CARD.findall(card.read_text(encoding="utf-8", errors="replace")):
            yield from _checked(json.loads(dims), dim, f"{card}: matryoshka_dims")


def _checked(value: Any, dim: int, where: str) -> list[int]:
    widths = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(width) is int and 1 <= width <= dim for width in widths):
        raise CheckpointError(
            f"{where} is {value!r}; expected dimensions from 1 to {dim}. "
            "Pass the right ones with --matryoshka-dims"
        )
    return widths
