"""Embedding function for Chroma. Requires the extra `chroma`.

from koe5_onnx.integrations.chroma import Koe5EmbeddingFunction

collection = client.create_collection("pages", embedding_function=Koe5EmbeddingFunction("koe5-int8"))

Chroma stores the artifact and options in the collection. When the collection is reopened, Chroma recreates
the embedding function from them if this module has been imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import numpy.typing as npt

from koe5_onnx import Embedder, EngineOptions, MissingDependencyError
from koe5_onnx.integrations.shared_embedders import opened
from koe5_onnx.options import EngineFields

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError as error:
    raise MissingDependencyError("chromadb", "chroma", "the Chroma integration") from error


@register_embedding_function
class Koe5EmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents with the prompt "passage" and queries with the prompt "query".

    The artifact is not opened before the first text is embedded, because Chroma also creates instances only
    to compare their configurations.

    Args:
        artifact: Folder created by `koe5-onnx export`, or Hub id of an artifact.
        dim: Number of components to keep, one of `contract.dims`; None keeps all.
        **options: Fields of `EngineOptions`.
    """

    def __init__(
        self, artifact: str | Path, *, dim: int | None = None, **options: Unpack[EngineFields]
    ) -> None:
        self._artifact, self._dim, self._options = str(artifact), dim, EngineOptions(**options)
        self._embedder: Embedder | None = None

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - the name is Chroma's
        """Embed texts with the prompt "passage": one float32[dim] per text.

        Raises:
            Koe5Error: The artifact cannot be opened, or a text is invalid.
        """
        return self._rows(input, "passage")

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 - the name is Chroma's
        """Embed texts with the prompt "query": one float32[dim] per text.

        Raises:
            Koe5Error: The artifact cannot be opened, or a text is invalid.
        """
        return self._rows(input, "query")

    @staticmethod
    def name() -> str:
        """Return the name under which Chroma registers this function."""
        return "koe5_onnx"

    def get_config(self) -> dict[str, Any]:
        """Return the configuration that Chroma stores: artifact, dimension and changed options."""
        return {"artifact": self._artifact, "dim": self._dim, **self._options.changed()}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Koe5EmbeddingFunction:
        """Create the function from the result of `get_config`."""
        return Koe5EmbeddingFunction(**config)

    def default_space(self) -> Space:
        """Return the distance that Chroma uses for new collections."""
        return "cosine"

    def _rows(self, texts: Documents, prompt_name: str) -> list[npt.NDArray[Any]]:
        if self._embedder is None:
            self._embedder = opened(self._artifact, self._options)
        return list(self._embedder.encode(texts, prompt_name, dim=self._dim))
