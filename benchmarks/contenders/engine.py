"""The interface between a worker process and the library of a contender.

Each supported library has an engine module in this package: `load()` imports the library,
`open_engine(opening)` opens one contender's files, and `BATCHES` lists the batch sizes to try. Modules that
prepared.py names as `family` in `RECIPES` also have `prepare(request)`, which writes the files to open. These
functions run in an environment that may lack the packages of other libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ids = list[npt.NDArray[np.int32]]

MAX_TOKENS = 512
"""Token limit of every contender."""


@dataclass(frozen=True)
class Opening:
    """Arguments for opening a contender."""

    files: Path
    """Folder to open: an artifact, prepared files, or the checkpoint."""
    checkpoint: Path
    """Folder of the tokenizer and the configuration."""
    threads: int
    options: Mapping[str, Any]
    """Options that distinguish contenders of the same library."""
    batch: int
    """Batch size in texts or tokens with padding, depending on the library; 0 uses the default of the engine
    module."""


@dataclass(frozen=True)
class Request:
    """Arguments for preparing the files that a contender opens."""

    kind: str
    """Kind of files, a key of `RECIPES` in prepared.py."""
    source: Path
    """The checkpoint, or a folder prepared earlier."""
    out: Path
    texts: Sequence[str]
    """Calibration texts with their prompts."""


class Engine(Protocol):
    """An opened contender."""

    batch: int
    """Batch size; may change between calls."""

    def embed(self, texts: Sequence[str]) -> Array:
        """Return the embeddings of texts that include prompts: float32[n, dim], in the order of the texts."""


class EngineModule(Protocol):
    """An engine module of this package."""

    BATCHES: Sequence[int]

    def load(self) -> Mapping[str, str]:
        """Import the library and return versions by package name."""

    def open_engine(self, opening: Opening) -> Engine:
        """Open a contender."""


class Batched:
    """Engine for libraries that take token ids. Sorts texts by length and splits them into batches.

    Args:
        tokenizer_file: A tokenizer.json.
        batch: Tokens with padding per batch (rows x longest row).
        run: Function that takes the token ids of one batch and returns float32[rows, dim].
    """

    def __init__(self, tokenizer_file: Path, batch: int, run: Callable[[Ids], Array]) -> None:
        from koe5_onnx import Tokenizer

        self.batch = batch
        self._tokenizer = Tokenizer(tokenizer_file, MAX_TOKENS)
        self._run = run

    def embed(self, texts: Sequence[str]) -> Array:
        """Return the embeddings, float32[n, dim], in the order of the texts."""
        ids = self._tokenizer.encode(texts).ids
        plan = sorted_batches([len(row) for row in ids], self.batch)
        parts = [self._run([ids[row] for row in rows]) for rows in plan]
        out = np.empty((len(texts), parts[0].shape[1]), np.float32)
        for rows, part in zip(plan, parts, strict=True):
            out[rows] = part
        return out


def sorted_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return batches of row indices, longest rows first.

    A batch has at most `budget` tokens with padding, or a single row.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(ids: Ids, pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return input_ids and attention_mask, int64[rows, longest row] each."""
    shape = (len(ids), max(map(len, ids)))
    input_ids, mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    for row, some in enumerate(ids):
        input_ids[row, : len(some)] = some
        mask[row, : len(some)] = 1
    return input_ids, mask


def pad_id_of(checkpoint: Path) -> int:
    """Return the padding id from the checkpoint's config.json."""
    import json

    return int(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["pad_token_id"])
