"""What was asked, and how it ended: a folder holds one job, and going on with another is refused.

Whatever can change a row of the output is in the job. What cannot is not: threads, parallel batches,
the device, Ray; a job begun on one machine may go on elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from koe5_onnx import Artifact, Contract, InputError
from koe5_onnx.bulk.input_files import InputFile
from koe5_onnx.bulk.shards import JOB, PLAN, OutputFolder
from koe5_onnx.bulk.vectors import require_dtype
from koe5_onnx.options import Overflow

FORMAT_VERSION = 3


DEFAULT_SHARD_ROWS = 1024
"""4 MiB of float32 at KoE5's width; some minutes of pages on two cores, which a kill may cost."""


@dataclass(frozen=True)
class BulkOptions:
    """What is made of the texts.

    Args:
        prompt_name: Name of a prompt in the artifact's contract ("query", "passage"); None takes the
            contract's default.
        prompt: In place of a name, the text itself; "" puts nothing in front.
        text_column: Where the text is.
        embedding_column: Name of the new column.
        output_dtype: One of OUTPUT_DTYPES; vectors.py says what each holds.
        dim: Components kept of each embedding, one of the contract's `dims`; None keeps all.
        shard_rows: Rows of the input for each file of the output, at least 1: what a kill may cost.

    Raises:
        InputError: One of them is out of range.
    """

    prompt_name: str | None
    prompt: str | None = None
    text_column: str = "text"
    embedding_column: str = "embedding"
    output_dtype: str = "float32"
    dim: int | None = None
    shard_rows: int = DEFAULT_SHARD_ROWS

    def __post_init__(self) -> None:
        require_dtype(self.output_dtype)
        if self.shard_rows < 1:
            raise InputError(f"the rows of a shard are {self.shard_rows}: expected 1 or more")


@dataclass(frozen=True)
class BulkJob:
    """All that decides what the output holds."""

    options: BulkOptions
    overflow: Overflow
    """Whether a text above the token limit is truncated, or a bad row ("error")."""
    artifact: dict[str, str]
    """Its files' SHA-256."""
    contract: Contract
    """Its contract, which no hash covers."""
    graph: Literal["packed", "padded"]
    """They differ in the last bits of an embedding."""
    files: tuple[InputFile, ...]

    def as_data(self) -> dict[str, Any]:
        """As plain data for a JSON file."""
        return {
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self.options),
            "overflow": self.overflow,
            "artifact": self.artifact,
            # With lists in place of tuples, as when it is read again.
            "contract": json.loads(json.dumps(dataclasses.asdict(self.contract))),
            "graph": self.graph,
            "files": [dataclasses.asdict(file) for file in self.files],
        }


@dataclass(frozen=True)
class Summary:
    """How a job ended, and what this run did of it."""

    rows: int
    """Rows of the output."""
    bad_rows: int
    tokens: int
    """That ran, after truncation."""
    truncated: int
    """Rows whose text was cut at the token limit."""
    composed: int
    """Rows whose text was decomposed Unicode, and was composed."""
    shards: int
    shards_before: int
    """Of these, finished by earlier runs."""
    tokens_before: int
    seconds: float
    """Of this run, from the first text on."""

    @property
    def tokens_per_second(self) -> float:
        """Of this run; 0 where it had nothing to do."""
        return (self.tokens - self.tokens_before) / self.seconds if self.seconds else 0.0


def hashes_of(artifact: Artifact) -> dict[str, str]:
    """File to SHA-256."""
    return {name: file.sha256 for name, file in artifact.manifest.files.items()}


def is_begun(folder: OutputFolder, job: BulkJob) -> bool:
    """Whether the folder holds this job.

    Raises:
        InputError: It holds another, or a damaged one.
    """
    if not (folder.path / JOB).is_file():
        return False
    before, now = folder.read_json(JOB), job.as_data()
    if before != now:
        raise InputError(
            f"the output {folder.path} holds another job: {_difference(before, now)}. "
            "Repeat the command that began it, give another output, or drop what is there with --restart"
        )
    if not (folder.path / PLAN).is_file():
        raise InputError(f"{folder.path / PLAN} is missing: start the job again with --restart")
    return True


def _difference(before: Any, now: dict[str, Any]) -> str:
    if not isinstance(before, dict) or before.get("format_version") != FORMAT_VERSION:
        return "its description is of another version of koe5-onnx"
    names = [name for name in now if before.get(name) != now[name]]
    return "; ".join(_words(name, before.get(name), now[name]) for name in names)


def _words(name: str, before: Any, now: Any) -> str:
    if name == "files" and isinstance(before, list):
        return _changed_files(before, now)
    if name == "artifact":
        return "the artifact is another"
    return f"{name} was {before!r} and is {now!r}"


def _changed_files(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> str:
    old, new = ({file["name"]: file for file in files} for files in (before, now))
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    kind = (
        "has changed"
        if changed[0] in old and changed[0] in new
        else "is new"
        if changed[0] in new
        else "is gone"
    )
    return f"the input file {changed[0]} {kind}{more}"
