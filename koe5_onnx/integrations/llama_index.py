"""LlamaIndex's BaseEmbedding over an Embedder. Needs the extra `llama-index`.

from koe5_onnx.integrations.llama_index import Koe5Embedding

index = VectorStoreIndex.from_documents(documents, embed_model=Koe5Embedding("koe5-int8"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from koe5_onnx import AsyncEmbedder, Embedder, EngineOptions, MissingDependencyError
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.integrations.shared_embedders import opened
from koe5_onnx.options import EngineFields

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
except ImportError as error:
    raise MissingDependencyError("llama-index-core", "llama-index", "LlamaIndex's embeddings") from error


class Koe5Embedding(BaseEmbedding):
    """Embeds texts and nodes as passages and queries as queries.

    Takes every field of `EngineOptions` by name, or all of them as `options`. `to_dict` and `from_dict` keep
    the artifact's name and the options; the same ones share one Embedder.
    `embed_batch_size` is what LlamaIndex hands over at once: batches are filled by tokens, so more is better.

    Raises:
        Koe5Error: The artifact cannot be opened, as `Embedder.open` says, or not cut to `dim`.
    """

    artifact: str = Field(description="Folder made by `koe5-onnx export`, or the Hub id of one.")
    embed_batch_size: int = Field(default=512, gt=0, le=2048, description="Texts handed over at once.")
    dim: int | None = Field(default=None, description="Components kept of each embedding; None: all.")
    options: EngineOptions = Field(default_factory=EngineOptions, description="How the artifact is opened.")

    _embedder: Embedder = PrivateAttr()
    _async: AsyncEmbedder = PrivateAttr()

    def __init__(
        self, artifact: str | Path, *, options: EngineOptions | Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        if isinstance(options, Mapping):  # of a saved configuration
            options = EngineOptions(**options)
        given = {name: fields.pop(name) for name in EngineFields.__annotations__ if name in fields}
        options = replace(options or EngineOptions(), **given)
        fields |= {"artifact": str(artifact), "options": options}
        super().__init__(**fields)
        # Not in a validator: pydantic would wrap the errors of opening.
        self._embedder = opened(self.artifact, self.options)
        require_dim(self.dim, self._embedder.contract)
        self._async = AsyncEmbedder(self._embedder)
        if "model_name" not in self.model_fields_set:
            self.model_name = self._embedder.artifact.manifest.source.repository

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serializes this class."""
        return "Koe5Embedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        row: list[float] = self._embedder.encode_queries([query], dim=self.dim)[0].tolist()
        return row

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = self._embedder.encode_passages(texts, dim=self.dim).tolist()
        return rows

    async def _aget_query_embedding(self, query: str) -> list[float]:
        row: list[float] = (await self._async.encode_queries([query], dim=self.dim))[0].tolist()
        return row

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = (await self._async.encode_passages(texts, dim=self.dim)).tolist()
        return rows
