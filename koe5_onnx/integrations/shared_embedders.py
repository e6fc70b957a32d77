"""What the adapters run on: an Embedder that the caller opened, or one for each artifact and its options.

Frameworks name a model in several components of one pipeline and build components again from their
configuration, so the same artifact is asked for many times; each copy would cost its memory once more.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Literal, TypedDict

from koe5_onnx import Embedder


class OpenOptions(TypedDict, total=False):
    """The options of `Embedder.open`, where they are said."""

    revision: str | None
    device: str
    threads: int | None
    workers: int | None
    max_batch_tokens: int | None
    overflow: Literal["truncate", "error"]
    kernels: Literal["auto", "fused", "stock"]
    gpu_mem_limit: int | None
    share_weights: bool
    cuda_graphs: bool


_OPEN: weakref.WeakValueDictionary[tuple[object, ...], Embedder] = weakref.WeakValueDictionary()
"""Those that an adapter holds; garbage collection closes the rest."""


def opened(artifact: Embedder | str | Path, options: OpenOptions) -> Embedder:
    """The Embedder itself, or the one for this artifact and these options, opened where nobody has it open.

    Args:
        artifact: An Embedder, a folder made by `koe5-onnx export`, or the Hub id of one.
        options: For `Embedder.open`.

    Raises:
        TypeError: Options are given for an Embedder that is open already, or one is unknown.
        ArtifactError: The artifact is missing, damaged or of another format.
        ProviderError: The device cannot be used.
        InputError: An option is out of range.
    """
    if isinstance(artifact, Embedder):
        if options:
            raise TypeError(f"the Embedder is open already: expected no options, got {', '.join(options)}")
        return artifact
    folder = Path(artifact)
    key = (folder.resolve() if folder.exists() else str(artifact), *sorted(options.items()))
    # No lock: one held at a fork would stay locked in the child. At worst two threads open it at once.
    return _OPEN.get(key) or _OPEN.setdefault(key, Embedder.open(artifact, **options))
