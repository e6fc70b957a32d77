"""One worker: reads a shard, embeds it, writes it, signs it; in this process or in an actor of a cluster."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from koe5_onnx import Embedder, EngineOptions, InputError, TruncationWarning, __version__
from koe5_onnx.bulk.input_files import InputFiles
from koe5_onnx.bulk.job import BulkJob
from koe5_onnx.bulk.plan import Plan, Shard
from koe5_onnx.bulk.reader import Reader
from koe5_onnx.bulk.rows import BadRow, Rows
from koe5_onnx.bulk.shards import OutputFolder, Receipt
from koe5_onnx.bulk.vectors import CONVENTIONS, arrow_fields, to_arrow
from koe5_onnx.files import atomic_path

METADATA = b"koe5_onnx"
"""Key of a shard's description in the schema's metadata: JSON."""

OnDone = Callable[[int, int], None]
"""Rows and tokens of a shard that are done."""


@dataclass(frozen=True)
class Progress:
    """How far a job is, earlier runs counted."""

    rows: int
    """Of the input, bad ones too; those of an unfinished shard are an estimate."""
    total_rows: int
    tokens: int


@dataclass(frozen=True)
class Task:
    """What every worker of a job knows; plain data, so that it can be sent to another machine."""

    job: BulkJob
    artifact: str
    engine: EngineOptions
    source: InputFiles
    plan: Plan
    output: Path
    strict: bool


class Worker:
    """Holds one Embedder and works on shards, fastest in their order.

    Raises:
        Koe5Error: The artifact or the device cannot be used.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        # A text above the limit must not end the job: `_add` makes it a bad row.
        self._embedder = Embedder.open(task.artifact, options=replace(task.engine, overflow="truncate"))
        self._reader = Reader(task.source, task.plan, task.job.options.text_column)
        self._output = OutputFolder(task.output)
        self._schema = self._output_schema()

    def run(self, index: int, on_done: OnDone = lambda _rows, _tokens: None) -> Receipt:
        """Make one shard.

        Raises:
            InputError: The input cannot be read, or a row is bad and the job is strict.
            OSError: The shard cannot be written.
        """
        part = self._output.part(index)
        with atomic_path(part) as temporary:
            receipt = self._write(self._task.plan.shard(index), temporary, on_done)
        receipt = replace(receipt, bytes=part.stat().st_size)
        self._output.sign(receipt)
        return receipt

    def close(self) -> None:
        """Free the graph and close the input."""
        self._reader.close()
        self._embedder.close()

    def _write(self, shard: Shard, path: Path, on_done: OnDone) -> Receipt:
        receipt = Receipt(shard.index, rows=0, bad=(), tokens=0, truncated=0, composed=0, bytes=0)
        seen = 0
        others = self._task.plan.schema.names
        with pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=others) as writer:
            for window in self._reader.windows(shard):
                receipt = self._add(window, writer, receipt, seen, on_done)
                seen += window.count
                on_done(seen, receipt.tokens)
        return receipt

    def _add(
        self, window: Rows, writer: pq.ParquetWriter, receipt: Receipt, seen: int, on_done: OnDone
    ) -> Receipt:
        """Embed a window into the shard's file; the receipt with it counted."""
        self._require_good(window.bad)

        def on_progress(done: int, total: int) -> None:
            on_done(seen + window.count * done // max(1, total), receipt.tokens + done)

        options = self._task.job.options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # the receipt counts them
            encoded = self._embedder.encode_with_info(
                window.texts,
                options.prompt_name,
                prompt=options.prompt,
                dim=options.dim,
                on_progress=on_progress,
            )
        table, embeddings, bad = window.table, encoded.embeddings, window.bad
        if self._task.job.overflow == "error" and encoded.truncated.any():
            too_long = self._too_long(window, encoded.tokens, encoded.truncated)
            self._require_good(too_long)
            bad = sorted([*bad, *too_long], key=lambda row: (self._place(row.file), row.row))
            table, embeddings = table.filter(pa.array(~encoded.truncated)), embeddings[~encoded.truncated]
        columns = to_arrow(embeddings, options.embedding_column, options.output_dtype)
        if len(table):
            writer.write_table(pa.table([*table.columns, *columns], schema=self._schema))
        limit = self._embedder.contract.max_tokens
        return replace(
            receipt,
            rows=receipt.rows + len(table),
            bad=(*receipt.bad, *bad),
            tokens=receipt.tokens + int(np.minimum(encoded.tokens, limit).sum(dtype=np.int64)),
            truncated=receipt.truncated + int(encoded.truncated.sum()),
            composed=receipt.composed + int(encoded.composed.sum()),
        )

    def _too_long(
        self, window: Rows, tokens: npt.NDArray[np.int32], truncated: npt.NDArray[np.bool_]
    ) -> list[BadRow]:
        limit = self._embedder.contract.max_tokens
        return [
            BadRow(*window.places[row], f"{tokens[row]} tokens: expected at most {limit}")
            for row in np.flatnonzero(truncated)
        ]

    def _place(self, file: str) -> int:
        return [described.name for described in self._task.source.files].index(file)

    def _require_good(self, bad: list[BadRow]) -> None:
        if bad and self._task.strict:
            raise InputError(f"{bad[0]}; repair it, or drop --strict to go on without such rows")

    def _output_schema(self) -> pa.Schema:
        options, manifest = self._task.job.options, self._embedder.artifact.manifest
        dim = options.dim or self._embedder.dim
        description = {
            "made_by": f"koe5-onnx {__version__}",
            "checkpoint": manifest.source.repository,
            "precision": manifest.precision,
            "graph": self._task.job.graph,
            "text_column": options.text_column,
            "prompt_name": options.prompt_name,
            "prompt": options.prompt,
            "embedding_column": options.embedding_column,
            "dim": dim,
            "dtype": options.output_dtype,
            "convention": CONVENTIONS[options.output_dtype],
        }
        vectors = arrow_fields(options.embedding_column, options.output_dtype, dim)
        schema = pa.schema([*self._task.plan.schema, *vectors])
        return schema.with_metadata({METADATA: json.dumps(description, ensure_ascii=False).encode()})
