"""Convert texts to token ids: normalize to NFC, tokenize and truncate. Padding is in engine/batching.py.

macOS file names and the output of many PDF extractors contain decomposed Hangul. SentencePiece, which was
used in training, composes it, but the Rust tokenizer does not.
Source: https://github.com/huggingface/tokenizers/issues/2116
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from koe5_onnx.errors import ArtifactError, InputError

_TEXTS_PER_CALL, _CHARACTERS_PER_CALL = 2048, 262_144
"""Maximum texts and characters per call of the Rust tokenizer. They bound the memory of the results, which
take 250 to 330 bytes per character. A text with more characters is tokenized in a call of its own."""
_UNCOUNTED = ("0.23.1", "0.23.2")
"""Versions of tokenizers that do not report truncated tokens.
Source: https://github.com/huggingface/tokenizers/issues/2091"""


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, without padding, in the caller's order.

    With `overflow="average"`, a text above the token limit is split into parts that fit the limit.
    """

    ids: list[npt.NDArray[np.int32]]
    """int32[length] per text, with `<s>` and `</s>`: the text truncated at the limit, or its first part."""
    full_lengths: npt.NDArray[np.int32]
    """int32[n]: tokens of each text before truncation."""
    composed: npt.NDArray[np.bool_]
    """bool[n]: True if Unicode normalization changed the text."""
    further: Mapping[int, Sequence[npt.NDArray[np.int32]]] = field(default_factory=dict)
    """Ids of the second and later parts of each split text, by the index of the text in `ids`."""

    @classmethod
    def of(cls, ids: list[npt.NDArray[np.int32]]) -> Tokens:
        """Create Tokens for texts that were neither truncated nor normalized, from their ids."""
        lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
        return cls(ids, lengths, np.zeros(len(ids), dtype=np.bool_))

    def __getitem__(self, rows: slice) -> Tokens:
        """Return a slice of the texts."""
        numbers = range(len(self.ids))[rows]
        further = {row: self.further[old] for row, old in enumerate(numbers) if old in self.further}
        return Tokens(self.ids[rows], self.full_lengths[rows], self.composed[rows], further)

    @property
    def parts(self) -> list[npt.NDArray[np.int32]]:
        """All arrays of `ids`, followed by all arrays of `further`."""
        return [*self.ids, *(ids for parts in self.further.values() for ids in parts)]

    def distinct(self) -> tuple[Tokens, npt.NDArray[np.intp]]:
        """Remove duplicates from `parts`.

        Returns:
            Tokens with the distinct parts as texts, and intp[parts]: the index of each part among these.
            The Tokens are `self` if no part is a duplicate and no text is split.
        """
        row_of: dict[bytes, int] = {}
        parts = self.parts
        rows = np.fromiter(
            (row_of.setdefault(ids.tobytes(), len(row_of)) for ids in parts), np.intp, len(parts)
        )
        if len(row_of) == len(self.ids) == len(parts):
            return self, rows
        return Tokens.of([np.frombuffer(key, dtype=np.int32) for key in row_of]), rows

    def averaged(self, embeddings: npt.NDArray[np.float32], *, normalize: bool) -> npt.NDArray[np.float32]:
        """Average the embeddings of the parts of each text, weighted by their tokens: float32[n, dim].

        Args:
            embeddings: float32[parts, dim], in the order of `parts`.
            normalize: True to scale averages to unit length.
        """
        if not self.further:
            return embeddings
        whole = embeddings[: len(self.ids)].copy()
        end = len(self.ids)
        for row, parts in self.further.items():
            start, end = end, end + len(parts)
            weights = np.array([len(ids) for ids in (self.ids[row], *parts)], dtype=np.float32)
            total = weights @ np.vstack([embeddings[row], embeddings[start:end]])
            whole[row] = total / (np.linalg.norm(total) if normalize else weights.sum())
        return whole

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32[n]: tokens of each text after truncation."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int32, count=len(self.ids))

    @property
    def total(self) -> int:
        """Number of tokens of all parts."""
        return sum(map(len, self.parts))


def random_tokens(vocabulary: int, lengths: npt.NDArray[np.int64], seed: int = 0) -> Tokens:
    """Return random ids for texts of the given lengths, int64[n].

    Ids below 4, which are special tokens in XLM-R, are avoided if the vocabulary is larger.
    """
    rng = np.random.default_rng(seed)
    lowest = min(4, vocabulary - 1)
    return Tokens.of([rng.integers(lowest, vocabulary, length).astype(np.int32) for length in lengths])


@dataclass(frozen=True)
class Piece:
    """One token of a text."""

    id: int
    text: str
    """Part of the text that the token covers, or the name of a special token."""
    special: bool
    start: int
    """Start offset in characters, in the normalized text with its prompt; 0 for a special token."""
    stop: int
    """End offset in characters, exclusive; 0 for a special token."""


class Tokenizer:
    """Tokenizer that truncates at the token limit and never pads.

    Args:
        file: A tokenizer.json. Its padding and truncation settings are ignored.
        max_tokens: Maximum number of tokens, special tokens included.
        unicode_form: Unicode normalization, as in `Contract.unicode_form`.
        keep_rest: True to split texts above the limit instead of truncating them (see `Tokens`).

    Raises:
        ArtifactError: The file is missing or invalid, or the installed version of tokenizers does not report
            truncated tokens.
    """

    def __init__(
        self, file: Path, max_tokens: int, unicode_form: str | None = "NFC", *, keep_rest: bool = False
    ) -> None:
        if tokenizers.__version__ in _UNCOUNTED:
            raise ArtifactError(
                f"tokenizers {tokenizers.__version__} does not report truncated tokens, so truncated texts "
                "would go unnoticed. Run: pip install 'tokenizers>=0.23.3'"
            )
        if not file.is_file():
            raise ArtifactError(f"{file} is missing. Export or download the artifact again")
        try:
            self._rust = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust library raises plain Exception
            raise ArtifactError(f"tokenizers cannot read {file}: {error}") from error
        self._rust.no_padding()
        # The tokenizer keeps </s> when it truncates; slicing the ids would drop it.
        self._rust.enable_truncation(max_tokens)
        self._specials = self._rust.num_special_tokens_to_add(is_pair=False)
        self._composes, self._keep_rest = unicode_form is not None, keep_rest
        self.max_tokens = max_tokens
        self.vocabulary = self._rust.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts on several threads.

        Args:
            texts: Any number of texts. An empty text has only special tokens.

        Raises:
            InputError: A text is not a str, or contains a lone surrogate (half of a UTF-16 pair).
        """
        ids: list[npt.NDArray[np.int32]] = []
        full_lengths: list[int] = []
        further: dict[int, Sequence[npt.NDArray[np.int32]]] = {}
        require_unicode(texts)
        texts, composed = self._compose(texts)
        for chunk in _calls(texts):
            for encoding in self._rust.encode_batch(chunk):
                if self._keep_rest and (rest := encoding.overflowing):
                    further[len(ids)] = [np.asarray(part.ids, dtype=np.int32) for part in rest]
                ids.append(np.asarray(encoding.ids, dtype=np.int32))
                full_lengths.append(self._full_length(encoding))
        return Tokens(ids, np.asarray(full_lengths, dtype=np.int32), composed, further)

    def require_ids(self, expected: Mapping[str, Sequence[int]], made_with: str) -> None:
        """Check that texts have the same ids as when the artifact was exported.

        Args:
            expected: Ids at export, by text.
            made_with: Version of tokenizers at export.

        Raises:
            ArtifactError: The ids of a text differ, so the installed version would change embeddings.
        """
        for (text, ids), found in zip(expected.items(), self.encode(list(expected)).ids, strict=True):
            if found.tolist() != list(ids):
                raise ArtifactError(
                    f"tokenizers {tokenizers.__version__} converts the text {text!r} to the ids "
                    f"{found.tolist()}: expected {list(ids)}, as produced by tokenizers {made_with} at "
                    "export. Embeddings would not match an existing index. Install that version, or export "
                    "the artifact again and rebuild the index"
                )

    def pieces(self, text: str) -> list[Piece]:
        """Return all tokens of a text, special tokens included, without truncation.

        Raises:
            InputError: The text contains a lone surrogate (half of a UTF-16 pair).
        """
        require_unicode([text])
        ((text,), _) = self._compose([text])
        # encode_batch releases the GIL; encode does not.
        (first,) = self._rust.encode_batch([text])
        parts = [_pieces_of(part, text) for part in (first, *first.overflowing)]
        body = [piece for part in parts for piece in part if not piece.special]
        opening = next((index for index, piece in enumerate(parts[0]) if not piece.special), 0)
        return [*parts[0][:opening], *body, *[piece for piece in parts[0][opening:] if piece.special]]

    def _compose(self, texts: Sequence[str]) -> tuple[Sequence[str], npt.NDArray[np.bool_]]:
        """Normalize texts; also return bool[n], True for texts that changed."""
        if not self._composes:
            return texts, np.zeros(len(texts), dtype=np.bool_)
        changed = [not unicodedata.is_normalized("NFC", text) for text in texts]
        if any(changed):
            texts = [
                unicodedata.normalize("NFC", text) if change else text
                for text, change in zip(texts, changed, strict=True)
            ]
        return texts, np.array(changed, dtype=np.bool_)

    def _full_length(self, encoding: tokenizers.Encoding) -> int:
        cut = sum(len(part.ids) - self._specials for part in encoding.overflowing)
        return len(encoding.ids) + cut


def _calls(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        if chunk and (len(chunk) == _TEXTS_PER_CALL or characters + len(text) > _CHARACTERS_PER_CALL):
            yield chunk
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk


def _pieces_of(encoding: tokenizers.Encoding, text: str) -> list[Piece]:
    columns = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
    return [
        Piece(id_, name if special else text[start:stop], bool(special), start, stop)
        for id_, name, special, (start, stop) in columns
    ]


def require_unicode(texts: Sequence[str]) -> None:
    """Check that all texts are valid, because errors of the Rust tokenizer do not name the text.

    Raises:
        InputError: A text is not a str, or contains a lone surrogate (half of a UTF-16 pair).
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} is a {type(text).__name__}: expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {number} is not valid Unicode: it contains the lone surrogate "
                f"U+{ord(text[error.start]):04X} at character {error.start}. Decode the source with "
                "errors='replace'"
            ) from error
