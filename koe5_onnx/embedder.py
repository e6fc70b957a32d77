"""The synchronous API. It adds prompts, tokenizes texts, runs batches and restores the caller's order."""

from __future__ import annotations

import sys
import warnings
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact import Artifact, Contract
from koe5_onnx.artifact.matryoshka import require_dim, shorten
from koe5_onnx.engine.pipeline import FIRST_GPU_WINDOW_TEXTS, WINDOW_TEXTS, run_batches, tokenize_ahead
from koe5_onnx.engine.session import Session
from koe5_onnx.engine.tuning import arrange, choose_tuned
from koe5_onnx.errors import (
    ArtifactError,
    FidelityError,
    InputError,
    Koe5Warning,
    TextTooLongError,
    TruncationWarning,
)
from koe5_onnx.options import EngineFields, EngineOptions, Overflow
from koe5_onnx.text.prompts import prompt_text, put_in_front
from koe5_onnx.text.tokenizer import Piece, Tokenizer, Tokens, require_unicode

Progress = Callable[[int, int], None]
"""Function called after each batch with the number of embedded tokens and the total, at first an estimate."""
Window = tuple[Tokens, npt.NDArray[np.float32]]
"""Tokens of consecutive texts, and the array float32[n, dim] for their embeddings."""
SELFTEST_COSINE = 0.999
"""Smallest cosine that `EngineOptions.selftest` accepts. It allows the rounding differences between graphs
and devices."""


@dataclass(frozen=True)
class Encoded:
    """Embeddings with token counts and flags for each text."""

    embeddings: npt.NDArray[np.float32]
    """float32[n, dim], in the caller's order."""
    tokens: npt.NDArray[np.int32]
    """int32[n]: tokens of each text before truncation, including its prompt and special tokens."""
    truncated: npt.NDArray[np.bool_]
    """bool[n]: True if the text was truncated at the token limit."""
    composed: npt.NDArray[np.bool_]
    """bool[n]: True if the text was not in NFC (like macOS file names) and was normalized."""

    @classmethod
    def empty(cls, texts: int, dim: int) -> Self:
        """Allocate an unfilled result for a number of texts."""
        return cls(
            np.empty((texts, dim), dtype=np.float32),
            np.empty(texts, dtype=np.int32),
            np.empty(texts, dtype=np.bool_),
            np.empty(texts, dtype=np.bool_),
        )

    @classmethod
    def joined(cls, parts: Sequence[Encoded], dim: int) -> Self:
        """Concatenate results in order; an empty sequence gives an empty result."""
        whole: list[Encoded] = [cls.empty(0, dim), *parts]
        return cls(
            np.concatenate([part.embeddings for part in whole]),
            np.concatenate([part.tokens for part in whole]),
            np.concatenate([part.truncated for part in whole]),
            np.concatenate([part.composed for part in whole]),
        )

    def shortened(self, dim: int | None, contract: Contract) -> Encoded:
        """Return the result with the embeddings shortened to `dim` components; None keeps all."""
        return self if dim is None else replace(self, embeddings=shorten(self.embeddings, dim, contract))


