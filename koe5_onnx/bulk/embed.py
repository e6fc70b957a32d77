"""Embed files: find the input, plan the job, make its shards, complete the output.

find the input -> lock the folder -> the same job or a new plan -> the missing shards -> errors, _SUCCESS
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from koe5_onnx import Artifact, EngineOptions, InputError
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.bulk.input_files import InputFiles, find
from koe5_onnx.bulk.job import BulkJob, BulkOptions, Summary, hashes_of, is_begun
from koe5_onnx.bulk.local import run_here
from koe5_onnx.bulk.plan import OnRead, Plan, make_plan, require_free_names
from koe5_onnx.bulk.ray_engine import RayOptions, run_on_ray
from koe5_onnx.bulk.shards import JOB, PLAN, SUCCESS, OutputFolder, Receipt
from koe5_onnx.bulk.vectors import column_names
from koe5_onnx.bulk.worker import Progress, Task
from koe5_onnx.engine.graphs import choose
from koe5_onnx.text.prompts import prompt_text

OnProgress = Callable[[Progress], None]


def embed_files(
    source: str | Path,
    output: str | Path,
    artifact: str | Path,
    options: BulkOptions,
    *,
    engine: EngineOptions | None = None,
    strict: bool = False,
    restart: bool = False,
    ray: RayOptions | None = None,
    on_progress: OnProgress = lambda _progress: None,
    on_read: OnRead = lambda _bytes: None,
) -> Summary:
    """Embed the texts of files into a folder of parquet files; started again, it goes on where it was.

    Args:
        source: A file or a folder: .parquet, .jsonl, .csv, the last two also with .gz.
        output: A folder for this job alone, which is made if need be.
        artifact: Folder made by `koe5-onnx export`, or the Hub id of one.
        options: What is made of the texts.
        engine: How the artifact is opened. With `overflow="error"` a text above the token limit is a bad row.
            None takes the defaults, with as many parallel batches as `koe5-onnx tune` found best.
        strict: Stop at the first bad row instead of noting it in _errors.jsonl.
        restart: Drop what the output holds of an earlier job, and begin anew.
        ray: Work on a Ray cluster; None works in this process.
        on_progress: Called while shards are made.
        on_read: Called while the input is planned, with the bytes of each file.

    Returns:
        What the output holds, and what this run did.

    Raises:
        InputError: The input or an argument cannot be used, the output holds another job or another process
            works on it, or a row is bad and the job is strict.
        ArtifactError: The artifact is missing or damaged.
        ProviderError: The device cannot be used.
        MissingDependencyError: `ray` is given and Ray is not installed.
        OSError: A file cannot be read or written.
    """
    found = find(Path(source))
    folder = OutputFolder(Path(output).resolve())
    _require_apart(Path(source).resolve(), folder.path)
    folder.require_usable()
    engine = engine or EngineOptions(parallel_batches=None)
    job = _job(artifact, engine, options, found)
    with folder.locked():
        if restart:
            folder.clear()
        folder.remove_partial()
        plan = _plan(folder, job, found, on_read)
        # What "auto" chose here holds for all workers: one without the kernels fails instead of mixing.
        engine = dataclasses.replace(engine, graph=job.graph)
        task = Task(job, str(artifact), engine, found, plan, folder.path, strict)
        return _Run(task, folder, ray, on_progress).finish()


def _require_apart(source: Path, output: Path) -> None:
    if source.is_dir() and output.is_relative_to(source):
        raise InputError(f"the output {output} is in the input {source}: it would be read as one")


def _job(path: str | Path, engine: EngineOptions, options: BulkOptions, source: InputFiles) -> BulkJob:
    artifact = Artifact.open(path, revision=engine.revision)
    contract = artifact.manifest.contract
    prompt_text(contract, options.prompt_name, options.prompt)
    require_dim(options.dim, contract)
    # The full width is the same job whether it is named or not.
    options = dataclasses.replace(options, dim=options.dim or contract.dim)
    graph: Literal["packed", "padded"] = "packed" if choose(artifact, engine).is_packed else "padded"
    return BulkJob(options, engine.overflow, hashes_of(artifact), contract, graph, source.files)


def _plan(folder: OutputFolder, job: BulkJob, source: InputFiles, on_read: OnRead) -> Plan:
    """The plan of a job that goes on, or of one that begins; the job file comes last and begins it."""
    if is_begun(folder, job):
        return Plan.from_data(folder.read_json(PLAN))
    plan = make_plan(source, job.options.text_column, job.options.shard_rows, on_read)
    require_free_names(plan.schema, column_names(job.options.embedding_column, job.options.output_dtype))
    folder.write_json(PLAN, plan.as_data())
    folder.write_json(JOB, job.as_data())
    return plan


class _Run:
    """One run of a job: what was there, what is added, the end."""

    def __init__(
        self, task: Task, folder: OutputFolder, ray: RayOptions | None, on_progress: OnProgress
    ) -> None:
        self._task, self._folder, self._ray, self._on_progress = task, folder, ray, on_progress
        self._receipts = folder.receipts(len(task.plan.starts))
        self._before = dict(self._receipts)
        self._rows = sum(task.plan.shard(shard).rows for shard in self._receipts)
        self._tokens = sum(receipt.tokens for receipt in self._receipts.values())

    def finish(self) -> Summary:
        """Make the shards that are missing and complete the folder."""
        self._require_strict()
        start = time.perf_counter()
        self._report(0, 0)
        if missing := [shard for shard in range(len(self._task.plan.starts)) if shard not in self._before]:
            (self._folder.path / SUCCESS).unlink(missing_ok=True)
            for receipt in self._make(missing):
                self._count(receipt)
        seconds = time.perf_counter() - start
        self._task.source.require_unchanged()
        return self._complete(seconds)

    def _make(self, shards: list[int]) -> Iterator[Receipt]:
        if self._ray is not None:
            return run_on_ray(self._task, shards, self._ray)
        return run_here(self._task, shards, self._report)

    def _require_strict(self) -> None:
        bad = next((row for receipt in self._before.values() for row in receipt.bad), None)
        if self._task.strict and bad is not None:
            raise InputError(
                f"an earlier run of this job found a bad row: {bad}; repair it, or drop --strict"
            )

    def _count(self, receipt: Receipt) -> None:
        self._receipts[receipt.shard] = receipt
        self._rows += self._task.plan.shard(receipt.shard).rows
        self._tokens += receipt.tokens
        self._report(0, 0)

    def _report(self, rows: int, tokens: int) -> None:
        """Say how far it is, with what is done of the shard in work."""
        self._on_progress(Progress(self._rows + rows, self._task.plan.rows, self._tokens + tokens))

    def _complete(self, seconds: float) -> Summary:
        receipts = [self._receipts[shard] for shard in range(len(self._task.plan.starts))]
        self._folder.write_errors(receipts)
        summary = Summary(
            rows=sum(receipt.rows for receipt in receipts),
            bad_rows=sum(len(receipt.bad) for receipt in receipts),
            tokens=self._tokens,
            truncated=sum(receipt.truncated for receipt in receipts),
            composed=sum(receipt.composed for receipt in receipts),
            shards=len(receipts),
            shards_before=len(self._before),
            tokens_before=sum(receipt.tokens for receipt in self._before.values()),
            seconds=seconds,
        )
        names = ("rows", "bad_rows", "tokens", "truncated", "composed")
        counts = {name: getattr(summary, name) for name in names}
        shards = {self._folder.part(receipt.shard).name: receipt.rows for receipt in receipts}
        self._folder.write_json(SUCCESS, {**counts, "shards": shards})
        return summary
