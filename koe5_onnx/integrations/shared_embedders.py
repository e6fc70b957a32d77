"""Share one Embedder between integrations with the same artifact and options.

Frameworks use a model in several components of a pipeline, and recreate components from a configuration. If
each component opened its own Embedder, the weights would be loaded several times.
"""

from __future__ import annotations

import weakref
from pathlib import Path

from koe5_onnx import Embedder, EngineOptions

_OPEN: weakref.WeakValueDictionary[tuple[str | Path, EngineOptions], Embedder] = weakref.WeakValueDictionary()
"""Embedders in use, by artifact and options. Unused ones are garbage-collected."""


def opened(artifact: Embedder | str | Path, options: EngineOptions) -> Embedder:
    """Return an Embedder unchanged, or the shared Embedder of an artifact, opened if necessary.

    Args:
        artifact: Embedder, folder created by `koe5-onnx export`, or Hub id of an artifact.
        options: Engine options.

    Raises:
        TypeError: Options are given together with an Embedder.
        ArtifactError: The artifact is missing, damaged or in an unsupported format.
        ProviderError: The device cannot be used.
    """
    if isinstance(artifact, Embedder):
        if changed := options.changed():
            raise TypeError(f"the Embedder is already open: expected no options, got {', '.join(changed)}")
        return artifact
    folder = Path(artifact)
    key = (folder.resolve() if folder.exists() else str(artifact), options)
    # Without a lock, two threads may open the artifact at the same time, and one Embedder is discarded. But a
    # lock that another thread holds during a fork would stay locked in the child.
    return _OPEN.get(key) or _OPEN.setdefault(key, Embedder.open(artifact, options=options))
