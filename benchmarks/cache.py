"""Embeddings that are computed once: parts of `PART` texts, each a file of its own.

PyTorch takes minutes for a part on a CPU and half an hour for a dataset, so a part is kept as soon as it is
done, and an interrupted run goes on with the first part that is missing. A file's name is the SHA-256 of who
embedded (weights, tokenizer, contract, library versions, CPU: whatever can change a result) and of the texts
with their prompts in front.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx import InputError
from koe5_onnx.files import atomic_path

Array = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Array]
"""Texts with their prompts in front to float32[n, dim]."""

PART = 60
"""Texts of one file: about two and a half minutes of PyTorch with KoE5 on two cores."""


def embed_cached(
    folder: Path,
    identity: Mapping[str, Any],
    texts: Sequence[str],
    embed: Embed,
    on_part: Callable[[int, int], None] | None = None,
) -> Array:
    """Embed texts, or read what was embedded before.

    Args:
        folder: Where the parts lie; made if it is missing.
        identity: What embeds, as plain data; another identity never gets these parts.
        texts: At least one text, prompts in front.
        embed: Computes what is missing.
        on_part: Called after each part with the texts done and the texts in all.

    Returns:
        float32[len(texts), dim].

    Raises:
        InputError: A file of the cache is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Array] = []
    for start in range(0, len(texts), PART):
        part = texts[start : start + PART]
        file = folder / f"{_key(identity, part)}.npy"
        if not file.is_file():
            embeddings = embed(part)
            with atomic_path(file) as temporary, temporary.open("xb") as stream:
                np.save(stream, embeddings, allow_pickle=False)
        parts.append(_read(file, len(part)))
        if on_part is not None:
            on_part(start + len(part), len(texts))
    return np.concatenate(parts)


def _key(identity: Mapping[str, Any], texts: Sequence[str]) -> str:
    text = json.dumps([identity, list(texts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(file: Path, texts: int) -> Array:
    try:
        embeddings = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{file} is damaged ({error}): delete it, and it is computed again") from error
    if embeddings.dtype != np.float32 or embeddings.ndim != 2 or len(embeddings) != texts:
        raise InputError(
            f"{file} holds {embeddings.dtype}{list(embeddings.shape)}, expected float32[{texts}, dim]: "
            "delete it, and it is computed again"
        )
    return np.asarray(embeddings)
