"""What a worker asks of a library: how it is imported, opened and made to embed.

A file of this folder is an engine's module: `load()` imports the library, `open_engine(opening)` opens one
contender's files, `BATCHES` are the sizes worth trying. A module that needs files of its own also has
`prepare(request)`. All run in the environment of their library, where little else is installed.
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
"""Where every contender cuts a text."""


@dataclass(frozen=True)
class Opening:
    """What a contender opens."""

    files: Path
    """Its artifact, prepared folder or checkpoint."""
    checkpoint: Path
    """The folder with tokenizer and configuration."""
    threads: int
    options: Mapping[str, Any]
    """What tells contenders of one library apart."""
    batch: int
    """Texts or padded tokens of one batch, as the library counts; 0 is the library's own choice."""


@dataclass(frozen=True)
class Request:
    """What is made once, before a contender can be opened."""

    kind: str
    source: Path
    """The checkpoint, or a folder that was prepared before."""
    out: Path
    texts: Sequence[str]
    """Calibration: real texts with their prompts."""


class Engine(Protocol):
    """One opened contender."""

    batch: int
    """May be changed between two calls."""

    def embed(self, texts: Sequence[str]) -> Array:
        """Texts with their prompts in front to float32[n, dim], in the caller's order."""


class EngineModule(Protocol):
    """A file of this folder."""

    BATCHES: Sequence[int]

    def load(self) -> Mapping[str, str]:
        """Import the library; name to version."""

    def open_engine(self, opening: Opening) -> Engine:
        """Open a contender."""


class Batched:
    """An engine for libraries that take ids: sorts by length, cuts into batches of a token budget.

    Args:
        tokenizer_file: A tokenizer.json.
        batch: Padded tokens of one batch (rows x longest).
        run: Ids of one batch to float32[rows, dim].
    """

    def __init__(self, tokenizer_file: Path, batch: int, run: Callable[[Ids], Array]) -> None:
        from koe5_onnx import Tokenizer

        self.batch = batch
        self._tokenizer = Tokenizer(tokenizer_file, MAX_TOKENS)
        self._run = run

    def embed(self, texts: Sequence[str]) -> Array:
        """Embed texts: float32[n, dim]."""
        ids = self._tokenizer.encode(texts).ids
        plan = sorted_batches([len(row) for row in ids], self.batch)
        parts = [self._run([ids[row] for row in rows]) for rows in plan]
        out = np.empty((len(texts), parts[0].shape[1]), np.float32)
        for rows, part in zip(plan, parts, strict=True):
            out[rows] = part
        return out


def sorted_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows, longest first, in batches of at most `budget` padded tokens, but of one row at least."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(ids: Ids, pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """input_ids and attention_mask, int64[rows, longest]."""
    shape = (len(ids), max(map(len, ids)))
    input_ids, mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    for row, some in enumerate(ids):
        input_ids[row, : len(some)] = some
        mask[row, : len(some)] = 1
    return input_ids, mask


def pad_id_of(checkpoint: Path) -> int:
    """The id of padding, from the checkpoint's config.json."""
    import json

    return int(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["pad_token_id"])
