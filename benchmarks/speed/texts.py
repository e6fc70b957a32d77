"""The texts of the speed benchmarks: short queries, long pages, both shuffled; real Korean, prompts in front.

A folder holds `korsts/sts-dev.tsv` (KorSTS sentences) and `autorag_ko/` (AutoRAG's pages, see layouts.py).
Source: https://github.com/kakaobrain/kor-nlu-datasets, https://github.com/Marker-Inc-Korea/AutoRAG
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from koe5_export.texts import CALIBRATION

from benchmarks.layouts import read_contents
from koe5_onnx import InputError, Tokenizer

MAX_TOKENS = 512
CORPORA = ("short", "pages", "mix")
DEFAULT_TEXTS = {"short": 192, "pages": 16, "mix": 48}
"""About 5,000 tokens each, a few seconds for a fast contender."""
_KORSTS, _AUTORAG = Path("korsts/sts-dev.tsv"), Path("autorag_ko")
_LINES_A_PAGE = 25
_SEED = 5


@dataclass(frozen=True)
class Corpus:
    """Texts that one round embeds."""

    name: str
    texts: list[str]
    lengths: list[int]
    """Tokens of each text after truncation."""

    @property
    def tokens(self) -> int:
        """Of all texts, after truncation."""
        return sum(self.lengths)


def read_corpora(
    names: Sequence[str], folder: Path | None, tokenizer: Path, texts: int | None
) -> list[Corpus]:
    """The corpora, cut to a slice.

    Args:
        names: Some of `CORPORA`.
        folder: The data; None takes this project's own lines, which are fewer and alike.
        tokenizer: The checkpoint's tokenizer.json, which counts the tokens.
        texts: Of each corpus; None takes `DEFAULT_TEXTS`.

    Raises:
        InputError: A name is unknown, the folder lacks a file, or there are too few texts.
    """
    if strangers := [name for name in names if name not in CORPORA]:
        raise InputError(f"{strangers[0]!r} is no corpus: expected one of {', '.join(CORPORA)}")
    if texts is not None and texts < 2:
        raise InputError(f"{texts} texts: expected 2 or more")
    sentences, pages = _own() if folder is None else _read(folder)
    counter = Tokenizer(tokenizer, MAX_TOKENS)
    return [_corpus(name, sentences, pages, counter, texts or DEFAULT_TEXTS[name]) for name in names]


def queries_of(corpus: Corpus, low: int, high: int) -> list[str]:
    """Texts of `low` to `high` tokens.

    Raises:
        InputError: There is none.
    """
    found = [text for text, length in zip(corpus.texts, corpus.lengths, strict=True) if low <= length <= high]
    if not found:
        raise InputError(f"{corpus.name} has no text of {low} to {high} tokens: take more --texts")
    return found


def _corpus(name: str, sentences: list[str], pages: list[str], counter: Tokenizer, texts: int) -> Corpus:
    shuffle = random.Random(_SEED)  # noqa: S311 - the same slice each time, nothing secret
    of_each = {"short": (texts, 0), "pages": (0, texts), "mix": (texts - texts // 2, texts // 2)}[name]
    found: list[str] = []
    for some, wanted in zip((sentences, pages), of_each, strict=True):
        if wanted > len(some):
            raise InputError(f"{name}: {wanted} texts of one kind are asked for, {len(some)} are there")
        found += shuffle.sample(some, wanted)
    shuffle.shuffle(found)
    return Corpus(name, found, counter.encode(found).lengths.tolist())


def _read(folder: Path) -> tuple[list[str], list[str]]:
    file = folder / _KORSTS
    if not file.is_file():
        raise InputError(f"{file} is missing: expected a folder with {_KORSTS} and {_AUTORAG}/")
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    head = rows[0]
    if not {"sentence1", "sentence2"} <= set(head):
        raise InputError(f"{file} has the columns {', '.join(head)}: expected sentence1 and sentence2")
    columns = [head.index("sentence1"), head.index("sentence2")]
    sentences = dict.fromkeys(row[column] for row in rows[1:] if len(row) == len(head) for column in columns)
    pages = read_contents(folder / _AUTORAG).passages.values()
    return [f"query: {text}" for text in sentences], [f"passage: {text}" for text in pages]


def _own() -> tuple[list[str], list[str]]:
    """This project's lines, and pages made by joining them."""
    starts = range(0, len(CALIBRATION), 5)
    doubled = [*CALIBRATION, *CALIBRATION]
    pages = [f"passage: {' '.join(doubled[start : start + _LINES_A_PAGE])}" for start in starts]
    return [f"query: {line}" for line in CALIBRATION], pages
