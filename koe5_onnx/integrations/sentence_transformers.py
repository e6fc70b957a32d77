"""The calls of sentence-transformers' SentenceTransformer on an artifact: without it, and without PyTorch.

Arguments mean what they mean there; one that an artifact cannot honor is refused where ignoring it would
change the result. What differs: `truncate_dim` is a width that the model was trained for; no texts give
float32[0, dim]; similarities of NumPy arrays are NumPy arrays; and `encode_document` puts "passage: " in
front, where the original takes an empty prompt "document" of its own for any checkpoint that names only
"query" and "passage", as E5 and KoE5 do (found with 6.2.0). Code that asks for `isinstance(model,
SentenceTransformer)` needs the original.
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
"""A progress bar is shown where its level is INFO or DEBUG and the caller does not say."""

_QUERY = ("query",)
_DOCUMENT = ("document", "passage", "corpus")
"""Prompt names that `encode_query` and `encode_document` look for, in this order."""


class SentenceEncoder:
    """Stands in for a SentenceTransformer where texts are encoded and compared.

    Example::

        model = SentenceEncoder("koe5-int8")
        queries = model.encode_query(["대한민국의 수도는?"])
        passages = model.encode(["서울은 대한민국의 수도이다."], prompt_name="passage")
        model.similarity(queries, passages)  # float32[1, 1]

    Args:
        artifact: An Embedder, a folder made by `koe5-onnx export`, or the Hub id of one.
        prompts: Prompt name to the text put in front; None takes the artifact's.
        default_prompt_name: The prompt of texts that `encode` gets without one; None puts nothing in front.
        truncate_dim: Components kept of each embedding, one of the contract's `dims`; None and anything
            above the full width keep all.
        **options: Fields of `EngineOptions`, if it is not open yet.

    Raises:
        InputError: `default_prompt_name` is not among the prompts, or the model was not trained to be cut to
            `truncate_dim` components.
        Koe5Error: The artifact cannot be opened; `Embedder.open` says when.
    """

    similarity_fn_name = "cosine"

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
        chunk_size: int | None = None,  # noqa: ARG002 - part of the signature, as task
        *,
        task: str | None = None,  # noqa: ARG002
        sentences: Any = None,
    ) -> Any:
        """Embed one text or many.

        Args:
            inputs: A str, or any sequence of them.
            prompt_name: Name of a prompt; ignored, with a warning, where `prompt` is given.
            prompt: Text put in front of each text.
            batch_size: At least 1; changes nothing, as batches are filled by tokens (`max_batch_tokens`).
            show_progress_bar: Whether to show one; None shows it where the log level is INFO or DEBUG.
            output_value: Only "sentence_embedding".
            precision: "float32", or a bit a component: "ubinary" (uint8) or "binary" (int8).
            convert_to_numpy: False gives a list of tensors, which needs PyTorch.
            convert_to_tensor: True gives one tensor, which needs PyTorch.
            device: None, or the one that the artifact is open on.
            normalize_embeddings: Whether to scale to unit length, after truncation.
            truncate_dim: Components kept of each embedding, as of the constructor; None takes the encoder's.
                As there, kept ones are scaled to unit length only by `normalize_embeddings`.
            pool: Only None: `parallel_batches` runs several batches at once.
            chunk_size: Part of `pool`, and without effect as there.
            task: Without effect, as in every SentenceTransformer that has no router.
            sentences: The older name of `inputs`.

        Returns:
            float32[dim] for a str, else float32[n, dim] in the caller's order; or tensors of the same shape.

        Raises:
            InputError: An argument is unknown, out of range or cannot be honored, or a text cannot be used.
            MissingDependencyError: Tensors are asked for and PyTorch is not installed.
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
        """`encode`, with the prompt "query" where none is given."""
        return self.encode(inputs, self._named(prompt_name, prompt, _QUERY), prompt, **options)

    def encode_document(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """`encode`, with the prompt "document", "passage" or "corpus" where none is given."""
        return self.encode(inputs, self._named(prompt_name, prompt, _DOCUMENT), prompt, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compare every row of the first with every row of the second, by the contract's similarity.

        Args:
            embeddings1: [n, dim] or [dim], an array, a tensor or a list of either.
            embeddings2: [m, dim] or [dim], the same.

        Returns:
            float32[n, m]; a tensor where an argument is one.
        """
        a, b = self._comparable(embeddings1), self._comparable(embeddings2)
        return like(a @ b.T, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compare each row of the first with the same row of the second: float32[n]."""
        a, b = self._comparable(embeddings1), self._comparable(embeddings2)
        return like(np.einsum("nd,nd->n", a, b), embeddings1, embeddings2)

    def _comparable(self, embeddings: Any) -> npt.NDArray[np.float32]:
        """Rows whose dot products are the contract's similarities."""
        found = rows(embeddings)
        return found if self.embedder.contract.similarity == "dot" else unit(found)

    def get_embedding_dimension(self) -> int:
        """Components of what `encode` gives."""
        return self._width(self.truncate_dim)

    get_sentence_embedding_dimension = get_embedding_dimension

    def get_max_seq_length(self) -> int:
        """Tokens at which a text is cut, `<s>` and `</s>` included."""
        return self.embedder.contract.max_tokens

    @property
    def max_seq_length(self) -> int:
        """Tokens at which a text is cut; it is the artifact's and cannot be set to another."""
        return self.get_max_seq_length()

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if value != self.max_seq_length:
            raise InputError(
                f"max_seq_length is {value}: the artifact takes {self.max_seq_length} tokens; cut the texts"
            )

    @property
    def device(self) -> str:
        """Where the artifact runs: "cpu" or "cuda"."""
        return "cuda" if "CUDAExecutionProvider" in self.embedder.session.providers else "cpu"

    def _refuse(self, output_value: str | None, precision: str, device: Any, pool: Any, size: int) -> None:
        """Raise where an argument asks for what an artifact does not give."""
        if output_value != "sentence_embedding":
            raise InputError(f"output_value is {output_value!r}: an artifact gives 'sentence_embedding' only")
        if precision not in _PACKED:
            raise InputError(
                f"precision is {precision!r}: expected one of {', '.join(_PACKED)}; int8 and uint8 have "
                "ranges that should come from a corpus: quantize its float32 embeddings"
            )
        if device is not None and str(device).partition(":")[0] != self.device:
            raise InputError(f"device is {device!r}: the artifact is open on {self.device!r}; open it again")
        if pool is not None:
            raise InputError("a pool is given: open with parallel_batches=... to run several batches at once")
        if size < 1:
            raise InputError(f"batch_size is {size}: expected 1 or more")

    def _prompt_text(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None:
            if name is not None:
                warnings.warn(f"both are given: prompt_name {name!r} is ignored for prompt", stacklevel=3)
            return prompt
        name = self.default_prompt_name if name is None else name
        if name is not None and name not in self.prompts:
            raise InputError(f"the prompt's name is {name!r}: expected None or one of {sorted(self.prompts)}")
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
"""How the components of each `precision` are written."""


def _the_one(inputs: Any, sentences: Any) -> Any:
    """What is to be encoded, by whichever of its two names it came.

    Raises:
        TypeError: It came by neither, or by both.
        InputError: It is neither a text nor a sequence of texts.
    """
    if (inputs is None) == (sentences is None):
        raise TypeError("expected the texts as `inputs`, or by its older name `sentences`, and not by both")
    texts = sentences if inputs is None else inputs
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"inputs is a {type(texts).__name__}: expected a text or a sequence of texts")
    return texts


@contextmanager
def _progress(show: bool) -> Iterator[Callable[[int, int], None] | None]:
    if not show:
        yield None
        return
    # A dependency of the runtime; slow to import, so only where it is seen.
    from huggingface_hub.utils import tqdm

    with tqdm(unit=" tokens", unit_scale=True) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_progress
