"""Entry point of bulk embedding.

It finds the input files, locks the output folder, resumes its job or plans a new one, embeds the missing
shards, and writes _errors.jsonl and _SUCCESS.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from koe5_onnx import Artifact, EngineOptions, InputError
from koe5_onnx.artifact.matryoshka import require_dim
from koe5_onnx.bulk.formats import FORMATS
from koe5_onnx.bulk.input_files import InputFiles, find
from koe5_onnx.bulk.job import BulkJob, BulkOptions, Summary, require_same
from koe5_onnx.bulk.plan import Plan, make_plan
from koe5_onnx.bulk.ray_engine import RayOptions, run_on_ray
from koe5_onnx.bulk.rows import too_many_bad
from koe5_onnx.bulk.shards import JOB, PLAN, SUCCESS, Counts, OutputFolder, Receipt
from koe5_onnx.bulk.vectors import column_names
from koe5_onnx.bulk.worker import Progress, Task, Worker
from koe5_onnx.engine.tuning import choose_tuned
from koe5_onnx.stores import Location, locate
from koe5_onnx.text.prompts import prompt_text

OnProgress = Callable[[Progress], None]

MAX_BAD_SHARE = 0.5
"""Default maximum share of bad rows. If more are bad, the input is probably read with the wrong options."""


def embed_files(
    source: str | Path,
    output: str | Path,
    artifact: str | Path,
    options: BulkOptions,
    *,
    engine: EngineOptions | None = None,
    strict: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    dedupe: bool = False,
    restart: bool = False,
    ray: RayOptions | None = None,
    on_progress: OnProgress = lambda _progress: None,
) -> Summary:
    """Embed the texts of files and write the embeddings to a folder. Call again to resume an interrupted job.

    Args:
        source: A file or a folder of parquet, Arrow, JSON lines or CSV files: a local path or a URL.
        output: Folder for this job only, a local path or a URL. It is created if it does not exist.
        artifact: Folder made by `koe5-onnx export`, or the Hub ID of an artifact.
        options: Prompt, columns and format of the output.
        engine: Options of the engine. With `overflow="error"` a text above the token limit is a bad row. None
            uses the defaults, with as many parallel batches as `koe5-onnx tune` found best.
        strict: Stop at the first bad row instead of writing it to _errors.jsonl.
        max_bad_share: Stop if a larger share of all rows is bad, from 0 to 1. Finished shards are kept.
        dedupe: Embed equal texts once, within a window of recent texts. Each worker has its own window.
        restart: Delete the output of an earlier job and start again.
        ray: Run on a Ray cluster; None runs in this process.
        on_progress: Called while shards are embedded.

    Returns:
        Counts of the output and of this run.

    Raises:
        InputError: The input or an argument is invalid, the output folder belongs to a different job or is in
            use by another process, a row is bad and `strict` is True, or too many rows are bad.
        ArtifactError: The artifact is missing or damaged.
        ProviderError: The device cannot run the artifact.
        MissingDependencyError: `ray` is given and Ray is not installed, or a URL needs a driver of fsspec
            (such as s3fs) that is not installed.
        FidelityError: The self-test failed.
        OSError: A file cannot be read or written.
    """
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share is {max_bad_share:g}: expected a number from 0 to 1")
    folder = OutputFolder(locate(output), options.output_format)
    found = find(locate(source))
    _require_apart(found, folder.location)
    folder.require_usable()
    engine = engine or EngineOptions(parallel_batches=None)
    # Not `folder.sizes`, which lists the folder only once and requires the lock.
    if not restart and (folder.location / JOB).entry() is not None:
        engine = _with_graph_of(folder, engine)
    job = _job(artifact, engine, options, found)
    with folder.locked():
        if restart:
            folder.clear()
        folder.remove_partial()
        plan = _plan(folder, job, found, max_bad_share)
        # All workers use the graph that "auto" selected here. A worker without the kernels fails, because the
        # embeddings of the two graphs must not be mixed.
        engine = dataclasses.replace(engine, graph=job.graph)
        task = Task(job, str(artifact), engine, found, plan, folder.location, strict, dedupe)
        return _Run(task, folder, ray, max_bad_share, on_progress).finish()


def _require_apart(source: InputFiles, output: Location) -> None:
    root = source.root
    if source.is_folder and output.fs == root.fs and f"{output.path}/".startswith(f"{root.path}/"):
        raise InputError(f"the output {output} is in the input {root}. Pass a folder outside the input")


def _with_graph_of(folder: OutputFolder, engine: EngineOptions) -> EngineOptions:
    """Resume a job with its graph. What "auto" selects can change, for example after `koe5-onnx tune`."""
    graph = folder.read_json(JOB).get("graph")
    if engine.graph == "auto" and graph in ("packed", "padded"):
        return dataclasses.replace(engine, graph=graph)
    return engine


def _job(path: str | Path, engine: EngineOptions, options: BulkOptions, source: InputFiles) -> BulkJob:
    artifact = Artifact.open(path, revision=engine.revision)
    contract = artifact.manifest.contract
    prompt_text(contract, options.prompt_name, options.prompt)
    require_dim(options.dim, contract)
    # dim=None and the full size are the same job.
    options = dataclasses.replace(options, dim=options.dim or contract.dim)
    graph = choose_tuned(artifact, engine).kind
    hashes = {name: file.sha256 for name, file in artifact.manifest.files.items()}
    return BulkJob(options, engine.overflow, hashes, contract, graph, source.entries)


def _plan(folder: OutputFolder, job: BulkJob, source: InputFiles, max_bad_share: float) -> Plan:
    """Return the plan of a resumed job, or plan a new job. A job has started when its job file exists."""
    if JOB in folder.sizes:
        require_same(folder, job)
        if PLAN in folder.sizes:
            return Plan.from_data(folder.read_json(PLAN))
    plan = make_plan(source, job.options, max_bad_share)
    for name in column_names(job.options.embedding_column, job.options.output_dtype):
        if name in plan.schema.names:
            raise InputError(
                f"the input already has a column {name!r}. Pass another name with --embedding-column"
            )
    with suppress(FileExistsError):
        folder.write_json(JOB, job.as_data(), new=True)
    # Another process may have started a different job in the meantime.
    require_same(folder, job)
    folder.write_json(PLAN, plan.as_data())
    return plan


class _Run:
    """One run of a job: embed the missing shards and complete the output."""

    def __init__(
        self,
        task: Task,
        folder: OutputFolder,
        ray: RayOptions | None,
        max_bad_share: float,
        on_progress: OnProgress,
    ) -> None:
        self._max_bad_share = max_bad_share
        self._task, self._folder, self._ray, self._on_progress = task, folder, ray, on_progress
        self._receipts = folder.receipts()
        self._total = sum(self._receipts.values(), Counts())

    def finish(self) -> Summary:
        """Embed the missing shards, complete the output folder and return the counts."""
        self._require_strict()
        shards_before, tokens_before = len(self._receipts), self._total.tokens
        start = time.perf_counter()
        self._require_good_share()
        self._report(0, 0)
        if missing := [shard for shard in range(len(self._task.plan.starts)) if shard not in self._receipts]:
            self._folder.remove_success()
            for receipt in self._embed(missing):
                self._receipts[receipt.shard] = receipt
                self._total += receipt
                self._require_good_share()
                self._report(0, 0)
        seconds = time.perf_counter() - start
        self._task.source.require_unchanged()
        self._complete([self._receipts[shard] for shard in sorted(self._receipts)])
        return Summary(
            **dataclasses.asdict(self._total),
            shards=len(self._receipts),
            shards_before=shards_before,
            tokens_before=tokens_before,
            seconds=seconds,
        )

    def _embed(self, shards: list[int]) -> Iterator[Receipt]:
        if self._ray is not None:
            yield from run_on_ray(self._task, shards, self._ray)
            return
        with closing(Worker(self._task)) as worker:
            for shard in shards:
                yield worker.run(shard, self._report)

    def _require_strict(self) -> None:
        bad = next(self._folder.bad_rows(self._receipts.values()), None)
        if self._task.strict and bad is not None:
            raise InputError(
                f"an earlier run of this job found a bad row: {bad}. Fix the row, or run without --strict"
            )

    def _require_good_share(self) -> None:
        """Stop as soon as there are more bad rows than the maximum share of all rows."""
        bad, total = self._total.bad_rows, self._task.plan.rows
        if bad <= self._max_bad_share * total:
            return
        self._folder.remove_success()
        receipts = [self._receipts[shard] for shard in sorted(self._receipts)]
        self._folder.write_errors(receipts)
        first = next(self._folder.bad_rows(receipts))
        raise too_many_bad(
            bad,
            f"{total:,} rows",
            self._max_bad_share,
            first,
            "Check _errors.jsonl, and fix the input, or continue with a higher --max-bad-share",
        )

    def _report(self, rows: int, tokens: int) -> None:
        """Report the progress, including the finished part of the current shard."""
        done = self._total.rows + self._total.bad_rows
        self._on_progress(Progress(done + rows, self._task.plan.rows, self._total.tokens + tokens))

    def _complete(self, receipts: list[Receipt]) -> None:
        self._folder.write_errors(receipts)
        rows = [receipt.rows for receipt in receipts]
        if SUCCESS not in self._folder.sizes:
            output_format = FORMATS[self._task.job.options.output_format]
            output_format.publish(Path(self._folder.location.path), rows)
        counts = dataclasses.asdict(self._total)
        del counts["repeated"]  # all other counts are the same with and without `dedupe`
        names = [self._folder.names(shard)[0].rpartition("/")[2] for shard in range(len(rows))]
        self._folder.write_json(SUCCESS, {**counts, "shards": dict(zip(names, rows, strict=True))})
