"""Convert texts to token ids: normalize to NFC, tokenize and truncate. Padding is in engine/batching.py.

macOS file names and the output of many PDF extractors contain decomposed Hangul. SentencePiece, which was
used in training, composes it, but the Rust tokenizer does not.
Source: https://github.com/huggingface/tokenizers/issues/2116
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from koe5_onnx.errors import ArtifactError, InputError
from koe5_onnx.text.parts import Parts

Ids = npt.NDArray[np.int32]
"""Token ids of a text or of a part of it: int32[length]."""

_TEXTS_PER_CALL, _CHARACTERS_PER_CALL = 2048, 262_144
"""Maximum texts and characters per call of the Rust tokenizer. They bound the memory of the results, which
take 250 to 330 bytes per character. A text with more characters is tokenized in parts."""
_PART_CHARACTERS = 32_768
"""Minimum length of a part of a longer text. The parts of a call are tokenized in parallel."""
_UNCOUNTED = ("0.23.1", "0.23.2")
"""Versions of tokenizers that do not report truncated tokens.
Source: https://github.com/huggingface/tokenizers/issues/2091"""


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, without padding, in the caller's order.

    With `overflow="average"`, a text above the token limit is split into parts that fit the limit.
    """

    ids: list[Ids]
    """int32[length] per text, with special tokens: the text truncated at the limit, or its first part."""
    full_lengths: npt.NDArray[np.int32]
    """int32[n]: tokens of each text before truncation. See `Tokenizer.encode` for the texts whose number is
    approximate."""
    composed: npt.NDArray[np.bool_]
    """bool[n]: True if Unicode normalization changed the text."""
    further: Mapping[int, Sequence[Ids]] = field(default_factory=dict)
    """Ids of the second and later parts of each split text, by the index of the text in `ids`."""

    @classmethod
    def of(cls, ids: list[Ids]) -> Tokens:
        """Create Tokens from ids, with `full_lengths` and `composed` as for texts that fit and are in NFC."""
        lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
        return cls(ids, lengths, np.zeros(len(ids), dtype=np.bool_))

    def __getitem__(self, rows: slice) -> Tokens:
        """Return a slice of the texts."""
        numbers = range(len(self.ids))[rows]
        further = {row: self.further[old] for row, old in enumerate(numbers) if old in self.further}
        return Tokens(self.ids[rows], self.full_lengths[rows], self.composed[rows], further)

    @property
    def parts(self) -> list[Ids]:
        """All arrays of `ids`, followed by all arrays of `further`."""
        return [*self.ids, *(ids for parts in self.further.values() for ids in parts)]

    def distinct(self) -> tuple[Tokens, npt.NDArray[np.intp]]:
        """Return Tokens without duplicate parts. `self` does not change.

        Returns:
            Tokens with one text per distinct part, and intp[parts]: for each part, the index of that text.
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
        """Average the embeddings of the parts of each text, weighted by token count: float32[n, dim].

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
        """int32[n]: length of each array of `ids`."""
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
        self._parts = Parts(self._rust)
        self._composes, self._keep_rest = unicode_form is not None, keep_rest
        self.max_tokens = max_tokens
        self.vocabulary = self._rust.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts on several threads.

        A text of more than 262,144 characters is encoded in parts, which bounds memory and yields the same
        ids. The parts begin at spaces or line breaks between words. If a stretch of more than 262,144
        characters has none, the ids that truncation keeps are computed from its beginning, and its token
        count is approximate. The stretch is encoded at once if these ids depend on the whole stretch or if
        `keep_rest` is True.

        Args:
            texts: Any number of texts. An empty text has only special tokens.

        Raises:
            InputError: A text is not a str, or contains a lone surrogate (half of a UTF-16 pair).
        """
        ids: list[Ids] = []
        full_lengths: list[int] = []
        further: dict[int, Sequence[Ids]] = {}
        require_unicode(texts)
        texts, composed = self._compose(texts)
        for chunk in _calls(texts):
            if len(chunk[0]) > _CHARACTERS_PER_CALL:
                found = [self._encode_long(chunk[0])]
            else:
                found = [self._windows_of(encoding) for encoding in self._rust.encode_batch(chunk)]
            for windows, full_length in found:
                if self._keep_rest and len(windows) > 1:
                    further[len(ids)] = windows[1:]
                ids.append(windows[0])
                full_lengths.append(full_length)
        return Tokens(ids, np.asarray(full_lengths, dtype=np.int32), composed, further)

    def of_ids(self, rows: Sequence[Sequence[int]]) -> Tokens:
        """Truncate or split the ids of whole texts, as `encode` does with texts.

        Raises:
            InputError: A row lacks the special tokens of a text, or contains an id outside the vocabulary.
        """
        opening, closing = (part.tolist() for part in self._frame)
        windows = []
        for number, row in enumerate(rows):
            start, end = len(opening), len(row) - len(closing)
            if start > end or [*row[:start], *row[end:]] != [*opening, *closing]:
                raise InputError(
                    f"row {number} is not from this model's tokenizer, whose token ids begin with {opening} "
                    f"and end with {closing}"
                )
            if not 0 <= min(row) <= max(row) < self.vocabulary:
                raise InputError(f"row {number} has a token id outside 0 to {self.vocabulary - 1}")
            windows.append(self._framed(np.asarray(row[start:end], dtype=np.int32)))
        further = {number: rest for number, (_, *rest) in enumerate(windows) if rest}
        tokens = Tokens.of([first for first, *_ in windows])
        return replace(tokens, full_lengths=np.array([*map(len, rows)], dtype=np.int32), further=further)

    def require_ids(self, expected: Mapping[str, Sequence[int]], made_with: str) -> None:
        """Check that texts have the same ids as at export.

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

    def _windows_of(self, encoding: tokenizers.Encoding) -> tuple[list[Ids], int]:
        """Return the parts of a text (only the first one unless the rest is kept), and its full length."""
        rest = encoding.overflowing
        kept = (encoding, *rest) if self._keep_rest else (encoding,)
        full_length = len(encoding.ids) + sum(len(part.ids) - self._specials for part in rest)
        return [np.asarray(part.ids, dtype=np.int32) for part in kept], full_length

    def _encode_long(self, text: str) -> tuple[list[Ids], int]:
        """Return the same as `_windows_of` for a text that is encoded in parts."""
        width = self.max_tokens - self._specials
        body: list[Ids] = []
        kept = total = 0
        for chunk in _calls(self._parts.split(text, _PART_CHARACTERS)):
            # One more than is kept, to know for certain that the text is truncated.
            ids, count = self._body_of(chunk, max(0, width + 1 - kept))
            total += count
            if self._keep_rest or kept <= width:
                body.append(ids)
                kept += len(ids)
        return self._framed(np.concatenate(body)), total + self._specials

    def _framed(self, body: Ids) -> list[Ids]:
        """Divide ids into windows of max_tokens, with special tokens added to each.

        There is a single window unless the rest is kept.
        """
        width = self.max_tokens - self._specials
        starts = range(0, max(1, len(body)), width)
        opening, closing = self._frame
        return [
            np.concatenate((opening, body[start : start + width], closing))
            for start in (starts if self._keep_rest else starts[:1])
        ]

    def _body_of(self, parts: list[str], needed: int) -> tuple[Ids, int]:
        """Return ids of parts without special tokens, at least the first `needed`, and their total number."""
        is_too_long = len(parts[0]) > _CHARACTERS_PER_CALL and not self._keep_rest
        if is_too_long and (head := self._parts.head(parts[0], needed)) is not None:
            slices = (
                parts[0][start : start + _PART_CHARACTERS]
                for start in range(0, len(parts[0]), _PART_CHARACTERS)
            )
            count = sum(len(self._ids_of(call)) for call in _calls(slices))
            return np.asarray(head, dtype=np.int32), max(count, len(head))
        ids = self._ids_of(parts)
        return ids, len(ids)

    def _ids_of(self, parts: list[str]) -> Ids:
        """Return the ids of all parts together, without special tokens."""
        encodings = self._rust.encode_batch(parts, add_special_tokens=False)
        rows = [row.ids for encoding in encodings for row in (encoding, *encoding.overflowing)]
        return np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])

    @cached_property
    def _frame(self) -> tuple[Ids, Ids]:
        """Special tokens before and after the tokens of a text."""
        (encoding,) = self._rust.encode_batch(["a"])
        ids, mask = np.asarray(encoding.ids, dtype=np.int32), encoding.special_tokens_mask
        return ids[: mask.index(0)], ids[len(ids) - mask[::-1].index(0) :]


def _calls(texts: Iterable[str]) -> Iterator[list[str]]:
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
