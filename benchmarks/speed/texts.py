"""Texts of the speed benchmarks, with prompts: short queries, long pages, and a mix of both.

The folder `--data` contains `korsts/sts-dev.tsv` (sentences) and `autorag_ko/` (pages, see layouts.py).
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
"""Number of texts. With `--data`, they have 5,000 to 10,000 tokens per corpus (docs/performance.md)."""
_KORSTS, _AUTORAG = Path("korsts/sts-dev.tsv"), Path("autorag_ko")
_LINES_A_PAGE = 25
_SEED = 5


@dataclass(frozen=True)
class Corpus:
    """Texts that are embedded in each round."""

    name: str
    texts: list[str]
    lengths: list[int]
    """Number of tokens of each text after truncation."""

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts after truncation."""
        return sum(self.lengths)


def read_corpora(
    names: Sequence[str], folder: Path | None, tokenizer: Path, texts: int | None
) -> list[Corpus]:
    """Return corpora with a given number of texts.

    Args:
        names: Names from `CORPORA`.
        folder: Folder of the data; None uses the project's built-in texts, which are fewer and more alike.
        tokenizer: The checkpoint's tokenizer.json, which counts the tokens.
        texts: Number of texts per corpus; None uses `DEFAULT_TEXTS`.

    Raises:
        InputError: A name is unknown, a file is missing, or there are too few texts.
    """
    if strangers := [name for name in names if name not in CORPORA]:
        raise InputError(f"unknown corpus {strangers[0]!r}. Use one of {', '.join(CORPORA)}")
    if texts is not None and texts < 2:
        raise InputError(f"the number of texts is {texts}, expected at least 2")
    sentences, pages = _own() if folder is None else _read(folder)
    counter = Tokenizer(tokenizer, MAX_TOKENS)
    return [_corpus(name, sentences, pages, counter, texts or DEFAULT_TEXTS[name]) for name in names]


def queries_of(corpus: Corpus, low: int, high: int) -> list[str]:
    """Return the texts that have `low` to `high` tokens.

    Raises:
        InputError: There are none.
    """
    found = [text for text, length in zip(corpus.texts, corpus.lengths, strict=True) if low <= length <= high]
    if not found:
        raise InputError(f"{corpus.name} has no text of {low} to {high} tokens. Increase --texts")
    return found


def _corpus(name: str, sentences: list[str], pages: list[str], counter: Tokenizer, texts: int) -> Corpus:
    shuffle = random.Random(_SEED)  # noqa: S311 - reproducible, not a secret
    of_each = {"short": (texts, 0), "pages": (0, texts), "mix": (texts - texts // 2, texts // 2)}[name]
    found: list[str] = []
    for some, wanted in zip((sentences, pages), of_each, strict=True):
        if wanted > len(some):
            kind = "sentences" if some is sentences else "pages"
            raise InputError(
                f"{name} needs {wanted} {kind}, but the data has only {len(some)}. Reduce --texts"
            )
        found += shuffle.sample(some, wanted)
    shuffle.shuffle(found)
    return Corpus(name, found, counter.encode(found).lengths.tolist())


def _read(folder: Path) -> tuple[list[str], list[str]]:
    file = folder / _KORSTS
    if not file.is_file():
        raise InputError(f"{file} is missing. Pass a folder with {_KORSTS} and {_AUTORAG}/")
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    head = rows[0]
    if not {"sentence1", "sentence2"} <= set(head):
        raise InputError(f"{file} has the columns {', '.join(head)}, expected sentence1 and sentence2")
    columns = [head.index("sentence1"), head.index("sentence2")]
    sentences = dict.fromkeys(row[column] for row in rows[1:] if len(row) == len(head) for column in columns)
    pages = read_contents(folder / _AUTORAG).passages.values()
    return [f"query: {text}" for text in sentences], [f"passage: {text}" for text in pages]


def _own() -> tuple[list[str], list[str]]:
    """Return the project's built-in texts as queries, and pages made of several of these texts."""
    starts = range(0, len(CALIBRATION), 5)
    doubled = [*CALIBRATION, *CALIBRATION]
    pages = [f"passage: {' '.join(doubled[start : start + _LINES_A_PAGE])}" for start in starts]
    return [f"query: {line}" for line in CALIBRATION], pages
