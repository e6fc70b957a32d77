"""Batch size and parallel batches, measured on this machine and remembered for it.

The best values depend on caches and cores, not on texts: `tune` runs random tokens through the real graph for
some seconds and stores what it finds in the user's cache folder. Opening an artifact looks it up; nothing is
measured unless `tune` is called.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from koe5_onnx.artifact import WEIGHTS, Artifact
from koe5_onnx.engine.cuda.provider import require_gpu
from koe5_onnx.engine.graphs import choose
from koe5_onnx.engine.machine import cpu_features, cpu_name, usable_cores
from koe5_onnx.engine.pipeline import run_batches
from koe5_onnx.engine.providers import import_onnxruntime
from koe5_onnx.engine.session import Session
from koe5_onnx.errors import ProviderError
from koe5_onnx.files import cache_folder, cache_json
from koe5_onnx.options import EngineOptions
from koe5_onnx.text.tokenizer import Tokens, random_tokens

DEFAULT_BATCH_TOKENS = 512
"""On CPUs larger batches fall out of the cache; measured in benchmarks/NOTES.md."""

DEFAULT_GPU_BATCH_TOKENS = 32768
"""On an H200, 16,384 is 5 % slower and 65,536 is 1 % faster; see benchmarks/GPU.md."""

_BUDGETS = (256, 512, 1024, 2048, 4096)
_GPU_BUDGETS = (16384, 32768, 65536, 131072)
_GPU_PARALLEL_BATCHES = (1, 2)
"""With two, one batch is laid out and copied while the other runs."""
_GPU_SAMPLES = 100
"""Times the sample below: 300,000 tokens, several of the largest batches."""
_WORTHWHILE = 1.02
"""A larger batch, or more parallel batches, must be this much faster than the smaller to be preferred."""
_SAMPLE_LENGTHS = (512, 512, 300, 200, 120, *(60, 45, 32, 24) * 10)
"""Pages and sentences, about half of the tokens each."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Arrangement:
    """Parallel batches, threads per batch and tokens per batch."""

    parallel_batches: int
    threads: int
    max_batch_tokens: int


@dataclass(frozen=True)
class Profile:
    """What was fastest on one machine for one graph, and how fast each arrangement was."""

    best: Arrangement
    """For throughput."""
    lowest_latency: Arrangement
    """The best with one batch at a time, so that a single text has all cores."""
    tokens_per_second: Sequence[tuple[Arrangement, float]]
    """Medians, in the order of measuring."""


def tune(
    artifact: Artifact,
    options: EngineOptions,
    *,
    rounds: int = 3,
    report: Report = lambda _line: None,
) -> Profile:
    """Measure arrangements on this machine and remember the best.

    Takes `rounds` times about twenty runs over 3,000 tokens, on CUDA eight over 300,000. Rounds interleave
    all arrangements, so that a busy moment of the machine hits all alike. One that cannot run on a GPU, or
    does not fit into its memory, is left out.

    Args:
        artifact: The opened artifact.
        options: How to open it. Of `parallel_batches`, `threads` and `max_batch_tokens`, those that are None
            are varied, the others stay fixed.
        rounds: Measurements of each arrangement, at least 1.
        report: Told each arrangement's median.

    Raises:
        ProviderError: The device or the graph cannot be used, or no arrangement can.
    """
    on_gpu = options.gpu is not None
    lengths = np.tile(
        np.minimum(_SAMPLE_LENGTHS, artifact.manifest.contract.max_tokens), _GPU_SAMPLES if on_gpu else 1
    )
    tokens = random_tokens(artifact.manifest.architecture.vocabulary, lengths)
    candidates = _gpu_arrangements() if on_gpu else _arrangements()
    found: dict[Arrangement, list[float]] = {_with_fixed(one, options): [] for one in candidates}
    with _Sessions(artifact, options) as sessions:
        for _ in range(rounds):
            for arrangement in list(found):
                try:
                    found[arrangement].append(_rate(artifact, sessions.of(arrangement), tokens, arrangement))
                except ProviderError as error:
                    report(f"{describe(arrangement)}: {error}")
                    del found[arrangement]
                    if not found:
                        raise
    medians = [(arrangement, statistics.median(rates)) for arrangement, rates in found.items()]
    for arrangement, rate in medians:
        report(f"{describe(arrangement)}: {rate:,.0f} tokens/s")
    alone = [one for one in medians if one[0].parallel_batches == 1]
    profile = Profile(_best(medians), _best(alone or medians), medians)
    cache_json(_note_of(artifact, options), dataclasses.asdict(profile))
    return profile


