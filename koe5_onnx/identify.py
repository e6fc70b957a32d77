"""Identify what made stored vectors: prompt, pooling, truncation and precision.

The vectors are compared with candidates: the embeddings of their texts with each prompt, pooling and token
limit. All poolings of a prompt and a limit are computed from the same token embeddings.

A cosine alone does not identify the maker, because with E5 models even unrelated texts have cosines of 0.7 to
0.9. `Candidate.distance` therefore relates the cosines between vectors and candidates of the same text to
those between vectors and candidates of different texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact import Contract
from koe5_onnx.embedder import Embedder
from koe5_onnx.engine.batching import pad, padded_batches
from koe5_onnx.errors import InputError
from koe5_onnx.text.tokenizer import Tokenizer, Tokens

Array: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
TokenEmbeddings = Callable[[Int64, Int64], Array]
"""Function from input_ids and attention_mask, int64[n, padded_length], to token embeddings before pooling,
float32[n, padded_length, dim]."""

MAX_TEXTS = 200
"""Maximum number of texts that are compared, because each is embedded once per prompt and token limit."""
MIN_TEXTS = 5
MAX_DISTANCE = 0.1
"""Largest `Candidate.distance` of the maker. Measured with trained multilingual-e5-small, 37 Korean texts:
0.0002 for fp32 against int8, 0.02 for fp32 against int4-block, 0.17 for a prompt that is not among the
candidates, 1.0 for all-MiniLM-L6-v2. A poor quantization, with a mean cosine of 0.98, has about 0.1."""
NO_LOSS, MAX_LOSS = 0.01, 0.1
"""Largest loss that is too small to mention, and largest loss with which an index may be kept."""
_LIMITS = (512, 256, 128)
"""Token limits that other systems use by default. Those above the contract's limit are ignored."""
_NEIGHBORS = 10
_TIE = 1.2
"""Candidates whose distances differ by at most this factor count as equal, because quantization can reverse
their order. In E5 models, the tokens `<s>` and `</s>` have nearly the same embedding, so CLS and last-token
pooling have nearly the same distance."""
_EQUAL = 1e-6
"""Cosines that differ by at most this count as equal, because vectors are rounded to float32."""
_UNIT = 1e-3
"""Largest difference from 1 in the length of a normalized vector, which may be stored in float16."""


@dataclass(frozen=True)
class Candidate:
    """A way to embed the texts, compared with the given vectors."""

    prompt_name: str
    """Name of the prompt in the contract, with " (doubled)" if it is added twice; "none" for no prompt."""
    prompt: str
    """Text in front of each text."""
    pooling: str
    """One of `POOLINGS`."""
    max_tokens: int | None
    """Token limit; None if it truncates no text."""
    longest_tokens: int
    """Tokens of the longest text with its prompt, before truncation."""
    cosine_mean: float
    """Mean cosine between the vector and the candidate of the same text."""
    cosine_min: float
    """Smallest cosine between the vector and the candidate of the same text."""
    nearest: float
    """Fraction of the vectors that are more similar to the candidate of their text than to all others."""
    distance: float
    """Mean of 1 - cosine between vector and candidate of the same text, divided by the mean over all pairs of
    different texts: 0 for equal vectors, about 1 for vectors of another model."""


@dataclass(frozen=True)
class Identified:
    """Result of `identify`: what made the vectors, and how well queries of the artifact find them."""

    texts: int
    """Number of different texts that were compared."""
    dim: int
    """Components of a vector."""
    unit_length: bool
    """True if the vectors are normalized."""
    maker: Candidate | None
    """The best candidate if its distance is at most `MAX_DISTANCE`; None if the maker is unknown."""
    candidates: Sequence[Candidate]
    """All candidates, best first; empty if the vectors have more components than the artifact's."""
    precision: str
    """Precision of the maker in words."""
    neighbors: int
    """Best results that are compared per query: 10, or half of the other texts if there are few."""
    overlap: float | None
    """Fraction of the best results of a query that are the same in the stored vectors and in vectors of the
    artifact. Each text is a query for all others. None if there are no candidates."""

    @property
    def truncation(self) -> str:
        """Token limit of the maker in words."""
        if self.maker is None:
            return "unknown"
        if self.maker.max_tokens is not None:
            return f"at {self.maker.max_tokens} tokens"
        longest = f"the longest text has {self.maker.longest_tokens} tokens"
        if all(one.max_tokens is None for one in self.candidates):
            return f"not decidable from these texts, because {longest}"
        return f"none of these texts ({longest})"

    @property
    def verdict(self) -> str:
        """Advice on comparing queries of the artifact with the vectors."""
        loss = 1.0 if self.maker is None or self.overlap is None else 1 - self.overlap
        if loss > MAX_LOSS:
            return "embed the index again"
        return "mix" if loss <= NO_LOSS else f"mix with a loss of {100 * loss:.1f} %"


