"""Embeddings for LangChain. Requires the extra `langchain`.

from koe5_onnx.integrations.langchain import Koe5Embeddings

store = InMemoryVectorStore(Koe5Embeddings("koe5-int8"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from koe5_onnx import AsyncEmbedder, Embedder, EngineOptions, MissingDependencyError
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.integrations.shared_embedders import opened
from koe5_onnx.options import EngineFields

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise MissingDependencyError("langchain-core", "langchain", "the LangChain integration") from error


class Koe5Embeddings(Embeddings):
    """Embeds documents with the prompt "passage" and queries with the prompt "query".

    Args:
        artifact: Embedder, folder created by `koe5-onnx export`, or Hub id of an artifact.
        dim: Number of components to keep, one of `contract.dims`; None keeps all.
        **options: Fields of `EngineOptions`. Not allowed with an Embedder.

    Raises:
        Koe5Error: The artifact cannot be opened (see `Embedder.open`), or it does not support `dim`.
    """

    def __init__(
        self, artifact: Embedder | str | Path, *, dim: int | None = None, **options: Unpack[EngineFields]
    ) -> None:
        self.embedder = opened(artifact, EngineOptions(**options))
        require_dim(dim, self.embedder.contract)
        self.dim = dim
        self._async = AsyncEmbedder(self.embedder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts with the prompt "passage": a list of `dim` floats per text.

        Raises:
            InputError: A text is not valid Unicode.
        """
        rows: list[list[float]] = self.embedder.encode_passages(texts, dim=self.dim).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """Embed one text with the prompt "query": `dim` floats.

        Raises:
            InputError: The text is not valid Unicode.
        """
        row: list[float] = self.embedder.encode_queries([text], dim=self.dim)[0].tolist()
        return row

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Async version of `embed_documents`. Concurrent calls share batches."""
        rows: list[list[float]] = (await self._async.encode_passages(texts, dim=self.dim)).tolist()
        return rows

    async def aembed_query(self, text: str) -> list[float]:
        """Async version of `embed_query`. Concurrent calls share batches."""
        row: list[float] = (await self._async.encode_queries([text], dim=self.dim))[0].tolist()
        return row
