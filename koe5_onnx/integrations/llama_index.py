"""Embeddings for LlamaIndex. Requires the extra `llama-index`.

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
    raise MissingDependencyError("llama-index-core", "llama-index", "the LlamaIndex integration") from error


class Koe5Embedding(BaseEmbedding):
    """Embeds texts and nodes with the prompt "passage" and queries with the prompt "query".

    The constructor accepts every field of `EngineOptions` by name, or an `EngineOptions` object as `options`.
    `to_dict` and `from_dict` preserve the artifact's path or Hub id, `dim` and the options. Instances with
    the same artifact and options share one Embedder.

    `embed_batch_size` is the maximum number of texts that LlamaIndex passes per call. Larger values are
    usually faster, because texts of similar length are batched within a call.

    Raises:
        Koe5Error: The artifact cannot be opened (see `Embedder.open`), or it does not support `dim`.
    """

    artifact: str = Field(description="Folder created by `koe5-onnx export`, or Hub id of an artifact.")
    embed_batch_size: int = Field(default=512, gt=0, le=2048, description="Maximum number of texts per call.")
    dim: int | None = Field(default=None, description="Number of components to keep; None keeps all.")
    options: EngineOptions = Field(default_factory=EngineOptions, description="Engine options.")

    _embedder: Embedder = PrivateAttr()
    _async: AsyncEmbedder = PrivateAttr()

    def __init__(
        self, artifact: str | Path, *, options: EngineOptions | Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        if isinstance(options, Mapping):  # from a saved configuration
            options = EngineOptions(**options)
        given = {name: fields.pop(name) for name in EngineFields.__annotations__ if name in fields}
        options = replace(options or EngineOptions(), **given)
        fields |= {"artifact": str(artifact), "options": options}
        super().__init__(**fields)
        # Not in a validator, because pydantic would wrap the errors.
        self._embedder = opened(self.artifact, self.options)
        require_dim(self.dim, self._embedder.contract)
        self._async = AsyncEmbedder(self._embedder)
        if "model_name" not in self.model_fields_set:
            self.model_name = self._embedder.artifact.manifest.source.repository

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serializes this class."""
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
