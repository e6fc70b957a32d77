"""Description and summary of a job. An output folder belongs to one job, and other jobs are rejected.

The description has the options and files that determine the rows of the output. It has no threads, parallel
batches, device and Ray options, which change embeddings by rounding at most, so that a job can be resumed on
another machine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from koe5_onnx import Contract, InputError
from koe5_onnx.bulk.formats import require_format
from koe5_onnx.bulk.records import Dialect
from koe5_onnx.bulk.rows import Text
from koe5_onnx.bulk.shards import JOB, Counts, OutputFolder
from koe5_onnx.bulk.vectors import require_dtype
from koe5_onnx.options import Overflow
from koe5_onnx.stores import Entry
from koe5_onnx.text.encoding import canonical

FORMAT_VERSION = 7

DEFAULT_SHARD_ROWS = 1024
"""Default number of rows per shard: 4 MiB of float32 embeddings of KoE5. Two cores embed that many pages in a
few minutes."""


@dataclass(frozen=True)
class BulkOptions:
    r"""Prompt, columns and formats of the input and the output.

    Args:
        prompt_name: Name of a prompt in the artifact's contract ("query", "passage"); None uses the
            contract's default.
        prompt: Text to add before each text, instead of a prompt name; "" adds nothing.
        text_column: Name of the text column in the input, or "a.b" for the field b of the struct a.
        text_template: Text with column names in braces, such as "{title}\n{body}", instead of a text column.
            A null column counts as an empty text, unless all columns of the template are null.
        encoding: Encoding of text files: an ASCII-compatible Python codec, "utf-16", or "auto" to detect the
            encoding of each file.
        csv: Delimiter, quote and escape character of CSV files.
        embedding_column: Name of the embedding column in the output.
        output_format: One of OUTPUT_FORMATS, which formats.py describes.
        output_dtype: One of OUTPUT_DTYPES, which vectors.py describes.
        dim: Size of the embeddings, one of the contract's `dims`; None for the full size.
        shard_rows: Input rows per shard, at least 1. An interruption loses at most one shard of each worker.

    Raises:
        InputError: An option is out of range.
        MissingDependencyError: The output format requires a package that is not installed.
    """

    prompt_name: str | None
    prompt: str | None = None
    text_column: str = "text"
    text_template: str | None = None
    encoding: str = "utf-8"
    csv: Dialect = dataclasses.field(default_factory=Dialect)
    embedding_column: str = "embedding"
    output_format: str = "parquet"
    output_dtype: str = "float32"
    dim: int | None = None
    shard_rows: int = DEFAULT_SHARD_ROWS

    def __post_init__(self) -> None:
        require_format(self.output_format)
        require_dtype(self.output_dtype)
        object.__setattr__(self, "encoding", canonical(self.encoding))
        _ = self.text  # checks the template
        if self.shard_rows < 1:
            raise InputError(f"shard_rows is {self.shard_rows}: expected 1 or more")

    @property
    def text(self) -> Text:
        """Source of a row's text."""
        return Text(self.text_column, self.text_template)


@dataclass(frozen=True)
class BulkJob:
    """Options and files that determine the rows of the output."""

    options: BulkOptions
    overflow: Overflow
    """Treatment of texts above the token limit. With "error" their rows are bad."""
    artifact: dict[str, str]
    """SHA-256 of each file of the artifact."""
    contract: Contract
    """Contract of the artifact, which the hashes do not cover."""
    graph: Literal["packed", "padded"]
    """Graph in use. The embeddings of the two graphs differ in their last bits."""
    files: Mapping[str, Entry]
    """The input files by name."""

    def as_data(self) -> dict[str, Any]:
        """Return the job as plain data for a JSON file."""
        return {
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self.options),
            "overflow": self.overflow,
            "artifact": self.artifact,
            # JSON turns tuples into lists. Do the same here, so that the job equals one read from a file.
            "contract": json.loads(json.dumps(dataclasses.asdict(self.contract))),
            "graph": self.graph,
            "files": {name: dataclasses.asdict(entry) for name, entry in self.files.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Summary(Counts):
    """Counts of a finished job and of the run that finished it."""

    shards: int
    """Number of shards."""
    shards_before: int
    """Number of shards that earlier runs finished."""
    tokens_before: int
    """Number of tokens in the shards that earlier runs finished."""
    seconds: float
    """Duration of embedding in this run, in seconds."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of this run; 0 if no shard was missing."""
        return (self.tokens - self.tokens_before) / self.seconds if self.seconds else 0.0


def require_same(folder: OutputFolder, job: BulkJob) -> None:
    """Check that the job in the output folder is `job`.

    Raises:
        InputError: The folder belongs to a different job, or its job file is damaged.
    """
    before, now = folder.read_json(JOB), job.as_data()
    if before != now:
        raise InputError(
            f"the output folder {folder.location} belongs to a different job: {_difference(before, now)}. "
            "Resume it with its original arguments, choose another output folder, or pass --restart to "
            "delete the existing job and start again"
        )


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before.get("format_version") != FORMAT_VERSION:
        return "it was started by another version of koe5-onnx"
    names = [name for name in now if before.get(name) != now[name]]
    return "; ".join(_words(name, before.get(name), now[name]) for name in names)


def _words(name: str, before: Any, now: Any) -> str:
    if name == "files":
        return _changed_files(before, now)
    if name == "artifact":
        return "the artifact is different"
    return f"{name} was {before!r} and is now {now!r}"


def _changed_files(before: dict[str, Any], now: dict[str, Any]) -> str:
    first, *others = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    more = f" and {len(others)} more" if others else ""
    kind = "is new" if first not in before else "is missing" if first not in now else "has changed"
    return f"the input file {first} {kind}{more}"
