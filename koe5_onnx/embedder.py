"""Texts to embeddings: the one joint that knows artifact, tokenizer, pipeline and session.

texts -> prompt in front -> pipeline: ids, batches, threads -> embeddings in the caller's order
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact import Artifact, Contract
from koe5_onnx.artifact.matryoshka import require_dim, shorten
from koe5_onnx.engine.pipeline import WINDOW_TEXTS, run_batches, tokenize_ahead
from koe5_onnx.engine.session import Session
from koe5_onnx.engine.tuning import arrange
from koe5_onnx.errors import InputError, Koe5Warning, TextTooLongError, TruncationWarning
from koe5_onnx.options import EngineFields, EngineOptions, Overflow
from koe5_onnx.text.prompts import prompt_text, put_in_front
from koe5_onnx.text.tokenizer import Piece, Tokenizer, Tokens, require_unicode

Progress = Callable[[int, int], None]
"""Called after each batch: tokens done, tokens in all (an estimate until all texts are tokenized)."""
Window = tuple[Tokens, npt.NDArray[np.float32]]
"""Ids of some texts, and the rows float32[n, dim] to fill with their embeddings."""


@dataclass(frozen=True)
class Encoded:
    """Embeddings, and what happened to each text on the way."""

    embeddings: npt.NDArray[np.float32]
    """float32[n, dim], in the caller's order."""
    tokens: npt.NDArray[np.int32]
    """int32[n]: tokens of each text with its prompt, before truncation."""
    truncated: npt.NDArray[np.bool_]
    """bool[n]: whether the text was cut at the token limit."""
    composed: npt.NDArray[np.bool_]
    """bool[n]: whether the text was in decomposed Unicode, as file names of macOS are, and was composed."""

    @classmethod
    def empty(cls, texts: int, dim: int) -> Self:
        """Return a result for so many texts, to be filled."""
        return cls(
            np.empty((texts, dim), dtype=np.float32),
            np.empty(texts, dtype=np.int32),
            np.empty(texts, dtype=np.bool_),
            np.empty(texts, dtype=np.bool_),
        )

    def shortened(self, dim: int | None, contract: Contract) -> Encoded:
        """The same with embeddings as `shorten` returns them: float32[n, dim]."""
        return self if dim is None else replace(self, embeddings=shorten(self.embeddings, dim, contract))


