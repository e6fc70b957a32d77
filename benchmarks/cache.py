"""Cache for embeddings, with one file per part of up to `PART` texts.

PyTorch can take minutes per part on a CPU. Each part is saved as soon as it is computed, so an interrupted
run continues with the first missing part. A file's name is a hash of the texts with their prompts, and of the
encoder's identity: what else can change an embedding, such as weights and library versions.
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
"""Function that embeds texts that include their prompts, and returns float32[texts, dim]."""

PART = 60
"""Maximum number of texts per file. PyTorch takes one to three minutes for as many pages on two cores."""


def embed_cached(
    folder: Path,
    identity: Mapping[str, Any],
    texts: Sequence[str],
    embed: Embed,
    on_part: Callable[[int, int], None] | None = None,
) -> Array:
    """Return the embeddings of texts, computing those that are not in the cache.

    Args:
        folder: Folder of the cache; created if it is missing.
        identity: JSON-serializable data that identifies the encoder. Different identities share no files.
        texts: At least one text, including prompts.
        embed: Function that embeds the texts of a missing part.
        on_part: Called after each part with the number of finished texts and the number of all texts.

    Returns:
        float32[len(texts), dim].

    Raises:
        InputError: A cache file is damaged.
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
        raise InputError(f"{file} is damaged ({error}). Delete it to compute it again") from error
    if embeddings.dtype != np.float32 or embeddings.ndim != 2 or len(embeddings) != texts:
        raise InputError(
            f"{file} contains {embeddings.dtype}{list(embeddings.shape)}, expected float32[{texts}, dim]. "
            "Delete it to compute it again"
        )
    return np.asarray(embeddings)
