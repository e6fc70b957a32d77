"""Which widths a checkpoint was trained to be cut to (Matryoshka), as published models record it."""

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
"""Keys of config.json, each a width or a list of them."""
_IN_CARD = re.compile(r'"matryoshka_dims":\s*(\[[\d\s,]*\])')
"""Parameters of MatryoshkaLoss as sentence-transformers writes them into the model card of a training run.
Source: MatryoshkaLoss.get_config_dict of sentence-transformers 6.2"""


def matryoshka_dims(
    checkpoint: Checkpoint, known: Sequence[int] = (), given: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the widths that the model was trained to be cut to, without the full one, in rising order.

    Args:
        checkpoint: The opened checkpoint.
        known: Used if the checkpoint's own files name none.
        given: Used instead of all else if not None.

    Raises:
        InputError: A width of `given` is not from 1 to the full one.
        CheckpointError: One in a file of the checkpoint is not.
    """
    dim = checkpoint.config.hidden
    if given is not None:
        for width in given:
            if not 1 <= width <= dim:
                raise InputError(f"matryoshka_dims has {width}: expected widths from 1 to {dim}")
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
    """The widths of one entry, which may be a single one or none."""
    widths = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(width) is int and 1 <= width <= dim for width in widths):
        raise CheckpointError(
            f"{where} is {value!r}: expected widths from 1 to {dim}. Pass the right ones: --matryoshka-dims"
        )
    return widths
