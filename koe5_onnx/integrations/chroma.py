"""Chroma's embedding function over an Embedder. Needs the extra `chroma`.

from koe5_onnx.integrations.chroma import Koe5EmbeddingFunction

collection = client.create_collection("pages", embedding_function=Koe5EmbeddingFunction("koe5-int8"))

Chroma writes the artifact and the options into the collection. Where this module has been imported, a
collection that is opened again finds its embedding function by them.
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
    raise MissingDependencyError("chromadb", "chroma", "Chroma's embedding functions") from error


@register_embedding_function
class Koe5EmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents as passages and queries as queries.

    The artifact is opened at the first text: Chroma builds the function again each time that it compares
    configurations.

    Args:
        artifact: A folder made by `koe5-onnx export`, or the Hub id of one.
        dim: Components kept of each embedding, one of the contract's `dims`; None keeps all.
        **options: Fields of `EngineOptions`.
    """

    def __init__(
        self, artifact: str | Path, *, dim: int | None = None, **options: Unpack[EngineFields]
    ) -> None:
        self._artifact, self._dim, self._options = str(artifact), dim, EngineOptions(**options)
        self._embedder: Embedder | None = None

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - the name is Chroma's
        """Embed texts with the prompt "passage": a float32[dim] a text.

        Raises:
            Koe5Error: The artifact cannot be opened, or a text cannot be used.
        """
        return self._rows(input, "passage")

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 - the name is Chroma's
        """Embed texts with the prompt "query": a float32[dim] a text.

        Raises:
            Koe5Error: The artifact cannot be opened, or a text cannot be used.
        """
        return self._rows(input, "query")

    @staticmethod
    def name() -> str:
        """The name by which a collection finds this function again."""
        return "koe5_onnx"

    def get_config(self) -> dict[str, Any]:
        """What a collection keeps: the artifact, the dimensions and the options."""
        return {"artifact": self._artifact, "dim": self._dim, **self._options.changed()}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Koe5EmbeddingFunction:
        """What `get_config` gave, as a function again."""
        return Koe5EmbeddingFunction(**config)

    def default_space(self) -> Space:
        """The distance of a collection that names none."""
        return "cosine"

    def _rows(self, texts: Documents, prompt_name: str) -> list[npt.NDArray[Any]]:
        if self._embedder is None:
            self._embedder = opened(self._artifact, self._options)
        return list(self._embedder.encode(texts, prompt_name, dim=self._dim))