def remembered(artifact: Artifact, options: EngineOptions) -> Profile | None:
    """Return what `tune` found for this artifact on this machine; None if it has not run, or cannot."""
    try:
        found = json.loads(_note_of(artifact, options).read_text(encoding="utf-8"))
        return Profile(
            Arrangement(**found["best"]),
            Arrangement(**found["lowest_latency"]),
            [(Arrangement(**one), float(rate)) for one, rate in found["tokens_per_second"]],
        )
    except (OSError, ValueError, KeyError, TypeError, ProviderError):
        return None


def arrange(artifact: Artifact, options: EngineOptions) -> Arrangement:
    """Return what the options give, and for the rest what `tune` found, else their documented defaults."""
    on_gpu, parallel_batches = options.gpu is not None, options.parallel_batches
    needed = None in (parallel_batches, options.max_batch_tokens) or on_gpu
    profile = remembered(artifact, options) if needed else None
    cores = usable_cores().count
    found = Arrangement(1, cores, DEFAULT_GPU_BATCH_TOKENS if on_gpu else DEFAULT_BATCH_TOKENS)
    if profile is not None:
        found = profile.lowest_latency if parallel_batches == 1 else profile.best
    parallel_batches = parallel_batches or found.parallel_batches
    return Arrangement(
        parallel_batches,
        options.threads or max(1, cores // parallel_batches),
        options.max_batch_tokens or found.max_batch_tokens,
    )


def describe(arrangement: Arrangement) -> str:
    """Describe an arrangement in words."""
    return (
        f"{arrangement.parallel_batches} x {arrangement.threads} threads, "
        f"batches of {arrangement.max_batch_tokens:,} tokens"
    )


def _with_fixed(arrangement: Arrangement, options: EngineOptions) -> Arrangement:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Arrangement)}
    return replace(arrangement, **{name: value for name, value in given.items() if value is not None})


class _Sessions(AbstractContextManager["_Sessions"]):
    """Sessions opened as arrangements need them, each once."""

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self._artifact, self._options = artifact, options
        self._opened: dict[int, Session] = {}

    def of(self, arrangement: Arrangement) -> Session:
        threads = arrangement.threads
        if threads not in self._opened:
            self._opened[threads] = Session(self._artifact, replace(self._options, threads=threads))
        return self._opened[threads]

    def __exit__(self, *_error: object) -> None:
        for session in self._opened.values():
            session.close()


def _thread_counts() -> list[int]:
    """All cores to one batch, one core to each, and on many cores something between."""
    cores = usable_cores().count
    return sorted({cores, 1, *(count for count in (4, 8) if count < cores)}, reverse=True)


def _arrangements() -> Iterator[Arrangement]:
    cores = usable_cores().count
    for count, budget in itertools.product(_thread_counts(), _BUDGETS):
        yield Arrangement(max(1, cores // count), count, budget)


def _gpu_arrangements() -> Iterator[Arrangement]:
    """Yield arrangements of one graph, as repeated shapes hide the padded graph's cost of new ones."""
    for parallel_batches, budget in itertools.product(_GPU_PARALLEL_BATCHES, _GPU_BUDGETS):
        yield Arrangement(parallel_batches, usable_cores().count, budget)


def _rate(artifact: Artifact, session: Session, tokens: Tokens, arrangement: Arrangement) -> float:
    out = np.empty((len(tokens.ids), artifact.manifest.contract.dim), dtype=np.float32)
    start = time.perf_counter()
    run_batches(
        session,
        tokens,
        out,
        max_batch_tokens=arrangement.max_batch_tokens,
        parallel_batches=arrangement.parallel_batches,
        halve=False,
    )
    return int(tokens.lengths.sum()) / (time.perf_counter() - start)


def _best(medians: Sequence[tuple[Arrangement, float]]) -> Arrangement:
    """Return the fastest; of those about as fast, the one with fewer parallel batches, then smaller ones."""
    fastest = max(rate for _, rate in medians)
    good = [arrangement for arrangement, rate in medians if rate * _WORTHWHILE >= fastest]
    return min(good, key=lambda one: (one.parallel_batches, one.max_batch_tokens))


def _note_of(artifact: Artifact, options: EngineOptions) -> Path:
    graph = choose(artifact, options)
    what = [
        artifact.manifest.files[WEIGHTS].sha256,
        graph.file.name,
        options.device,
        *([] if options.gpu is None else [str(require_gpu(options.gpu)), options.graph]),
        cpu_name(),
        *cpu_features(),
        str(usable_cores().count),
        str(import_onnxruntime().__version__),
    ]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()
    return cache_folder() / "profiles" / f"{name[:32]}.json"