class Embedder:
    """Computes embeddings of Korean and English texts. Thread-safe.

    After a fork (multiprocessing, gunicorn), a child process can use an Embedder that the parent opened on
    the CPU: the first call in the child reloads the graph. Opening the artifact only in the child needs less
    memory. CUDA cannot be used after a fork.

    A pickled Embedder contains the path and hash of its artifact and its options, but no weights. Unpickling
    and `copy.deepcopy` open the artifact again.

    ```python
    with Embedder.open("koe5-int8") as embedder:
        queries = embedder.encode_queries(["대한민국의 수도는?"])
        passages = embedder.encode_passages(["서울은 대한민국의 수도이다.", "Rust is a language."])
        print(embedder.similarity(queries, passages))
    ```
    """

    def __init__(
        self,
        artifact: Artifact,
        session: Session,
        tokenizer: Tokenizer,
        *,
        max_batch_tokens: int,
        queue_batch_tokens: int | None = None,
        parallel_batches: int = 1,
        overflow: Overflow = "truncate",
    ) -> None:
        self.artifact = artifact
        self.session = session
        self.max_batch_tokens = max_batch_tokens
        self.queue_batch_tokens = queue_batch_tokens or max_batch_tokens
        """Maximum tokens per batch in an AsyncEmbedder and in the server, which mix several calls."""
        self.parallel_batches = parallel_batches
        self._tokenizer = tokenizer
        self.overflow = overflow
        self._run = partial(
            run_batches, session, max_batch_tokens=max_batch_tokens, parallel_batches=parallel_batches
        )
        self._warned: dict[type[Koe5Warning], object] = {}
        self._opened: tuple[str, EngineOptions] | None = None
        """Arguments of `open`, for pickle; None if the Embedder was created in another way."""

    @classmethod
    def open(
        cls,
        path_or_hub_id: str | Path,
        *,
        options: EngineOptions | None = None,
        **fields: Unpack[EngineFields],
    ) -> Self:
        """Open an artifact.

        Args:
            path_or_hub_id: Folder created by `koe5-onnx export`, or Hub id of an artifact.
            options: Engine options; None uses the defaults of `EngineOptions`.
            **fields: Fields of `EngineOptions` by name. They override `options`.

        Raises:
            ArtifactError: The artifact is missing, damaged or in an unsupported format, or the installed
                version of tokenizers is not suitable, for example because it returns other ids than at
                export.
            ProviderError: The device or graph cannot be used, or CUDA graph capture failed.
            InputError: An option is out of range, or two options contradict each other.
            MissingDependencyError: Neither onnxruntime nor onnxruntime-gpu is installed.
            FidelityError: The self-test failed.
        """
        options = replace(options or EngineOptions(), **fields)
        artifact = Artifact.open(path_or_hub_id, revision=options.revision)
        contract, certificate = artifact.manifest.contract, artifact.manifest.certificate
        tokenizer = Tokenizer(
            artifact.tokenizer,
            contract.max_tokens,
            contract.unicode_form,
            keep_rest=options.overflow == "average",
        )
        made_with = certificate.measured_with.get("tokenizers", "of another version") if certificate else ""
        tokenizer.require_ids(artifact.manifest.tokenizer_probes, made_with)
        arrangement, queue_batch_tokens = arrange(artifact, options)
        session = Session(
            artifact, replace(options, threads=arrangement.threads), choose_tuned(artifact, options)
        )
        embedder = cls(
            artifact,
            session,
            tokenizer,
            max_batch_tokens=arrangement.max_batch_tokens,
            queue_batch_tokens=queue_batch_tokens,
            parallel_batches=arrangement.parallel_batches,
            overflow=options.overflow,
        )
        path = Path(path_or_hub_id)
        embedder._opened = str(path.absolute() if path.is_dir() else path_or_hub_id), options
        if options.selftest:
            embedder._test_golden_embeddings()
        return embedder

    def __reduce__(self) -> tuple[Callable[..., Embedder], tuple[type[Embedder], str, EngineOptions, str]]:
        if self._opened is None:
            raise TypeError("this Embedder cannot be pickled: expected one that Embedder.open returned")
        return _reopen, (type(self), *self._opened, self.artifact.manifest.sha256)

    @property
    def contract(self) -> Contract:
        """Pooling, prompts, token limit and embedding dimension."""
        return self.artifact.manifest.contract

    @property
    def dim(self) -> int:
        """Embedding dimension."""
        return self.contract.dim

    def encode_queries(self, texts: Iterable[str], *, dim: int | None = None) -> npt.NDArray[np.float32]:
        """Embed search queries; same as `encode` with `prompt_name="query"`."""
        return self.encode(texts, "query", dim=dim)

    def encode_passages(self, texts: Iterable[str], *, dim: int | None = None) -> npt.NDArray[np.float32]:
        """Embed documents; same as `encode` with `prompt_name="passage"`."""
        return self.encode(texts, "passage", dim=dim)

    def encode(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dim: int | None = None,
        on_progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: Any number of texts. Empty texts are embedded too. Texts are processed in windows of up to
                4,096; equal texts of a window are computed once. With `overflow="error"`, a sequence is one
                window.
                An iterator, such as a generator, is read window by window, so that its texts need not be in
                memory at the same time; error messages count its texts from the beginning of the window.
            prompt_name: Name of a prompt in the contract ("query", "passage"); None uses the contract's
                default prompt, or no prompt if it has none.
            prompt: Prompt text ("query: "), instead of `prompt_name`; "" adds no prompt.
            dim: Number of components to keep, one of `contract.dims`; None keeps all. Shortened embeddings
                are normalized again if the contract normalizes.
            on_progress: Called after each batch with the number of embedded tokens and the total.

        Returns:
            float32[n, dim] in the caller's order, of unit length if the contract normalizes. The
            embedding of a text does not depend on other texts in the same call, up to float rounding.

        Raises:
            TypeError: `texts` is a single str or bytes, a mapping, or a set, which has no order.
            InputError: A text is not a str or not valid Unicode, the prompt name is unknown, both
                `prompt_name` and `prompt` are given, or the model was not trained for `dim` components.
            TextTooLongError: A text exceeds the token limit and `overflow="error"` is set. All texts of a
                sequence are checked before the first batch runs, texts of an iterator window by window.
            ProviderError: The Embedder is closed, or a batch does not fit into device memory.
        """
        return self.encode_with_info(
            texts, prompt_name, prompt=prompt, dim=dim, on_progress=on_progress
        ).embeddings

    def encode_with_info(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dim: int | None = None,
        on_progress: Progress | None = None,
    ) -> Encoded:
        """Embed texts like `encode`; also return token counts and flags per text."""
        require_dim(dim, self.contract)
        prompt = prompt_text(self.contract, prompt_name, prompt)
        if isinstance(texts, Iterator):
            return self._encode_iterator(texts, prompt, dim, on_progress)
        texts = as_sequence(texts)
        count = _Count(texts, on_progress)
        first = FIRST_GPU_WINDOW_TEXTS if self.session.graph.layout == "packed_cuda" else None
        encoded, windows = self.tokenize_windows(texts, prompt, first)
        for tokens, out in windows:
            count.tokenized(tokens)
            with self.distinct(tokens, out) as (distinct, rows):
                self._run(distinct, rows, on_batch=count.ran)
            if distinct is not tokens:
                count.ran(tokens.total - distinct.total)
        return encoded.shortened(dim, self.contract)

    def _encode_iterator(
        self, texts: Iterator[str], prompt: str, dim: int | None, on_progress: Progress | None
    ) -> Encoded:
        """Embed texts in windows. The total that `on_progress` gets covers only the texts read so far."""
        parts: list[Encoded] = []
        done = latest = 0

        def report(tokens: int, total: int) -> None:
            nonlocal latest
            latest = tokens
            if on_progress:
                on_progress(done + tokens, done + total)

        for window in windows_of(texts):
            parts.append(self.encode_with_info(window, prompt=prompt, dim=dim, on_progress=report))
            done += latest
        return Encoded.joined(parts, dim or self.dim)

    def tokenize_windows(
        self, texts: Sequence[str], prompt: str, first: int | None = None
    ) -> tuple[Encoded, Iterator[Window]]:
        """Tokenize texts in windows, for callers that run the batches (used by AsyncEmbedder).

        Args:
            texts: Texts, as in `encode`.
            prompt: Prompt text.
            first: Texts of the first window, see `tokenize_ahead`; None makes all windows equal.

        Returns:
            An unfilled result, and an iterator over windows of up to 4,096 texts (with
            `overflow="error"`, one window of all texts). The iterator fills the token counts and flags of the
            result, and raises TextTooLongError as `encode` does. The caller writes the embeddings to the
            arrays of the windows, which are views of the result's embeddings.

        Raises:
            TypeError: `texts` is a single str.
            InputError: A text is not a str or not valid Unicode.
        """
        prompted = put_in_front(prompt, texts, self._warn)
        require_unicode(prompted)
        encoded = Encoded.empty(len(texts), self.dim)
        return encoded, self._windows(prompted, encoded, first)

    @contextmanager
    def distinct(self, tokens: Tokens, out: npt.NDArray[np.float32]) -> Iterator[Window]:
        """Return a context manager that removes the duplicates of a window and fills `out` when it exits.

        It yields the distinct tokens, and an array that the caller must fill with their embeddings. With
        `overflow="average"`, each split text gets the average of its parts in `out`.
        """
        distinct, rows = tokens.distinct()
        if distinct is tokens:
            yield tokens, out
            return
        embeddings = np.empty((len(distinct.ids), self.dim), dtype=np.float32)
        yield distinct, embeddings
        out[:] = tokens.averaged(embeddings[rows], normalize=self.contract.normalize)

    def _windows(self, prompted: Sequence[str], encoded: Encoded, first: int | None) -> Iterator[Window]:
        window = WINDOW_TEXTS
        if self.overflow == "error":  # all texts must be checked before any batch runs
            window, first = max(1, len(prompted)), None
        start = 0
        for tokens in tokenize_ahead(self._tokenizer, prompted, window, first):
            rows = slice(start, start := start + len(tokens.ids))
            encoded.tokens[rows], encoded.composed[rows] = tokens.full_lengths, tokens.composed
            encoded.truncated[rows] = self.is_truncated(tokens)
            self._report_overflow(tokens)
            yield tokens, encoded.embeddings[rows]

    def is_truncated(self, tokens: Tokens) -> npt.NDArray[np.bool_]:
        """Return bool[n]: True for each truncated text; always False with `overflow="average"`."""
        return (tokens.full_lengths > self.contract.max_tokens) & (self.overflow != "average")

    def count_tokens(
        self, texts: Sequence[str], prompt_name: str | None = None, *, prompt: str | None = None
    ) -> npt.NDArray[np.int32]:
        """Count tokens before truncation, including special tokens and prompt: int32[n]."""
        return self.tokenize(texts, prompt_name, prompt=prompt).full_lengths

    def tokenize(
        self, texts: Sequence[str], prompt_name: str | None = None, *, prompt: str | None = None
    ) -> Tokens:
        """Tokenize texts for `embed_tokens`.

        Texts above the token limit raise no error or warning. To find them, compare `full_lengths` with
        `contract.max_tokens`.

        Raises:
            TypeError: `texts` is a single str.
            InputError: A text is not a str or not valid Unicode, or the prompt is invalid (see `encode`).
        """
        prompt = prompt_text(self.contract, prompt_name, prompt)
        return self._tokenizer.encode(put_in_front(prompt, texts, self._warn))

    def tokens_of(self, rows: Sequence[Sequence[int]]) -> Tokens:
        """Return Tokens for texts that the caller has tokenized. Each row has the ids of one text.

        Rows above the token limit are truncated or split, like the texts of `tokenize`.

        Raises:
            InputError: A row lacks the special tokens of a text, or contains an id outside the vocabulary.
        """
        return self._tokenizer.of_ids(rows)

    def pieces(self, text: str, prompt_name: str | None = None, *, prompt: str | None = None) -> list[Piece]:
        """Return all tokens of a text with their character ranges, special tokens included.

        The text is not truncated.

        Raises:
            InputError: The text is not valid Unicode, or the prompt is invalid (see `encode`).
        """
        prompt = prompt_text(self.contract, prompt_name, prompt)
        return self._tokenizer.pieces(put_in_front(prompt, [text], self._warn)[0])

    def embed_tokens(
        self, tokens: Tokens, *, on_batch: Callable[[int], None] = lambda _tokens: None
    ) -> npt.NDArray[np.float32]:
        """Embed the result of `tokenize`: float32[n, dim], in the order of `tokens`.

        `on_batch` is called after each batch with its number of tokens.

        Raises:
            InputError: A row is empty, exceeds the token limit or contains an id outside the vocabulary.
        """
        self._require_ids(tokens)
        parts = Tokens.of(tokens.parts) if tokens.further else tokens
        out = np.empty((len(parts.ids), self.dim), dtype=np.float32)
        self._run(parts, out, on_batch=on_batch)
        return tokens.averaged(out, normalize=self.contract.normalize)

    def similarity(self, a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Compute the contract's similarity (cosine or dot product) of all pairs of rows.

        Args:
            a: float32[n, dim], as returned by `encode`.
            b: float32[m, dim], with the same `dim`.

        Returns:
            float32[n, m].

        Raises:
            InputError: `a` or `b` does not have one of the dimensions in `contract.dims`, or they have
                different dimensions.
        """
        for name, rows in (("a", a), ("b", b)):
            if rows.ndim != 2 or rows.shape[1] not in self.contract.dims:
                widths = " or ".join(map(str, self.contract.dims))
                raise InputError(f"{name} has shape {rows.shape}: expected (rows, {widths})")
        if a.shape[1] != b.shape[1]:
            raise InputError(
                f"a has {a.shape[1]} columns and b has {b.shape[1]}. Encode both with the same dim"
            )
        if self.contract.normalize or self.contract.similarity == "dot":
            return np.asarray(a @ b.T)
        lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None, :]
        return np.asarray(a @ b.T / lengths)

    def close(self) -> None:
        """Release the graph and its memory. The Embedder cannot be used afterwards."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _test_golden_embeddings(self) -> None:
        golden = self.artifact.manifest.selftest
        embeddings = self.embed_tokens(self.tokenize([one.text for one in golden], prompt=""))
        for one, found in zip(golden, embeddings, strict=True):
            expected = np.frombuffer(b64decode(one.embedding), "<f4")
            cosine = float(found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected)))
            if not cosine >= SELFTEST_COSINE:
                self.close()
                raise FidelityError(
                    f"the self-test of {self.artifact.path} failed. The cosine between the embedding of "
                    f"{one.text!r} and the one stored at export is {cosine:.6f}: expected "
                    f"{SELFTEST_COSINE} or more. Graph: {self.session.graph.reason}. Update onnxruntime, or "
                    "use another graph or device"
                )

    def _require_ids(self, tokens: Tokens) -> None:
        limit, vocabulary = self.contract.max_tokens, self.artifact.manifest.architecture.vocabulary
        for row, ids in enumerate(tokens.parts):
            if not 1 <= len(ids) <= limit:
                raise InputError(f"row {row} has {len(ids)} tokens: expected 1 to {limit}")
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise InputError(
                    f"row {row} contains an id outside the vocabulary: expected 0 to {vocabulary - 1}"
                )

    def _report_overflow(self, tokens: Tokens) -> None:
        limit, longest = self.contract.max_tokens, int(tokens.full_lengths.max())
        truncated = self.is_truncated(tokens)
        if not truncated.any():
            return
        found = (
            f"{truncated.sum()} of {len(truncated)} texts have more than {limit} tokens (longest: {longest})"
        )
        if self.overflow == "error":
            first = int(np.argmax(truncated))
            raise TextTooLongError(
                f"{found}; the first one is text {first}. Split these texts, or open the artifact with "
                "overflow='truncate'"
            )
        self._warn(
            TruncationWarning,
            f"{found} and were truncated. Call encode_with_info to find them",
        )

    def _warn(self, kind: type[Koe5Warning], message: str) -> None:
        """Issue a warning once per kind and Embedder, because a server would repeat it for many requests."""
        mine = object()
        if self._warned.setdefault(kind, mine) is mine:  # atomic, so only one thread warns
            warnings.warn(message, kind, stacklevel=_caller_level())


def as_sequence(texts: Iterable[str]) -> Sequence[str]:
    """Return the texts as a sequence.

    Raises:
        TypeError: `texts` is a single str or bytes, a mapping, or a set.
    """
    if isinstance(texts, list | tuple):
        return texts
    if isinstance(texts, str | bytes | Mapping | Set):
        raise TypeError(f"texts is a {type(texts).__name__}: expected a sequence of texts, such as [text]")
    return list(texts)


def windows_of(texts: Iterator[str]) -> Iterator[list[str]]:
    """Yield the texts of an iterator in lists of up to 4,096."""
    while window := list(islice(texts, WINDOW_TEXTS)):
        yield window


def _reopen(kind: type[Embedder], path: str, options: EngineOptions, sha256: str) -> Embedder:
    embedder = kind.open(path, options=options)
    if embedder.artifact.manifest.sha256 != sha256:
        embedder.close()
        raise ArtifactError(
            f"the artifact {path} has changed since the Embedder was pickled. Pickle a new Embedder"
        )
    return embedder


class _Count:
    """Progress in tokens. The total is estimated from characters until all texts are tokenized."""

    def __init__(self, texts: Sequence[str], on_progress: Progress | None) -> None:
        self._texts, self._on_progress = texts, on_progress
        self._characters = self._seen_texts = self._seen_characters = self._seen = self._done = 0

    def tokenized(self, tokens: Tokens) -> None:
        """Record the token and character counts of a window."""
        if self._on_progress:
            self._characters = self._characters or sum(map(len, self._texts))
            rows = slice(self._seen_texts, self._seen_texts + len(tokens.ids))
            self._seen_texts = rows.stop
            self._seen += tokens.total
            self._seen_characters += sum(map(len, self._texts[rows]))

    def ran(self, tokens: int) -> None:
        if self._on_progress:
            self._done += tokens
            share = self._seen_characters / max(1, self._characters)
            self._on_progress(self._done, round(self._seen / share) if 0 < share < 1 else self._seen)


def _caller_level() -> int:
    """Return the `stacklevel` for `warnings.warn` of the first frame outside this package."""
    package, level, frame = str(Path(__file__).parent), 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    return level
