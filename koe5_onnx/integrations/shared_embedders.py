"""The Embedder under an adapter: one that the caller opened, or one per artifact and its options.

Frameworks name a model in several components of one pipeline and rebuild components from their configuration,
so the same artifact is asked for many times; each copy would need its memory again.
"""

from __future__ import annotations

import weakref
from pathlib import Path

from koe5_onnx import Embedder, EngineOptions

_OPEN: weakref.WeakValueDictionary[tuple[str | Path, EngineOptions], Embedder] = weakref.WeakValueDictionary()
"""Those that an adapter holds; garbage collection closes the rest."""


def opened(artifact: Embedder | str | Path, options: EngineOptions) -> Embedder:
    """Return the Embedder itself, or the one for this artifact and these options, opened if it is not yet.

    Args:
        artifact: An Embedder, a folder made by `koe5-onnx export`, or the Hub id of one.
        options: How to open it.

    Raises:
        TypeError: Options are given for an Embedder that is already open.
        ArtifactError: The artifact is missing, damaged or of another format.
        ProviderError: The device cannot be used.
    """
    if isinstance(artifact, Embedder):
        if changed := options.changed():
            raise TypeError(f"the Embedder is already open: expected no options, got {', '.join(changed)}")
        return artifact
    folder = Path(artifact)
    key = (folder.resolve() if folder.exists() else str(artifact), options)
    # No lock: one held at a fork would stay locked in the child. At worst two threads open it at once.
    return _OPEN.get(key) or _OPEN.setdefault(key, Embedder.open(artifact, options=options))
