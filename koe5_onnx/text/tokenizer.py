"""Text to ids: composed (NFC), unpadded, truncated by the Rust tokenizer.

Decomposed Hangul, as in file names of macOS and texts of many PDF extractors, is composed before it is
tokenized. SentencePiece, with which the models were trained, does this; the Rust tokenizer does not.
Source: https://github.com/huggingface/tokenizers/issues/2116

Owns the ids and the lengths; padding is batching.py's, prompts are embedder.py's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from koe5_onnx.errors import ArtifactError, InputError

_TEXTS_PER_CALL, _CHARACTERS_PER_CALL = 2048, 262_144
"""Bound the memory of the Rust encodings: 250 to 330 bytes a character live until their ids are copied.
A longer text has a call of its own."""
_UNCOUNTED = ("0.23.1", "0.23.2")
"""Versions of tokenizers that do not report the tokens that they truncate.
Source: https://github.com/huggingface/tokenizers/issues/2091"""


@dataclass(frozen=True)
class Tokens:
    """The ids of some texts, ragged, in the caller's order."""

    ids: list[npt.NDArray[np.int32]]
    """int32[length] a text, `<s>` and `</s>` included, at most max_tokens."""
    full_lengths: npt.NDArray[np.int32]
    """int32[n]: tokens that each text has before truncation."""
    composed: npt.NDArray[np.bool_]
    """bool[n]: whether the text was brought to another Unicode form before it was tokenized."""

    @classmethod
    def of(cls, ids: list[npt.NDArray[np.int32]]) -> Tokens:
        """Wrap ids that no text is known for: neither truncated nor composed."""
        lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
        return cls(ids, lengths, np.zeros(len(ids), dtype=np.bool_))

    def __getitem__(self, rows: slice) -> Tokens:
        """Some of the texts."""
        return Tokens(self.ids[rows], self.full_lengths[rows], self.composed[rows])

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32[n]: tokens of each text after truncation."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int32, count=len(self.ids))


def random_tokens(vocabulary: int, lengths: npt.NDArray[np.int64], seed: int = 0) -> Tokens:
    """Texts of these lengths, int64[n], of random ids that are no special ones where there are enough."""
    rng = np.random.default_rng(seed)
    lowest = min(4, vocabulary - 1)
    return Tokens.of([rng.integers(lowest, vocabulary, length).astype(np.int32) for length in lengths])


@dataclass(frozen=True)
class Piece:
    """One token of a text."""

    id: int
    text: str
    """The part of the text that it stands for; its name where it is a special token."""
    special: bool
    start: int
    """First character, counted in the composed text with its prompt; as `stop` 0 for a special token."""
    stop: int
    """After the last character."""


class Tokenizer:
    """A Rust tokenizer with this project's settings: truncates at the token limit, never pads.

    Args:
        file: A tokenizer.json; padding and truncation that it carries are replaced.
        max_tokens: Longest output in tokens, special tokens included.
        unicode_form: Form that texts are brought to first, as in `Contract`.

    Raises:
        ArtifactError: The file is missing or is not a tokenizer, or the installed version of tokenizers
            does not count the tokens that it cuts off.
    """

    def __init__(self, file: Path, max_tokens: int, unicode_form: str | None = "NFC") -> None:
        if tokenizers.__version__ in _UNCOUNTED:
            raise ArtifactError(
                f"tokenizers {tokenizers.__version__} does not report the tokens that it cuts off, so "
                "cut texts would go unnoticed: pip install 'tokenizers>=0.23.3'"
            )
        if not file.is_file():
            raise ArtifactError(f"{file} is missing: export or download the artifact again")
        try:
            self._rust = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust side raises nothing narrower
            raise ArtifactError(f"{file} is not a tokenizer.json that tokenizers reads: {error}") from error
        self._rust.no_padding()
        # Truncating here keeps </s>; slicing ids would lose it.
        self._rust.enable_truncation(max_tokens)
        self._specials = self._rust.num_special_tokens_to_add(is_pair=False)
        self._composes = unicode_form is not None
        self.max_tokens = max_tokens
        self.vocabulary = self._rust.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Encode texts in parallel.

        Args:
            texts: Any number of texts; an empty text has its special tokens only.

        Raises:
            InputError: A text is not a str, or holds a lone surrogate (half of a UTF-16 pair).
        """
        ids: list[npt.NDArray[np.int32]] = []
        full_lengths: list[int] = []
        require_unicode(texts)
        texts, composed = self._compose(texts)
        for chunk in _calls(texts):
            for encoding in self._rust.encode_batch(chunk):
                ids.append(np.asarray(encoding.ids, dtype=np.int32))
                full_lengths.append(self._full_length(encoding))
        return Tokens(ids, np.asarray(full_lengths, dtype=np.int32), composed)

    def require_ids(self, expected: Mapping[str, Sequence[int]], made_with: str) -> None:
        """Check that texts still have the ids that they had when an artifact was made.

        Args:
            expected: Text to its ids.
            made_with: Version of tokenizers that they were made with.

        Raises:
            ArtifactError: One has others: this version of tokenizers would shift every embedding a little.
        """
        for (text, ids), found in zip(expected.items(), self.encode(list(expected)).ids, strict=True):
            if found.tolist() != list(ids):
                raise ArtifactError(
                    f"tokenizers {tokenizers.__version__} turns the text {text!r} into the ids "
                    f"{found.tolist()}, expected {list(ids)}, which tokenizers {made_with} gave when the "
                    "artifact was exported. Embeddings would not match an existing index. Install that "
                    "version, or export the artifact and embed the index again"
                )

    def pieces(self, text: str) -> list[Piece]:
        """The tokens of one text, special tokens included, never truncated.

        Raises:
            InputError: The text holds a lone surrogate (half of a UTF-16 pair).
        """
        require_unicode([text])
        ((text,), _) = self._compose([text])
        # As a batch, since that lets other Python threads run meanwhile.
        (first,) = self._rust.encode_batch([text])
        parts = [_pieces_of(part, text) for part in (first, *first.overflowing)]
        body = [piece for part in parts for piece in part if not piece.special]
        opening = next((place for place, piece in enumerate(parts[0]) if not piece.special), 0)
        return [*parts[0][:opening], *body, *[piece for piece in parts[0][opening:] if piece.special]]

    def _compose(self, texts: Sequence[str]) -> tuple[Sequence[str], npt.NDArray[np.bool_]]:
        """Bring texts to the Unicode form; also bool[n], which of them were in another."""
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
    """The texts, in order, as many at a time as may be encoded together."""
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
    """Refuse what the Rust side would refuse without saying which text it was.

    Raises:
        InputError: A text is not a str, or holds a lone surrogate (half of a UTF-16 pair).
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} is a {type(text).__name__}: expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {number} holds the lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}: not valid Unicode; decode the source with errors='replace'"
            ) from error
