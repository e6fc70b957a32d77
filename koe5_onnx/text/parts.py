"""Tokenize a long text in parts, so that memory does not grow with its length.

The ids of all parts together are those of the whole text. This requires certain properties of the tokenizer;
other tokenizers get the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import cast

import tokenizers
from tokenizers import models, pre_tokenizers

_BREAK = re.compile(r"(?<=\w)\s(?=\w)")
_HEAD_CHARACTERS_PER_TOKEN = (32, 64, 128)
"""Lengths of the beginnings that `Parts.head` encodes, in characters per requested id; tried in turn."""
_MARGIN = 8
"""Number of characters after a cut that could combine with those before it, such as accents."""


class Parts:
    """Finds positions at which a text can be cut without changing its ids.

    Args:
        rust: Tokenizer, which truncates at some number of tokens.
    """

    def __init__(self, rust: tokenizers.Tokenizer) -> None:
        self._rust = rust
        self._normalize: Callable[[str], str] = rust.normalizer.normalize_str if rust.normalizer else str
        steps = _steps(rust.pre_tokenizer)
        self._has_breaks = _splits_at_spaces(steps[0]) and not any(
            token.rstrip or re.search(r"\s", token.content + self._normalize(token.content))
            for token in rust.get_added_tokens_decoder().values()
        )
        # These pre-tokenizers may prepend a space to a part that begins with another character, such as a
        # line break.
        self._only_spaces = isinstance(steps[0], pre_tokenizers.Metaspace | pre_tokenizers.ByteLevel)
        self._has_heads = isinstance(rust.model, models.Unigram) and all(
            isinstance(step, pre_tokenizers.Metaspace | pre_tokenizers.WhitespaceSplit) for step in steps
        )
        self._is_break = lru_cache(4096)(self._keeps_words_apart)

    def split(self, text: str, size: int) -> Iterator[str]:
        """Divide a text before single spaces or line breaks between words.

        The ids of the parts, without special tokens, are those of the text.

        Args:
            text: Any text.
            size: Minimum length of each part except the last one. A part ends at the first break after that,
                so a text without breaks has a single part.
        """
        start = 0
        while (stop := self._next_break(text, start + size)) is not None:
            yield text[start:stop]
            start = stop
        yield text[start:]

    def head(self, text: str, tokens: int) -> list[int] | None:
        """Return the first ids of a long text without special tokens, from its beginning alone.

        Unigram finds the best tokens up to each position, from left to right. In any stretch that is as long
        as the longest token, a token of the whole text ends. So if the best tokens up to each position of
        such a stretch begin with the same ids, then so do those of the whole text. This is not the case in
        long runs of one character, whose first tokens depend on the length of the run.

        Args:
            text: A text.
            tokens: Number of ids, at most the number at which the tokenizer truncates.

        Returns:
            `tokens` ids; None if they may depend on the rest of the text, or if the method cannot be used
            with the tokenizer.
        """
        if tokens == 0:
            return []
        if not self._has_heads:
            return None
        for characters in _HEAD_CHARACTERS_PER_TOKEN:
            stop = tokens * characters
            start = stop - self._longest
            if start < 0 or not self._keeps_positions(text[start : stop + _MARGIN]):
                continue
            cuts = [text[:end] for end in range(start, stop + 1)]
            first, *others = self._rust.encode_batch(cuts, add_special_tokens=False)
            ids: list[int] = first.ids[:tokens]
            if len(ids) == tokens and all(other.ids[:tokens] == ids for other in others):
                return ids
        return None

    @cached_property
    def _longest(self) -> int:
        """Length of the longest token in characters."""
        return max(map(len, self._rust.get_vocab(with_added_tokens=True)))

    def _next_break(self, text: str, start: int) -> int | None:
        if not self._has_breaks:
            return None
        for found in _BREAK.finditer(text, start):
            position = found.start()
            if self._is_break(text[position - 1 : position + 2]):
                return position
        return None

    def _keeps_words_apart(self, around: str) -> bool:
        """Return True if normalization keeps the white space in the middle of three characters."""
        left, right = self._normalize(around[0]), self._normalize(around[1:])
        is_separator = right.startswith(" " if self._only_spaces else (" ", "\n"))
        return is_separator and left.rstrip() == left != "" and self._normalize(around) == left + right

    def _keeps_positions(self, window: str) -> bool:
        """Return True if normalization maps each character to one character, independently of the others."""
        one_by_one = [self._normalize(character) for character in window]
        return all(len(one) == 1 and not one.isspace() for one in one_by_one) and "".join(
            one_by_one
        ) == self._normalize(window)


def _steps(pre_tokenizer: object) -> Sequence[object]:
    """Return the steps of a pre-tokenizer. Each step divides the results of the one before it."""
    is_sequence = isinstance(pre_tokenizer, pre_tokenizers.Sequence)
    return [*cast("Iterable[object]", pre_tokenizer)] if is_sequence else [pre_tokenizer]


def _splits_at_spaces(step: object) -> bool:
    """Return True if a step of the pre-tokenizer separates all words at spaces."""
    if isinstance(step, pre_tokenizers.Metaspace):
        return bool(step.split)
    if isinstance(step, pre_tokenizers.ByteLevel):
        return bool(step.use_regex)
    return isinstance(
        step, pre_tokenizers.BertPreTokenizer | pre_tokenizers.Whitespace | pre_tokenizers.WhitespaceSplit
    )
