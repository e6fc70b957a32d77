"""Retrieval datasets in their published layouts: files to queries, passages and judgements.

Knows files and columns; names and the Hub are corpora.py's. A layout is told by the files that are there::

    AutoRAG  corpus.parquet (doc_id, contents) and qa.parquet (qid, query, retrieval_gt: groups of doc_ids)
    BEIR     corpus (_id, title, text), queries (_id, text), qrels (query-id, corpus-id, score) of the split
             "test", else "dev"; as .jsonl, .tsv or Parquet
    FAQ      korean.csv (question, answer): each answer is the passage of its question

Source: https://marker-inc-korea.github.io/AutoRAG/data_creation/data_format.html (AutoRAG),
https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset (BEIR),
https://huggingface.co/datasets/xhluca/publichealth-qa (FAQ)
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from koe5_onnx import InputError, MissingDependencyError

_CORPUS = ("corpus.jsonl", "corpus/*.parquet")
_QUERIES = ("queries.jsonl", "queries/*.parquet")
_QRELS = tuple(
    pattern.format(split=split)
    for split in ("test", "dev")
    for pattern in (
        "qrels/{split}.tsv",
        "qrels/{split}.jsonl",
        "qrels/{split}-*.parquet",
        "data/{split}-*.parquet",
    )
)
_FAQ = ("data/korean.csv", "korean.csv")

PATTERNS = ("corpus.parquet", "qa.parquet", *_CORPUS, *_QUERIES, *_QRELS, *_FAQ)
"""Every file that a layout can be made of."""


class Contents(NamedTuple):
    """What a dataset holds."""

    queries: dict[str, str]
    """Id to text; only queries that have a relevant passage."""
    passages: dict[str, str]
    """Id to text."""
    relevant: dict[str, dict[str, int]]
    """Query id to its relevant passages and their grades, 1 or more."""


def read_contents(folder: Path) -> Contents:
    """Read the dataset in a folder.

    Raises:
        InputError: No known layout, or a file or a row that does not fit it.
        MissingDependencyError: The dataset is in Parquet and pyarrow is not installed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected a dataset's folder")
    if (folder / "corpus.parquet").is_file() and (folder / "qa.parquet").is_file():
        return _read_autorag(Table.read([folder / "corpus.parquet"]), Table.read([folder / "qa.parquet"]))
    beir = [_find(folder, patterns) for patterns in (_CORPUS, _QUERIES, _QRELS)]
    if all(beir):
        return _read_beir(*map(Table.read, beir))
    if faq := _find(folder, _FAQ):
        return _read_faq(Table.read(faq))
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    raise InputError(
        f"{folder} holds no dataset of a known layout: expected corpus.parquet and qa.parquet (AutoRAG), "
        "corpus.jsonl, queries.jsonl and qrels/test.tsv or qrels/dev.tsv (BEIR), or korean.csv (FAQ); "
        f"found {', '.join(found[:10]) or 'no file'}"
    )


def _find(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that has some."""
    return next((files for pattern in patterns if (files := sorted(folder.glob(pattern)))), [])


def _read_autorag(corpus: Table, qa: Table) -> Contents:
    queries = _unique(qa, "qid", qa.texts("query"))
    groups = zip(queries, qa.values("retrieval_gt"), strict=True)
    relevant = {query: dict.fromkeys(_flat(given, qa, query), 1) for query, given in groups}
    return Contents(queries, _unique(corpus, "doc_id", corpus.texts("contents")), relevant)


def _flat(given: Any, qa: Table, query: str) -> Iterator[str]:
    """The ids in groups of ids; that one of a group would do is not looked at."""
    if not isinstance(given, list) or not all(isinstance(group, list) for group in given):
        raise InputError(
            f"{qa.file}: retrieval_gt of {query} is {given!r}: expected lists of lists of doc_ids"
        )
    for group in given:
        yield from map(str, group)


def _read_beir(corpus: Table, queries: Table, qrels: Table) -> Contents:
    titles = [row.get("title") or "" for row in corpus.rows]
    texts = [f"{title} {text}".strip() for title, text in zip(titles, corpus.texts("text"), strict=True)]
    relevant: dict[str, dict[str, int]] = {}
    judged = zip(qrels.ids("query-id"), qrels.ids("corpus-id"), qrels.grades("score"), strict=True)
    for query, passage, grade in judged:
        if grade > 0:
            relevant.setdefault(query, {})[passage] = grade
    known = _unique(queries, "_id", queries.texts("text"))
    if strangers := sorted(relevant.keys() - known.keys()):
        raise InputError(
            f"{qrels.file} judges the query {strangers[0]!r}, which {queries.file} does not have"
        )
    asked = {query: text for query, text in known.items() if query in relevant}
    return Contents(asked, _unique(corpus, "_id", texts), relevant)


def _read_faq(rows: Table) -> Contents:
    """Equal answers are one passage, and equal questions one query."""
    questions, answers = rows.texts("question"), rows.texts("answer")
    query_ids = {text: f"q{number}" for number, text in enumerate(dict.fromkeys(questions))}
    passage_ids = {text: f"p{number}" for number, text in enumerate(dict.fromkeys(answers))}
    relevant: dict[str, dict[str, int]] = {}
    for question, answer in zip(questions, answers, strict=True):
        relevant.setdefault(query_ids[question], {})[passage_ids[answer]] = 1
    return Contents(_swapped(query_ids), _swapped(passage_ids), relevant)


def _swapped(ids: Mapping[str, str]) -> dict[str, str]:
    return {name: text for text, name in ids.items()}


def _unique(table: Table, column: str, texts: Sequence[str]) -> dict[str, str]:
    """Id to text, each id once."""
    ids = table.ids(column)
    found = dict(zip(ids, texts, strict=True))
    if len(found) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{table.file}: the {column} {twice!r} is there more than once: expected unique ids")
    return found


@dataclass(frozen=True)
class Table:
    """The rows of one file, or of the shards of one."""

    file: Path
    """The first file, for messages."""
    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, files: Sequence[Path]) -> Table:
        """Read files of the same columns.

        Raises:
            InputError: A file is damaged, or not of the kind that its name says.
        """
        rows: list[dict[str, Any]] = []
        for file in files:
            try:
                rows.extend(_READERS[file.suffix](file))
            except (ValueError, csv.Error) as error:
                raise InputError(f"{file} cannot be read ({error}): download it again") from error
        if rows and not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{files[0]} holds lines that are not objects: expected one JSON object a line")
        return cls(files[0], rows)

    def values(self, column: str) -> list[Any]:
        """One column, without gaps."""
        found = [row.get(column) for row in self.rows]
        if None in found:
            number = found.index(None)
            raise InputError(
                f"{self.file}: row {number + 1} has no {column}: expected one in each row; "
                f"the row has {', '.join(map(str, self.rows[number])) or 'nothing'}"
            )
        return found

    def texts(self, column: str) -> list[str]:
        """One column of texts."""
        found = self.values(column)
        if wrong := [value for value in found if not isinstance(value, str)]:
            raise InputError(f"{self.file}: {column} holds {wrong[0]!r}: expected texts only")
        return found

    def ids(self, column: str) -> list[str]:
        """One column of ids, which may be numbers."""
        return [str(value) for value in self.values(column)]

    def grades(self, column: str) -> list[int]:
        """One column of relevance grades."""
        try:
            return [int(float(value)) for value in self.values(column)]
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.file}: {column} holds no number: {error}") from error


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def _read_tsv(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def _read_csv(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "bulk", "reading a dataset in Parquet") from error
    rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    return rows


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