class Embedder:
    """Turns Korean and English texts into embeddings. Safe to use from several threads.

    After a fork (multiprocessing, gunicorn) an Embedder opened in the parent can be used in the child: its
    first call there loads the graph again. Opening it in the child is faster and needs less memory.

    Example::

        with Embedder.open("koe5-int8") as embedder:
            queries = embedder.encode_queries(["대한민국의 수도는?"])
            passages = embedder.encode_passages(["서울은 대한민국의 수도이다.", "Rust is a language."])
            print(embedder.similarity(queries, passages))
    """

    def __init__(
        self,
        artifact: Artifact,
        session: Session,
        tokenizer: Tokenizer,
        *,
        max_batch_tokens: int,
        parallel_batches: int = 1,
        overflow: Overflow = "truncate",
    ) -> None:
        self.artifact = artifact
        self.session = session
        self.max_batch_tokens = max_batch_tokens
        self.parallel_batches = parallel_batches
        self._tokenizer = tokenizer
        self._overflow = overflow
        self._run = partial(
            run_batches, session, max_batch_tokens=max_batch_tokens, parallel_batches=parallel_batches
        )
        self._warned: dict[type[Koe5Warning], object] = {}

    @classmethod
    def open(
        cls,
        path_or_hub_id: str | Path,
        *,
        options: EngineOptions | None = None,
        **fields: Unpack[EngineFields],
    ) -> Self:
        """Open an exported artifact.

        Args:
            path_or_hub_id: Folder made by `koe5-onnx export`, or the Hub id of one.
            options: How to open it; None takes the defaults of `EngineOptions`.
            **fields: Fields of `EngineOptions` by name; they replace those of `options`.

        Raises:
            ArtifactError: The artifact is missing, damaged or of another format, or the installed tokenizers
                gives other ids than the one that it was exported with.
            ProviderError: The device or the graph cannot be used, or the graph cannot be captured.
            InputError: An option is out of range, or two contradict each other.
        """
        options = replace(options or EngineOptions(), **fields)
        artifact = Artifact.open(path_or_hub_id, revision=options.revision)
        contract, certificate = artifact.manifest.contract, artifact.manifest.certificate
        tokenizer = Tokenizer(artifact.tokenizer, contract.max_tokens, contract.unicode_form)
        made_with = certificate.measured_with.get("tokenizers", "of another version") if certificate else ""
        tokenizer.require_ids(artifact.manifest.tokenizer_probes, made_with)
        arrangement = arrange(artifact, options)
        session = Session(artifact, replace(options, threads=arrangement.threads))
        return cls(
            artifact,
            session,
            tokenizer,
            max_batch_tokens=arrangement.max_batch_tokens,
            parallel_batches=arrangement.parallel_batches,
            overflow=options.overflow,
        )

    @property
    def contract(self) -> Contract:
        """Pooling, prompts, token limit and width."""
        return self.artifact.manifest.contract

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.contract.dim

    def encode_queries(self, texts: Sequence[str], *, dim: int | None = None) -> npt.NDArray[np.float32]:
        """Embed search queries: `encode` with `prompt_name="query"`."""
        return self.encode(texts, "query", dim=dim)

    def encode_passages(self, texts: Sequence[str], *, dim: int | None = None) -> npt.NDArray[np.float32]:
        """Embed passages to be found: `encode` with `prompt_name="passage"`."""
        return self.encode(texts, "passage", dim=dim)

    def encode(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dim: int | None = None,
        on_progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: Any number of texts; an empty one is embedded like any other.
            prompt_name: Name of a prompt in the contract ("query", "passage"); None takes the contract's
                default, which few models have.
            prompt: In place of a name, the text itself ("query: "); "" puts nothing in front.
            dim: Components to keep, one of `contract.dims`; None keeps all. Kept ones are scaled to unit
                length again if the contract normalizes.
            on_progress: Called after each batch with tokens done and tokens in all.

        Returns:
            float32[len(texts), dim] in the caller's order, unit length. The embedding of a text does not
            depend on the texts beside it, up to float rounding.

        Raises:
            TypeError: `texts` is one bare str.
            InputError: A text is not valid Unicode, the prompt's name is unknown or given along with a text,
                or the model was not trained to be cut to `dim` components.
            TextTooLongError: A text is above the token limit and `overflow="error"`.
        """
        return self.encode_with_info(
            texts, prompt_name, prompt=prompt, dim=dim, on_progress=on_progress
        ).embeddings

    def encode_with_info(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dim: int | None = None,
        on_progress: Progress | None = None,
    ) -> Encoded:
        """`encode`, with the token count of each text and whether it was cut."""
        require_dim(dim, self.contract)
        count = _Count(texts, on_progress)
        encoded, windows = self.tokenize_windows(texts, prompt_text(self.contract, prompt_name, prompt))
        for tokens, rows in windows:
            count.tokenized(tokens)
            self._run(tokens, rows, on_batch=count.ran)
        return encoded.shortened(dim, self.contract)

    def tokenize_windows(self, texts: Sequence[str], prompt: str) -> tuple[Encoded, Iterator[Window]]:
        """The first half of `encode_with_info`, by windows; AsyncEmbedder has its own second half.

        Args:
            texts: As for `encode`.
            prompt: The text to put in front.

        Returns:
            The result, not filled yet, and windows of 4,096 texts, or all texts in one with
            `overflow="error"`. The iterator fills the counts; the caller fills each window's embeddings.

        Raises:
            TypeError: `texts` is one bare str.
            InputError: A text is not valid Unicode.
        """
        prompted = put_in_front(prompt, texts, self._warn)
        require_unicode(prompted)
        encoded = Encoded.empty(len(texts), self.dim)
        return encoded, self._windows(prompted, encoded)

    def _windows(self, prompted: Sequence[str], encoded: Encoded) -> Iterator[Window]:
        # An overflow that is an error must be known before anything runs.
        window = WINDOW_TEXTS if self._overflow == "truncate" else max(1, len(prompted))
        start = 0
        for tokens in tokenize_ahead(self._tokenizer, prompted, window):
            rows = slice(start, start := start + len(tokens.ids))
            encoded.tokens[rows], encoded.composed[rows] = tokens.full_lengths, tokens.composed
            encoded.truncated[rows] = tokens.full_lengths > self.contract.max_tokens
            self._report_overflow(tokens)
            yield tokens, encoded.embeddings[rows]

    def count_tokens(
        self, texts: Sequence[str], prompt_name: str | None = None, *, prompt: str | None = None
    ) -> npt.NDArray[np.int32]:
        """Count tokens before truncation, special tokens and prompt included: int32[n]."""
        return self.tokenize(texts, prompt_name, prompt=prompt).full_lengths

    def tokenize(
        self, texts: Sequence[str], prompt_name: str | None = None, *, prompt: str | None = None
    ) -> Tokens:
        """The first half of `encode`: texts to ids, truncated at the token limit; `embed_tokens` is the rest.

        For callers that make batches of their own, as a server does from many requests. Texts above the
        limit show in `full_lengths`; what to do with them is the caller's choice.

        Raises:
            TypeError: `texts` is one bare str.
            InputError: A text is not valid Unicode, or the prompt is as `encode` rejects it.
        """
        prompt = prompt_text(self.contract, prompt_name, prompt)
        return self._tokenizer.encode(put_in_front(prompt, texts, self._warn))

    def pieces(self, text: str, prompt_name: str | None = None, *, prompt: str | None = None) -> list[Piece]:
        """Return the tokens of one text with the part of it that each stands for, special tokens included.

        Never truncated.

        Raises:
            InputError: The text is not valid Unicode, or the prompt is as `encode` rejects it.
        """
        prompt = prompt_text(self.contract, prompt_name, prompt)
        return self._tokenizer.pieces(put_in_front(prompt, [text], self._warn)[0])

    def embed_tokens(
        self, tokens: Tokens, *, on_batch: Callable[[int], None] = lambda _tokens: None
    ) -> npt.NDArray[np.float32]:
        """The second half of `encode`: ids to float32[n, dim], in the order of `tokens`.

        `on_batch` is called after each batch with its tokens.

        Raises:
            InputError: A row is empty, above the token limit, or holds an id outside the vocabulary.
        """
        self._require_ids(tokens)
        out = np.empty((len(tokens.ids), self.dim), dtype=np.float32)
        self._run(tokens, out, on_batch=on_batch)
        return out

    def similarity(self, a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Compare every row of `a` with every row of `b`, by the contract's similarity.

        Args:
            a: float32[n, dim], as `encode` gives it.
            b: float32[m, dim], the same dim.

        Returns:
            float32[n, m].

        Raises:
            InputError: A shape does not fit.
        """
        for name, rows in (("a", a), ("b", b)):
            if rows.ndim != 2 or rows.shape[1] not in self.contract.dims:
                widths = " or ".join(map(str, self.contract.dims))
                raise InputError(f"{name} has shape {rows.shape}: expected (rows, {widths})")
        if a.shape[1] != b.shape[1]:
            raise InputError(f"a has {a.shape[1]} columns and b has {b.shape[1]}: encode both with one dim")
        if self.contract.normalize or self.contract.similarity == "dot":
            return np.asarray(a @ b.T)
        lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None, :]
        return np.asarray(a @ b.T / lengths)

    def close(self) -> None:
        """Free the graph and its memory; the Embedder cannot be used afterwards."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_ids(self, tokens: Tokens) -> None:
        limit, vocabulary = self.contract.max_tokens, self.artifact.manifest.architecture.vocabulary
        for row, ids in enumerate(tokens.ids):
            if not 1 <= len(ids) <= limit:
                raise InputError(f"row {row} has {len(ids)} tokens: expected 1 to {limit}")
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise InputError(
                    f"row {row} has an id outside the vocabulary: expected 0 to {vocabulary - 1}"
                )

    def _report_overflow(self, tokens: Tokens) -> None:
        limit, longest = self.contract.max_tokens, int(tokens.full_lengths.max())
        if longest <= limit:
            return
        truncated = tokens.full_lengths > limit
        found = (
            f"{truncated.sum()} of {len(truncated)} texts have more than {limit} tokens (longest {longest})"
        )
        if self._overflow == "error":
            first = int(np.argmax(truncated))
            raise TextTooLongError(
                f"{found}, first text {first}: split them, or open with overflow='truncate'"
            )
        self._warn(TruncationWarning, f"{found} and were cut; encode_with_info tells which")

    def _warn(self, kind: type[Koe5Warning], message: str) -> None:
        """Warn once of each kind: a server would repeat it with every request."""
        mine = object()
        if self._warned.setdefault(kind, mine) is mine:  # of several threads one
            warnings.warn(message, kind, stacklevel=_caller_level())


class _Count:
    """Tokens done, and in all: known once all texts are tokenized, before that estimated by characters."""

    def __init__(self, texts: Sequence[str], on_progress: Progress | None) -> None:
        self._texts, self._on_progress = texts, on_progress
        self._characters = self._seen_texts = self._seen_characters = self._seen = self._done = 0

    def tokenized(self, tokens: Tokens) -> None:
        """Another window of them, which have been checked by now."""
        if self._on_progress:
            self._characters = self._characters or sum(map(len, self._texts))
            rows = slice(self._seen_texts, self._seen_texts + len(tokens.ids))
            self._seen_texts = rows.stop
            self._seen += int(tokens.lengths.sum())
            self._seen_characters += sum(map(len, self._texts[rows]))

    def ran(self, tokens: int) -> None:
        if self._on_progress:
            self._done += tokens
            share = self._seen_characters / max(1, self._characters)
            self._on_progress(self._done, round(self._seen / share) if 0 < share < 1 else self._seen)


def _caller_level() -> int:
    """Return the stack level, for warnings.warn, of the first frame outside this package."""
    package, level, frame = str(Path(__file__).parent), 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    return level
