"""Embedder components for Haystack. Requires the extra `haystack`.

from koe5_onnx.integrations.haystack import Koe5DocumentEmbedder, Koe5TextEmbedder

documents = Koe5DocumentEmbedder("koe5-int8", meta_fields_to_embed=["title"]).run(documents)["documents"]
query = Koe5TextEmbedder("koe5-int8").run("대한민국의 수도는?")["embedding"]

Haystack 3 loads a saved pipeline only if the modules of its components are trusted:
`Pipeline.load(file, allowed_modules=["koe5_onnx.integrations.haystack"])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

from koe5_onnx import AsyncEmbedder, Embedder, EngineOptions, MissingDependencyError
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.integrations.shared_embedders import opened
from koe5_onnx.options import EngineFields

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise MissingDependencyError("haystack-ai", "haystack", "the Haystack integration") from error


class _Opened:
    def __init__(self, artifact: str | Path, dim: int | None, options: EngineOptions) -> None:
        self.artifact, self.dim, self.options = str(artifact), dim, options
        self._async: AsyncEmbedder | None = None

    @property
    def asynchronous(self) -> AsyncEmbedder:
        if self._async is None:
            embedder = opened(self.artifact, self.options)
            require_dim(self.dim, embedder.contract)
            self._async = AsyncEmbedder(embedder)
        return self._async

    @property
    def embedder(self) -> Embedder:
        return self.asynchronous.embedder


@component
class Koe5TextEmbedder:
    """Embeds a text with the prompt "query".

    Args:
        artifact: Folder created by `koe5-onnx export`, or Hub id of an artifact.
        dim: Number of components to keep, one of `contract.dims`; None keeps all.
        **options: Fields of `EngineOptions`.
    """

    def __init__(
        self, artifact: str | Path, *, dim: int | None = None, **options: Unpack[EngineFields]
    ) -> None:
        self._opened = _Opened(artifact, dim, EngineOptions(**options))

    def warm_up(self) -> None:
        """Open the artifact.

        Raises:
            Koe5Error: The artifact cannot be opened (see `Embedder.open`).
        """
        self._opened.embedder  # noqa: B018

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a text with the prompt "query".

        Returns:
            "embedding": `dim` floats.

        Raises:
            TypeError: `text` is not a str.
            InputError: The text is not valid Unicode.
        """
        _require_text(text)
        rows = self._opened.embedder.encode_queries([text], dim=self._opened.dim)
        return {"embedding": rows[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Async version of `run`. Concurrent calls share batches."""
        _require_text(text)
        rows = await self._opened.asynchronous.encode_queries([text], dim=self._opened.dim)
        return {"embedding": rows[0].tolist()}

    def to_dict(self) -> dict[str, Any]:
        """Serialize the arguments of the component."""
        saved: dict[str, Any] = default_to_dict(
            self, artifact=self._opened.artifact, dim=self._opened.dim, **self._opened.options.changed()
        )
        return saved

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Create the component from the result of `to_dict`."""
        loaded: Self = default_from_dict(cls, data)
        return loaded


@component
class Koe5DocumentEmbedder:
    """Embeds documents with the prompt "passage".

    Args:
        artifact: Folder created by `koe5-onnx export`, or Hub id of an artifact.
        meta_fields_to_embed: Fields of `Document.meta` whose values are prepended to the content, if present.
        embedding_separator: Separator after each of these values.
        dim: Number of components to keep, one of `contract.dims`; None keeps all.
        **options: Fields of `EngineOptions`.
    """

    def __init__(
        self,
        artifact: str | Path,
        *,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
        dim: int | None = None,
        **options: Unpack[EngineFields],
    ) -> None:
        self.meta_fields_to_embed = list(meta_fields_to_embed or ())
        self.embedding_separator = embedding_separator
        self._opened = _Opened(artifact, dim, EngineOptions(**options))

    def warm_up(self) -> None:
        """Open the artifact.

        Raises:
            Koe5Error: The artifact cannot be opened (see `Embedder.open`).
        """
        self._opened.embedder  # noqa: B018

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents with the prompt "passage".

        Returns:
            "documents": copies with an embedding of `dim` floats, in the same order.

        Raises:
            TypeError: `documents` is not a list of Documents.
            InputError: A text is not valid Unicode.
        """
        embeddings = self._opened.embedder.encode_passages(self._texts(documents), dim=self._opened.dim)
        return {"documents": _with_embeddings(documents, embeddings)}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Async version of `run`. Concurrent calls share batches."""
        embeddings = await self._opened.asynchronous.encode_passages(
            self._texts(documents), dim=self._opened.dim
        )
        return {"documents": _with_embeddings(documents, embeddings)}

    def to_dict(self) -> dict[str, Any]:
        """Serialize the arguments of the component."""
        saved: dict[str, Any] = default_to_dict(
            self,
            artifact=self._opened.artifact,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            dim=self._opened.dim,
            **self._opened.options.changed(),
        )
        return saved

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Create the component from the result of `to_dict`."""
        loaded: Self = default_from_dict(cls, data)
        return loaded

    def _texts(self, documents: list[Document]) -> list[str]:
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise TypeError(
                "documents must be a list of haystack.Document. To embed a text, use Koe5TextEmbedder"
            )
        return [self._text_of(document) for document in documents]

    def _text_of(self, document: Document) -> str:
        values = [document.meta.get(name) for name in self.meta_fields_to_embed]
        known = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*known, document.content or ""])


def _require_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(
            f"text is a {type(text).__name__}: expected a str. To embed Documents, use Koe5DocumentEmbedder"
        )


def _with_embeddings(documents: list[Document], embeddings: Any) -> list[Document]:
    return [
        replace(document, embedding=row) for document, row in zip(documents, embeddings.tolist(), strict=True)
    ]
