"""LlamaIndex's BaseEmbedding over an Embedder. Needs the extra `llama-index`.

from koe5_onnx.integrations.llama_index import Koe5Embedding

index = VectorStoreIndex.from_documents(documents, embed_model=Koe5Embedding("koe5-int8"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from koe5_onnx import AsyncEmbedder, Embedder, MissingDependencyError
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.integrations.shared_embedders import OpenOptions, opened

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
except ImportError as error:
    raise MissingDependencyError("llama-index-core", "llama-index", "LlamaIndex's embeddings") from error


class Koe5Embedding(BaseEmbedding):
    """Embeds texts and nodes as passages and queries as queries.

    `to_dict` and `from_dict` keep the artifact's name and the options; the same ones share one Embedder.
    `embed_batch_size` is what LlamaIndex hands over at once: batches are filled by tokens, so more is better.

    Raises:
        Koe5Error: The artifact cannot be opened, as `Embedder.open` says, or not cut to `dim`.
    """

    artifact: str = Field(description="Folder made by `koe5-onnx export`, or the Hub id of one.")
    embed_batch_size: int = Field(default=512, gt=0, le=2048, description="Texts handed over at once.")
    dim: int | None = Field(default=None, description="Components kept of each embedding; None: all.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    device: str = Field(default="cpu", description='"cpu", "cuda" or "cuda:N".')
    threads: int | None = Field(default=None, description="CPU threads of a batch; None: usable cores.")
    workers: int | None = Field(default=1, description="Batches that run at the same time.")
    max_batch_tokens: int | None = Field(default=None, description="Tokens of one batch.")
    overflow: Literal["truncate", "error"] = Field(default="truncate", description="For too long texts.")
    kernels: Literal["auto", "fused", "stock"] = Field(default="auto", description="Which graph runs.")
    gpu_mem_limit: int | None = Field(default=None, description="Bytes that may be taken on a GPU.")
    share_weights: bool = Field(default=False, description="Map packed weights that processes share.")
    cuda_graphs: bool = Field(default=False, description="Replay small batches on a GPU.")

    _embedder: Embedder = PrivateAttr()
    _async: AsyncEmbedder = PrivateAttr()

    def __init__(self, artifact: str | Path, **fields: Any) -> None:
        fields["artifact"] = str(artifact)
        super().__init__(**fields)
        # Not in a validator: pydantic would wrap the errors of opening.
        options: Any = {name: getattr(self, name) for name in OpenOptions.__annotations__}
        self._embedder = opened(self.artifact, options)
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
