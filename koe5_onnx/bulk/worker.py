"""A worker reads, embeds and writes shards, in this process or in a Ray actor."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from koe5_onnx import Embedder, EngineOptions, InputError, TruncationWarning, __version__
from koe5_onnx.bulk.formats import FORMATS, ShardWriter
from koe5_onnx.bulk.input_files import InputFiles
from koe5_onnx.bulk.job import BulkJob
from koe5_onnx.bulk.plan import Plan, Shard
from koe5_onnx.bulk.reader import Reader
from koe5_onnx.bulk.rows import BadRow, Rows
from koe5_onnx.bulk.shards import Counts, OutputFolder, Receipt
from koe5_onnx.bulk.vectors import CONVENTIONS, arrow_fields, to_arrow
from koe5_onnx.embedder import Encoded
from koe5_onnx.engine.cache import Cache
from koe5_onnx.stores import Location

METADATA = b"koe5_onnx"
"""Key in the metadata of a shard's schema; the value is a description as JSON."""

WINDOW_BYTES = 128 << 20
"""Memory for the embeddings of recent texts, enough for 28,000 texts with 1,024 dimensions."""

OnDone = Callable[[int, int], None]
"""Called with the finished rows and tokens of the current shard."""


@dataclass(frozen=True)
class Progress:
    """Progress of a job, including earlier runs."""

    rows: int
    """Number of finished input rows, including bad rows; an estimate within an unfinished shard."""
    total_rows: int
    tokens: int


@dataclass(frozen=True)
class Task:
    """Everything that a worker needs. It can be pickled and sent to another machine."""

    job: BulkJob
    artifact: str
    engine: EngineOptions
    source: InputFiles
    plan: Plan
    output: Location
    strict: bool
    dedupe: bool
    """Embed equal texts once, within a window of recent texts."""


