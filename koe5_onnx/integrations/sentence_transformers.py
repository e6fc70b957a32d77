"""A replacement for SentenceTransformer that runs an artifact, without sentence-transformers and PyTorch.

Arguments have the same meaning as in sentence-transformers. An unsupported argument raises an error if
ignoring it would change the result. Differences:

- `truncate_dim` must be a dimension that the model was trained for.
- An empty list of texts returns float32[0, dim].
- Similarities of NumPy arrays are NumPy arrays.
- `encode_document` adds the prompt "passage" if there is no prompt "document". sentence-transformers (6.2.0)
  defines an empty prompt "document" for checkpoints without one, and uses that.
- `isinstance(model, SentenceTransformer)` is False.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from koe5_onnx import Embedder, EngineOptions, InputError
from koe5_onnx.artifact.matryoshka import require_dim, unit
from koe5_onnx.integrations.shared_embedders import opened
from koe5_onnx.integrations.tensors import import_torch, like, rows
from koe5_onnx.options import EngineFields

LOGGER = logging.getLogger(__name__)
"""Logger whose level determines if progress bars are shown when `show_progress_bar` is None."""

_QUERY = ("query",)
_DOCUMENT = ("document", "passage", "corpus")
"""Prompt names that `encode_query` and `encode_document` look for, in this order."""


class SentenceEncoder:
    """Replacement for SentenceTransformer with its methods for encoding and similarity.

    Example::

        model = SentenceEncoder("koe5-int8")
        queries = model.encode_query(["대한민국의 수도는?"])
        passages = model.encode(["서울은 대한민국의 수도이다."], prompt_name="passage")
        model.similarity(queries, passages)  # float32[1, 1]

    Args:
        artifact: Embedder, folder created by `koe5-onnx export`, or Hub id of an artifact.
        prompts: Prompts by name; None uses those of the artifact.
        default_prompt_name: Name of the prompt for calls of `encode` without one; None uses the default of
            the artifact, if it has one.
        truncate_dim: Number of components to keep, one of `contract.dims`. None, and values above the full
            dimension, keep all.
        **options: Fields of `EngineOptions`. Not allowed with an Embedder.

    Raises:
        InputError: `default_prompt_name` is not in the prompts, or the model was not trained for
            `truncate_dim` components.
        Koe5Error: The artifact cannot be opened (see `Embedder.open`).
    """

    def __init__(
        self,
        artifact: Embedder | str | Path,
        *,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        **options: Unpack[EngineFields],
    ) -> None:
        self.embedder = opened(artifact, EngineOptions(**options))
        contract = self.embedder.contract
        self.prompts = dict(contract.prompts if prompts is None else prompts)
        self.default_prompt_name = default_prompt_name or contract.default_prompt_name
        self.truncate_dim = truncate_dim
        self._prompt_text(None, None)
        self._width(truncate_dim)

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,  # noqa: ARG002 - part of the signature, like task
        *,
        task: str | None = None,  # noqa: ARG002
        sentences: Any = None,
    ) -> Any:
        """Embed one text or many.

        Args:
            inputs: A text or a sequence of texts.
            prompt_name: Name of a prompt; ignored with a warning if `prompt` is given.
            prompt: Prompt text.
            batch_size: At least 1. No effect, because `max_batch_tokens` determines the size of batches.
            show_progress_bar: True shows a progress bar; None shows it if the log level is INFO or DEBUG.
            output_value: Must be "sentence_embedding".
            precision: "float32", or one bit per component: "ubinary" (uint8) or "binary" (int8).
            convert_to_numpy: If False, return a list of tensors. Requires PyTorch.
            convert_to_tensor: If True, return a tensor. Requires PyTorch.
            device: None, or the device on which the artifact was opened.
            normalize_embeddings: True scales embeddings to unit length after truncation to `truncate_dim`.
            truncate_dim: Number of components to keep; None uses the value of the constructor. Truncated
                embeddings are only normalized if `normalize_embeddings` is True.
            pool: Must be None. Use `parallel_batches` instead.
            chunk_size: No effect, like `chunk_size` without a pool in sentence-transformers.
            task: No effect, as in a SentenceTransformer without a router.
            sentences: Former name of `inputs`.

        Returns:
            float32[dim] for a single text, otherwise float32[n, dim] in the caller's order. With one bit per
            component, the dtype is uint8 or int8 and the last axis dim / 8. Tensors have the same shapes.

        Raises:
            InputError: An argument is unknown, out of range or not supported, or a text is invalid.
            MissingDependencyError: Tensors are requested, but PyTorch is not installed.
        """
        self._refuse(output_value, precision, device, pool, batch_size)
        texts = _the_one(inputs, sentences)
        embeddings = self._embed(
            [texts] if isinstance(texts, str) else list(texts),
            self._prompt_text(prompt, prompt_name),
            LOGGER.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
            if show_progress_bar is None
            else show_progress_bar,
        )
        embeddings = embeddings[:, : self._width(self.truncate_dim if truncate_dim is None else truncate_dim)]
        if normalize_embeddings:
            embeddings = unit(embeddings)
        packed = _PACKED[precision](embeddings)
        out = packed if convert_to_numpy and not convert_to_tensor else import_torch().from_numpy(packed)
        if isinstance(texts, str):
            return out[0]
        return out if convert_to_numpy or convert_to_tensor else list(out)

    def encode_query(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """Embed texts like `encode`, with the prompt "query" by default."""
        return self.encode(inputs, self._named(prompt_name, prompt, _QUERY), prompt, **options)

    def encode_document(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """Embed texts like `encode`.

        By default, use the first prompt that the model defines among "document", "passage" and "corpus".
        """
        return self.encode(inputs, self._named(prompt_name, prompt, _DOCUMENT), prompt, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the contract's similarity (cosine or dot product) of all pairs of rows.

        Args:
            embeddings1: Array, tensor or list of either, of shape [n, dim] or [dim].
            embeddings2: Array, tensor or list of either, of shape [m, dim] or [dim].

        Returns:
            float32[n, m]; a tensor if an argument is a tensor.
        """
        a, b = self._comparable(embeddings1), self._comparable(embeddings2)
        return like(a @ b.T, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the similarity of corresponding rows: float32[n]. Arguments are as in `similarity`."""
        a, b = self._comparable(embeddings1), self._comparable(embeddings2)
        return like(np.einsum("nd,nd->n", a, b), embeddings1, embeddings2)

    def _comparable(self, embeddings: Any) -> npt.NDArray[np.float32]:
        """Return embeddings as float32[n, dim], scaled so that dot products are the contract's similarity."""
        found = rows(embeddings)
        return found if self.embedder.contract.similarity == "dot" else unit(found)

    def get_embedding_dimension(self) -> int:
        """Return the dimension of the embeddings that `encode` returns."""
        return self._width(self.truncate_dim)

    get_sentence_embedding_dimension = get_embedding_dimension

    def get_max_seq_length(self) -> int:
        """Return the token limit, special tokens included."""
        return self.embedder.contract.max_tokens

    @property
    def max_seq_length(self) -> int:
        """Token limit of the artifact, which cannot be changed."""
        return self.get_max_seq_length()

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if value != self.max_seq_length:
            raise InputError(
                f"max_seq_length is {value}: expected {self.max_seq_length}, the artifact's token limit. "
                "Shorten the texts instead"
            )

    @property
    def similarity_fn_name(self) -> str:
        """Similarity function of the contract: "cosine" or "dot"."""
        return self.embedder.contract.similarity

    @property
    def device(self) -> str:
        """Device on which the artifact runs: "cpu" or "cuda"."""
        return "cuda" if "CUDAExecutionProvider" in self.embedder.session.providers else "cpu"

    def _refuse(self, output_value: str | None, precision: str, device: Any, pool: Any, size: int) -> None:
        if output_value != "sentence_embedding":
            raise InputError(f"output_value is {output_value!r}: expected 'sentence_embedding'")
        if precision not in _PACKED:
            raise InputError(
                f"precision is {precision!r}: expected one of {', '.join(_PACKED)}. For int8 or uint8, "
                "quantize float32 embeddings with ranges calibrated on your corpus"
            )
        if device is not None and str(device).partition(":")[0] != self.device:
            raise InputError(
                f"device is {device!r}: expected {self.device!r}, on which the artifact is open. "
                "To use another device, open the artifact again"
            )
        if pool is not None:
            raise InputError(
                "pool is not supported. Pass parallel_batches=... when opening the artifact to run several "
                "batches at the same time"
            )
        if size < 1:
            raise InputError(f"batch_size is {size}: expected 1 or more")

    def _prompt_text(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None:
            if name is not None:
                warnings.warn(f"prompt_name {name!r} is ignored because prompt is given", stacklevel=3)
            return prompt
        name = self.default_prompt_name if name is None else name
        if name is not None and name not in self.prompts:
            raise InputError(f"prompt_name is {name!r}: expected None or one of {sorted(self.prompts)}")
        return "" if name is None else self.prompts[name]

    def _named(self, name: str | None, prompt: str | None, names: Sequence[str]) -> str | None:
        if name is not None or prompt is not None:
            return name
        return next((one for one in names if one in self.prompts), None)

    def _width(self, truncate_dim: int | None) -> int:
        if truncate_dim is None or truncate_dim >= self.embedder.dim:
            return self.embedder.dim
        require_dim(truncate_dim, self.embedder.contract, "truncate_dim")
        return truncate_dim

    def _embed(self, texts: Sequence[str], prompt: str, show_bar: bool) -> npt.NDArray[np.float32]:
        with _progress(show_bar) as on_progress:
            return self.embedder.encode(texts, prompt=prompt, on_progress=on_progress)


def _floats(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(embeddings)


def _unsigned_bits(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return np.packbits(embeddings > 0, axis=-1)


def _signed_bits(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return (_unsigned_bits(embeddings) - np.int16(128)).astype(np.int8)


_PACKED: dict[str, Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]] = {
    "float32": _floats,
    "binary": _signed_bits,
    "ubinary": _unsigned_bits,
}
"""Conversion of float32 embeddings to each `precision`."""


def _the_one(inputs: Any, sentences: Any) -> Any:
    """Return the texts from the argument `inputs` or from `sentences`, its former name."""
    if (inputs is None) == (sentences is None):
        raise TypeError("expected exactly one of `inputs` and `sentences` (the former name of `inputs`)")
    texts = sentences if inputs is None else inputs
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"inputs is a {type(texts).__name__}: expected a text or a sequence of texts")
    return texts


@contextmanager
def _progress(show: bool) -> Iterator[Callable[[int, int], None] | None]:
    if not show:
        yield None
        return
    # Imported here because the import is slow.
    from huggingface_hub.utils import tqdm

    with tqdm(unit=" tokens", unit_scale=True) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_progress