def identify(
    vectors: npt.NDArray[Any],
    texts: Sequence[str],
    embedder: Embedder,
    reference: TokenEmbeddings | None = None,
) -> Identified:
    """Identify what made the vectors.

    Args:
        vectors: Stored vectors, [n, dim], of any numeric type.
        texts: The text of each vector, without prompt.
        embedder: The artifact whose queries are to be compared with the vectors.
        reference: Token embeddings of its checkpoint in fp32; None uses those of the artifact.

    Raises:
        InputError: The numbers of vectors and texts differ, there are fewer than five different texts, or a
            vector is zero or not finite.
        ArtifactError: The padded graph of the artifact returns no token embeddings.
    """
    rows = _sample(vectors, texts)
    texts = [texts[row] for row in rows]
    given = np.asarray(vectors[rows], np.float64)
    lengths = np.linalg.norm(given, axis=1)
    if not (good := np.isfinite(lengths) & (lengths > 0)).all():
        raise InputError(f"vector {rows[int(good.argmin())]} is zero or not finite. Remove it and its text")
    neighbors = min(_NEIGHBORS, (len(texts) - 1) // 2)
    candidates: list[Candidate] = []
    maker = overlap = None
    precision = "unknown"
    if given.shape[1] <= embedder.dim:
        given = _unit(given)
        overlap = _overlap(given, texts, embedder, neighbors)
        with closing(embedder.session.padded()) as padded:
            own = _Pooled(texts, embedder, padded.token_embeddings)
            pooled = _Pooled(texts, embedder, reference) if reference else own
            candidates = _ranked(_candidates(given, pooled))
            if candidates[0].distance <= MAX_DISTANCE:
                maker = candidates[0]
                precision = _precision(maker, given, own, has_reference=reference is not None)
    return Identified(
        texts=len(texts),
        dim=given.shape[1],
        unit_length=bool((abs(lengths - 1) < _UNIT).all()),
        maker=maker,
        candidates=candidates,
        precision=precision,
        neighbors=neighbors,
        overlap=overlap,
    )


def _sample(vectors: npt.NDArray[Any], texts: Sequence[str]) -> list[int]:
    """Return the rows of up to `MAX_TEXTS` different texts of all lengths, including the longest one."""
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise InputError(
            f"the vectors have shape {vectors.shape} and there are {len(texts)} texts: expected one vector "
            "per text, in the same order"
        )
    # An empty text has no tokens to pool.
    row_of = {text: row for row, text in enumerate(texts) if text.strip()}
    if len(row_of) < MIN_TEXTS:
        raise InputError(f"there are {len(row_of)} different texts: expected {MIN_TEXTS} or more")
    rows = sorted(row_of.values(), key=lambda row: len(texts[row]))
    chosen = np.linspace(0, len(rows) - 1, min(MAX_TEXTS, len(rows))).astype(int)
    return [rows[index] for index in chosen]


def _candidates(given: Float64, pooled: _Pooled) -> list[Candidate]:
    """Compare the vectors with all settings. Common settings come first."""
    order = list(_prompts(pooled.embedder.contract))
    return sorted(_compared(given, pooled), key=lambda one: order.index(one.prompt))


def _compared(given: Float64, pooled: _Pooled) -> Iterator[Candidate]:
    # Ordered by limit, so that only one tokenizer at a time is in memory.
    contract = pooled.embedder.contract
    limits = [contract.max_tokens, *(limit for limit in _LIMITS if limit < contract.max_tokens)]
    names = _prompts(contract)
    longest = {prompt: int(pooled.tokens(prompt, limits[0]).full_lengths.max()) for prompt in names}
    for limit, smaller in itertools.zip_longest(limits, limits[1:], fillvalue=0):
        for prompt, name in names.items():
            # Limits that truncate no text give equal embeddings, so only the smallest of them is used.
            if smaller >= longest[prompt]:
                continue
            made = pooled.embeddings(prompt, limit)[..., : given.shape[1]]
            for column, pooling in enumerate(POOLINGS):
                yield Candidate(
                    prompt_name=name,
                    prompt=prompt,
                    pooling=pooling,
                    max_tokens=limit if limit < longest[prompt] else None,
                    longest_tokens=longest[prompt],
                    **_compare(given, _unit(made[:, column])),
                )


def _ranked(candidates: list[Candidate]) -> list[Candidate]:
    """Sort candidates by distance; nearly equal ones keep their order, with common settings first."""
    tied = _TIE * min(one.distance for one in candidates)
    return sorted(candidates, key=lambda one: max(one.distance, tied))


def _prompts(contract: Contract) -> dict[str, str]:
    """Return the names of prompts by their text: none, each of the contract, and each of these twice."""
    names = {"": "none"}
    for repeated, suffix in ((1, ""), (2, " (doubled)")):
        for name, prompt in contract.prompts.items():
            names.setdefault(prompt * repeated, name + suffix)
    return names


def _compare(given: Float64, made: Float64) -> dict[str, float]:
    cosines = given @ made.T
    own = cosines.diagonal()
    pairs = len(own) * (len(own) - 1)
    apart = 1 - float(cosines.sum() - own.sum()) / pairs
    return {
        "cosine_mean": float(own.mean()),
        "cosine_min": float(own.min()),
        "nearest": float((cosines.argmax(axis=1) == np.arange(len(own))).mean()),
        "distance": (1 - float(own.mean())) / max(apart, 1e-12),
    }


class _Pooled:
    """Embeddings of the texts in all poolings, computed once per sequence of token ids."""

    def __init__(self, texts: Sequence[str], embedder: Embedder, compute: TokenEmbeddings) -> None:
        self.texts, self.embedder = texts, embedder
        self._compute = compute
        self._known: dict[bytes, Array] = {}
        self._tokenizer: Tokenizer | None = None

    def tokens(self, prompt: str, limit: int) -> Tokens:
        """Tokenize the texts. A change of the limit opens the tokenizer again, to keep only one in memory."""
        if self._tokenizer is None or self._tokenizer.max_tokens != limit:
            self._tokenizer = None
            artifact = self.embedder.artifact
            self._tokenizer = Tokenizer(artifact.tokenizer, limit, self.embedder.contract.unicode_form)
        return self._tokenizer.encode([prompt + text for text in self.texts])

    def embeddings(self, prompt: str, limit: int) -> Array:
        """Return float32[n, poolings, dim]."""
        ids = self.tokens(prompt, limit).ids
        keys = [row.tobytes() for row in ids]
        new = list({key: row for key, row in zip(keys, ids, strict=True) if key not in self._known}.values())
        lengths = np.fromiter(map(len, new), np.int32, len(new))
        for batch in padded_batches(lengths, self.embedder.max_batch_tokens):
            input_ids, attention_mask = pad(new, batch, self.embedder.contract.pad_id)
            hidden, mask = self._compute(input_ids, attention_mask), attention_mask.astype(np.bool_)
            rows = np.stack([pool(hidden, mask) for pool in POOLINGS.values()], axis=1)
            self._known |= {new[row].tobytes(): one for row, one in zip(batch.rows, rows, strict=True)}
        return np.stack([self._known[key] for key in keys])


def _mean(hidden: Array, mask: Mask) -> Array:
    counted = mask[..., None]
    return np.asarray((hidden * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1))


def _without_special(mask: Mask) -> Mask:
    """Return the mask without the first and the last token of each row."""
    inner = np.zeros_like(mask)
    inner[:, 1:-1] = mask[:, 2:]
    return inner


POOLINGS: dict[str, Callable[[Array, Mask], Array]] = {
    "mean": _mean,
    "cls": lambda hidden, _: hidden[:, 0],
    "last": lambda hidden, mask: hidden[np.arange(len(mask)), mask.sum(axis=1) - 1],
    "max": lambda hidden, mask: np.where(mask[..., None], hidden, -np.inf).max(axis=1),
    "mean without special tokens": lambda hidden, mask: _mean(hidden, _without_special(mask)),
}
"""Functions from token embeddings, float32[n, padded_length, dim], and the attention mask to embeddings,
float32[n, dim], by pooling."""


def _precision(maker: Candidate, given: Float64, own: _Pooled, *, has_reference: bool) -> str:
    """Name the precision. Vectors count as the artifact's if their error is at most 1/4 of its own error."""
    manifest, dim = own.embedder.artifact.manifest, given.shape[1]
    limit = manifest.contract.max_tokens
    pooled = own.embeddings(maker.prompt, maker.max_tokens or limit)
    made = [_unit(pooled[:, list(POOLINGS).index(maker.pooling), :dim])]
    if maker.pooling == manifest.contract.pooling and maker.max_tokens in (None, limit):
        # In addition to the padded graph, because the packed graph rounds differently.
        made.append(_embed(own.embedder, own.texts, maker.prompt, dim))
    errors = [1 - _compare(given, rows)["cosine_mean"] for rows in made]
    certificate = manifest.certificate
    of_artifact = 0.0 if certificate is None else 1 - certificate.overall.cosine_mean
    if min(errors) <= max(_EQUAL, of_artifact / 4):
        return f"same as this artifact ({manifest.precision})"
    if has_reference and 1 - maker.cosine_mean <= _EQUAL:
        return "fp32, same as the checkpoint"
    return "another precision of the same checkpoint"


def _overlap(given: Float64, texts: Sequence[str], embedder: Embedder, neighbors: int) -> float:
    """Return the fraction of the best results of each text, as a query, that both indexes share."""
    queries, passages = (
        _embed(embedder, texts, embedder.contract.prompts.get(name, ""), given.shape[1])
        for name in ("query", "passage")
    )
    found, expected = queries @ given.T, queries @ passages.T
    for similarities in (found, expected):
        np.fill_diagonal(similarities, -2)  # a text is no result for itself
    last = -np.sort(-expected, axis=1)[:, neighbors - 1 : neighbors]
    best = np.argsort(-found, axis=1, kind="stable")[:, :neighbors]
    return float((np.take_along_axis(expected, best, axis=1) >= last - _EQUAL).mean())


def _embed(embedder: Embedder, texts: Sequence[str], prompt: str, dim: int) -> Float64:
    # Unlike `encode`, this does not warn about texts that are truncated.
    return _unit(embedder.embed_tokens(embedder.tokenize(texts, prompt=prompt))[:, :dim])


def _unit(rows: npt.NDArray[Any]) -> Float64:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))
