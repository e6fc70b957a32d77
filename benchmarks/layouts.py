"""Read retrieval datasets in their published layouts: queries, passages and relevance judgments.

corpora.py handles names and the Hub. The layout is recognized by the files in the folder::

    AutoRAG  corpus.parquet (doc_id, contents) and qa.parquet (qid, query, retrieval_gt: groups of doc_ids)
    BEIR     corpus (_id, title, text), queries (_id, text), qrels (query-id, corpus-id, score) of the split
             "test", or else "dev"; as .jsonl or Parquet, qrels also as .tsv
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
"""Patterns of all files that the layouts use."""


class Contents(NamedTuple):
    """Queries, passages and relevance judgments."""

    queries: dict[str, str]
    """Text by id. In the BEIR layout, queries without a relevant passage are left out."""
    passages: dict[str, str]
    """Text by id."""
    relevant: dict[str, dict[str, int]]
    """By query id, the grade (1 or higher) of each relevant passage by passage id."""


def read_contents(folder: Path) -> Contents:
    """Read the dataset in a folder.

    Raises:
        InputError: The layout is unknown, or a file or row does not match it.
        MissingDependencyError: The dataset is in Parquet and pyarrow is not installed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Pass the folder of a dataset")
    if (folder / "corpus.parquet").is_file() and (folder / "qa.parquet").is_file():
        return _read_autorag(Table.read([folder / "corpus.parquet"]), Table.read([folder / "qa.parquet"]))
    beir = [_find(folder, patterns) for patterns in (_CORPUS, _QUERIES, _QRELS)]
    if all(beir):
        return _read_beir(*map(Table.read, beir))
    if faq := _find(folder, _FAQ):
        return _read_faq(Table.read(faq))
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    raise InputError(
        f"{folder} has no dataset in a known layout. Expected corpus.parquet and qa.parquet (AutoRAG), "
        "corpus.jsonl, queries.jsonl and qrels/test.tsv or qrels/dev.tsv (BEIR), or korean.csv (FAQ); "
        f"found {', '.join(found[:10]) or 'no file'}"
    )


def _find(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files that match the first pattern that has a match; none if no pattern has one."""
    return next((files for pattern in patterns if (files := sorted(folder.glob(pattern)))), [])


def _read_autorag(corpus: Table, qa: Table) -> Contents:
    queries = _unique(qa, "qid", qa.texts("query"))
    groups = zip(queries, qa.values("retrieval_gt"), strict=True)
    relevant = {query: dict.fromkeys(_flat(given, qa, query), 1) for query, given in groups}
    return Contents(queries, _unique(corpus, "doc_id", corpus.texts("contents")), relevant)


def _flat(given: Any, qa: Table, query: str) -> Iterator[str]:
    """Yield all ids of a retrieval_gt value, which is a list of groups. All ids of a group are relevant."""
    if not isinstance(given, list) or not all(isinstance(group, list) for group in given):
        raise InputError(
            f"{qa.file}: retrieval_gt of {query} is {given!r}, expected a list of lists of doc_ids"
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
        raise InputError(f"{qrels.file} judges the query {strangers[0]!r}, which is not in {queries.file}")
    asked = {query: text for query, text in known.items() if query in relevant}
    return Contents(asked, _unique(corpus, "_id", texts), relevant)


def _read_faq(rows: Table) -> Contents:
    """Merge equal answers into one passage, and equal questions into one query."""
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
    """Return texts by id, requiring unique ids."""
    ids = table.ids(column)
    found = dict(zip(ids, texts, strict=True))
    if len(found) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{table.file}: the {column} {twice!r} is not unique. Remove the duplicate rows")
    return found


@dataclass(frozen=True)
class Table:
    """The rows of one file, or of its shards."""

    file: Path
    """The first file. Messages about rows name it, and count the rows of all shards."""
    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, files: Sequence[Path]) -> Table:
        """Read files with the same columns.

        Raises:
            InputError: A file is damaged, or does not have the format that its suffix implies.
        """
        rows: list[dict[str, Any]] = []
        for file in files:
            try:
                found = _READERS[file.suffix](file)
            except (ValueError, csv.Error) as error:
                raise InputError(f"{file} cannot be read ({error}). Download it again") from error
            if not all(isinstance(row, dict) for row in found):
                raise InputError(f"{file} has lines that are not JSON objects, expected one object per line")
            rows.extend(found)
        return cls(files[0], rows)

    def values(self, column: str) -> list[Any]:
        """Return a column and check that every row has a value."""
        found = [row.get(column) for row in self.rows]
        if None in found:
            number = found.index(None)
            raise InputError(
                f"{self.file}: row {number + 1} has no {column}, expected one in every row; "
                f"the row has {', '.join(map(str, self.rows[number])) or 'no columns'}"
            )
        return found

    def texts(self, column: str) -> list[str]:
        """Return a column of texts."""
        found = self.values(column)
        if wrong := [value for value in found if not isinstance(value, str)]:
            raise InputError(f"{self.file}: {column} contains {wrong[0]!r}, expected only texts")
        return found

    def ids(self, column: str) -> list[str]:
        """Return a column of ids as text; the values may be numbers."""
        return [str(value) for value in self.values(column)]

    def grades(self, column: str) -> list[int]:
        """Return a column of relevance grades."""
        try:
            return [int(float(value)) for value in self.values(column)]
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.file}: {column} contains a non-numeric value: {error}") from error


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