class Worker:
    """Embeds shards with one Embedder, fastest in ascending order.

    Raises:
        Koe5Error: The artifact cannot be opened or the device cannot run it.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        # With overflow="error" the Embedder would raise an error for a text above the token limit. `_add`
        # counts it as a bad row instead.
        self._embedder = Embedder.open(
            task.artifact,
            options=replace(
                task.engine, overflow="truncate" if task.job.overflow == "error" else task.job.overflow
            ),
        )
        self._reader = Reader(task.source, task.plan, task.job.options)
        self._output = OutputFolder(task.output, task.job.options.output_format)
        self._schema = self._output_schema()
        self._recent = RecentTexts(task.job.options.dim or self._embedder.dim) if task.dedupe else None

    def run(self, index: int, on_done: OnDone = lambda _rows, _tokens: None) -> Receipt:
        """Embed a shard, write its files and its receipt, and return the receipt.

        Raises:
            InputError: The input cannot be read, or a row is bad and the task is strict.
            OSError: The shard cannot be written.
        """
        locations = [self._output.location / name for name in self._output.names(index)]
        with ExitStack() as files:
            temporary = [files.enter_context(location.writing()) for location in locations]
            counts, bad = self._write(self._task.plan.shard(index), temporary, on_done)
            size = sum(path.stat().st_size for path in temporary)
        receipt = Receipt(shard=index, bytes=size, **asdict(counts))
        self._output.sign(receipt, bad)
        return receipt

    def close(self) -> None:
        """Close the Embedder and the input."""
        self._reader.close()
        self._embedder.close()

    def _write(self, shard: Shard, paths: list[Path], on_done: OnDone) -> tuple[Counts, list[BadRow]]:
        counts = Counts()
        bad: list[BadRow] = []
        options = self._task.job.options
        opened = FORMATS[options.output_format].open(paths, self._schema, options.embedding_column)
        with closing(opened) as writer:
            for chunk in self._reader.chunks(shard):
                more, more_bad = self._add(chunk, writer, counts, on_done)
                counts += more
                bad += more_bad
                on_done(counts.rows + counts.bad_rows, counts.tokens)
        return counts, bad

    def _add(
        self, chunk: Rows, writer: ShardWriter, before: Counts, on_done: OnDone
    ) -> tuple[Counts, list[BadRow]]:
        """Embed a chunk, write it to the shard's files and return its counts and its bad rows."""
        self._require_good(chunk.bad)

        def on_progress(done: int, total: int) -> None:
            rows = before.rows + before.bad_rows + chunk.count * done // max(1, total)
            on_done(rows, before.tokens + done)

        encoded, repeated = self._encode(chunk.texts, on_progress)
        table, embeddings, bad = chunk.table, encoded.embeddings, chunk.bad
        if self._task.job.overflow == "error" and encoded.truncated.any():
            too_long = self._too_long(chunk, encoded.tokens, encoded.truncated)
            self._require_good(too_long)
            bad = sorted([*bad, *too_long], key=lambda row: (row.file, row.row))  # as in the input
            table, embeddings = table.filter(pa.array(~encoded.truncated)), embeddings[~encoded.truncated]
        columns = to_arrow(embeddings, self._task.job.options.output_dtype)
        whole = pa.table([*table.columns, *columns], schema=self._schema)
        for batch in whole.combine_chunks().to_batches():
            writer.write_batch(batch)
        limit = self._embedder.contract.max_tokens
        return Counts(
            rows=len(table),
            bad_rows=len(bad),
            tokens=int(np.minimum(encoded.tokens, limit).sum(dtype=np.int64)),
            truncated=0 if self._task.job.overflow == "error" else int(encoded.truncated.sum()),
            composed=int(encoded.composed.sum()),
            repeated=repeated,
        ), bad

    def _encode(self, texts: Sequence[str], on_progress: Callable[[int, int], None]) -> tuple[Encoded, int]:
        """Return the results of texts, and the number of texts that were not embedded because of `dedupe`."""
        options = self._task.job.options
        encode = partial(
            self._embedder.encode_with_info,
            prompt_name=options.prompt_name,
            prompt=options.prompt,
            dim=options.dim,
            on_progress=on_progress,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # the receipt counts truncated texts
            return (encode(texts), 0) if self._recent is None else self._recent.encode(texts, encode)

    def _too_long(
        self, chunk: Rows, tokens: npt.NDArray[np.int32], truncated: npt.NDArray[np.bool_]
    ) -> list[BadRow]:
        limit = self._embedder.contract.max_tokens
        return [
            BadRow(*chunk.places[row], f"the text has {tokens[row]} tokens, expected at most {limit}")
            for row in np.flatnonzero(truncated)
        ]

    def _require_good(self, bad: list[BadRow]) -> None:
        if bad and self._task.strict:
            raise InputError(f"{bad[0]}. Fix the row, or run without --strict to skip bad rows")

    def _output_schema(self) -> pa.Schema:
        options, manifest = self._task.job.options, self._embedder.artifact.manifest
        dim = options.dim or self._embedder.dim
        description = {
            "made_by": f"koe5-onnx {__version__}",
            "checkpoint": manifest.source.repository,
            "precision": manifest.precision,
            "graph": self._task.job.graph,
            "text_column": options.text_column,
            "text_template": options.text_template,
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


class RecentTexts:
    """The results of recent texts, so that equal texts are embedded once.

    `Embedder.encode` embeds equal texts of one call, here of one chunk, once. This class also finds texts
    of earlier chunks and shards. In int8, the output is bitwise the same as without it, because an embedding
    does not depend on the other texts of its batch.

    Args:
        dim: Size of the embeddings.
        max_bytes: Approximate maximum size of the results. Those used least recently are removed first.
    """

    def __init__(self, dim: int, max_bytes: int = WINDOW_BYTES) -> None:
        self._dim = dim
        self._results: Cache[Encoded] = Cache(
            max_bytes // (4 * dim + 700)
        )  # Python objects take 700 bytes per text

    def encode(self, texts: Sequence[str], encode: Callable[[Sequence[str]], Encoded]) -> tuple[Encoded, int]:
        """Return the results of texts, and the number of texts that `encode` did not have to embed."""
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        text_of = dict(zip(keys, texts, strict=True))
        known = self._results.get(text_of)
        new = [key for key in text_of if key not in known]
        found = Encoded.joined([*known.values(), encode([text_of[key] for key in new])], self._dim)
        row_of = {key: row for row, key in enumerate([*known, *new])}
        self._results.put({key: _taken(found, [row_of[key]]) for key in new})
        return _taken(found, [row_of[key] for key in keys]), len(texts) - len(new)


def _taken(encoded: Encoded, rows: list[int]) -> Encoded:
    """Return a copy of rows of a result."""
    return Encoded(**{field.name: getattr(encoded, field.name)[rows] for field in fields(encoded)})
