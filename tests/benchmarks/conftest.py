"""Fixtures of the benchmark tests: a tiny checkpoint, its artifacts, small datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import write_seeded_checkpoint
from koe5_export.texts import CALIBRATION, SAMPLE_PASSAGES, SAMPLE_QUERIES

from benchmarks.corpora import Dataset
from benchmarks.layouts import Contents


@pytest.fixture(scope="session")
def seeded(made_once):
    """Return the folder of a tiny seeded checkpoint."""
    return made_once("tiny/checkpoint", lambda folder: write_seeded_checkpoint(folder, "tiny"))


@pytest.fixture(scope="session")
def exported(seeded, made_once):
    """Return the folders of the checkpoint's artifacts by precision."""

    def export(precision):
        options = ExportOptions(precision=precision)
        return lambda folder: export_checkpoint(Checkpoint.open(seeded), folder, options)

    return {precision: made_once(f"tiny/{precision}", export(precision)) for precision in ("fp32", "int8")}


@pytest.fixture
def dataset():
    """Return a dataset whose first query has two relevant passages, and whose second query has one."""
    relevant = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}
    passages = {name: f"passage {name}" for name in "abcde"}
    return Dataset("five", "here", Contents({"q1": "one", "q2": "two"}, passages, relevant))


@pytest.fixture
def write_beir(tmp_path):
    """Return a function that writes a dataset in BEIR's layout and returns its folder."""

    def write(queries, passages, qrels, split="test", name="beir"):
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        write_jsonl(folder / "corpus.jsonl", passages)
        write_jsonl(folder / "queries.jsonl", queries)
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def demo_dataset(write_beir):
    """Return the folder of a dataset with built-in texts, one of which exceeds the token limit."""
    passages = [*SAMPLE_PASSAGES, *CALIBRATION[:70], " ".join(CALIBRATION)]
    return write_beir(
        [{"_id": f"q{row}", "text": text} for row, text in enumerate(SAMPLE_QUERIES)],
        [{"_id": f"p{row}", "title": "", "text": text} for row, text in enumerate(passages)],
        [(f"q{row}", f"p{row}", 1) for row in range(len(SAMPLE_QUERIES))],
        name="demo",
    )


def write_jsonl(file: Path, rows: list[object]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
