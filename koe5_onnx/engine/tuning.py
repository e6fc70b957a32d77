"""Find the fastest graph, batch size and number of parallel batches on this machine.

The best values depend on caches and cores, not on texts, so `tune` measures with random tokens. For KoE5 in
int8 on 2 cores, this takes two to three minutes. The result is stored in the user's cache folder. Opening an
artifact reads the result, but never measures.
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

from koe5_onnx.artifact import Artifact
from koe5_onnx.engine.cuda.provider import require_gpu
from koe5_onnx.engine.graphs import Graph, Kind, choose, kernels_level, kernels_version
from koe5_onnx.engine.machine import cpu_features, cpu_name, usable_cores
from koe5_onnx.engine.pipeline import run_batches
from koe5_onnx.engine.providers import import_onnxruntime
from koe5_onnx.engine.session import Session
from koe5_onnx.errors import ProviderError
from koe5_onnx.files import cache_folder, cache_json
from koe5_onnx.options import EngineOptions
from koe5_onnx.text.tokenizer import Tokens, random_tokens

DEFAULT_BATCH_TOKENS = 512
"""Default maximum of tokens per batch on CPUs; see benchmarks/decisions/cpu-throughput.md."""

DEFAULT_AMX_BATCH_TOKENS = 2048
"""Default for the fused kernels with AMX, which read the weights less often with larger batches. It was 9 to
12 % faster than 512 with two threads on an Intel CPU; see benchmarks/decisions/cpu-throughput.md."""

DEFAULT_GPU_BATCH_TOKENS = 65536
"""Default maximum of tokens per batch on GPUs. It was 5 % faster than 32,768 on an H100 and 1 % faster on an
H200; see benchmarks/decisions/gpu.md."""

DEFAULT_GPU_QUEUE_TOKENS = 32768
"""The default of an AsyncEmbedder and the server on GPUs, where a query waits for the running batch."""

_BUDGETS = (256, 512, 1024, 2048, 4096)
_GPU_BUDGETS = (16384, 32768, 65536, 131072)
_GPU_PARALLEL_BATCHES = (1, 2)
"""With two parallel batches, one is prepared and copied while the other one runs."""
_GPU_SAMPLES = 100
"""Repetitions of the sample texts on GPUs. Their 325,400 tokens fill more than two of the largest batches."""
_WORTHWHILE = 1.02
"""Minimum speedup for preferring larger batches or more parallel batches."""
_SAMPLE_LENGTHS = (512, 512, 300, 200, 120, *(60, 45, 32, 24) * 10)
"""Token lengths of the sample texts. About half of the tokens are in long passages, half in sentences."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Arrangement:
    """Parallel batches, threads per batch, maximum tokens per batch, and the graph."""

    parallel_batches: int
    threads: int
    max_batch_tokens: int
    graph: Kind


@dataclass(frozen=True)
class Profile:
    """Measurements of an artifact on one machine."""

    best: Arrangement
    """Arrangement for the highest throughput, chosen by `_best`."""
    one_at_a_time: Arrangement
    """Arrangement chosen by `_best` among those with the graph of `best` and one batch at a time; `best` if
    none of these was measured."""
    tokens_per_second: Sequence[tuple[Arrangement, float]]
    """Each measured arrangement with its median speed over all rounds."""


def tune(
    artifact: Artifact,
    options: EngineOptions,
    *,
    rounds: int = 3,
    report: Report = lambda _line: None,
) -> Profile:
    """Measure arrangements on this machine and store the results.

    There are up to 24 arrangements on a CPU, and up to 8 on a GPU. Every round measures all arrangements, so
    that a temporary load on the machine does not affect only one of them. Arrangements that cannot run, or do
    not fit into GPU memory, are skipped. If `options.graph` is "auto" and the packed graph can run on the
    CPU, the padded graph is measured too.

    Args:
        artifact: Opened artifact.
        options: Engine options. `parallel_batches`, `threads` and `max_batch_tokens` vary if they are None;
            otherwise they apply to all arrangements.
        rounds: Number of rounds, at least 1.
        report: Called with a line of text for each arrangement.

    Raises:
        ProviderError: The device or the graph cannot be used, or no arrangement can run.
    """
    on_gpu = options.gpu is not None
    tokens = _tokens(artifact, _SAMPLE_LENGTHS * (_GPU_SAMPLES if on_gpu else 1))
    chosen = choose(artifact, options).kind
    candidates = (_gpu_arrangements if on_gpu else _arrangements)(chosen)
    if not on_gpu and options.graph == "auto":
        candidates = itertools.chain(candidates, _padded_arrangements())
    found: dict[Arrangement, list[float]] = {_with_fixed(one, options): [] for one in candidates}
    with _OneSession(artifact, options) as session:
        for _ in range(rounds):
            for arrangement in list(found):
                try:
                    found[arrangement].append(_rate(artifact, session.of(arrangement), tokens, arrangement))
                except ProviderError as error:
                    report(f"{describe(arrangement)}: {error}")
                    del found[arrangement]
                    if not found:
                        raise
    medians = [(arrangement, statistics.median(rates)) for arrangement, rates in found.items()]
    for arrangement, rate in medians:
        report(f"{describe(arrangement)}: {rate:,.0f} tokens/s")
    # If the packed graph can run, no result is stored for graph="padded", because few of its arrangements are
    # measured.
    if of_chosen := [one for one in medians if one[0].graph == chosen]:
        _store(_profile(of_chosen), artifact, replace(options, graph=chosen))
    profile = _profile(medians)
    _store(profile, artifact, options)
    return profile


def remembered(artifact: Artifact, options: EngineOptions) -> Profile | None:
    """Return the stored result of `tune` for this artifact on this machine; None if there is none."""
    try:
        found = json.loads(_profile_file(artifact, options).read_text(encoding="utf-8"))
        return Profile(
            Arrangement(**found["best"]),
            Arrangement(**found["one_at_a_time"]),
            [(Arrangement(**one), float(rate)) for one, rate in found["tokens_per_second"]],
        )
    except (OSError, ValueError, KeyError, TypeError, ProviderError):
        return None


def arrange(artifact: Artifact, options: EngineOptions) -> tuple[Arrangement, int]:
    """Fill in options that are None.

    They come from the stored result of `tune` or, if there is none, from defaults. If `parallel_batches` is
    not the stored number, `threads` is the number of usable cores divided by `parallel_batches`.

    Returns:
        The arrangement for calls of an Embedder, and the maximum tokens per batch for an AsyncEmbedder and
        the server. Unless it is an option, the latter is at most the default, which is smaller on GPUs and on
        CPUs with AMX, because a query has to wait until the running batch has finished.
    """
    on_gpu, parallel_batches = options.gpu is not None, options.parallel_batches
    cores = usable_cores().count
    graph = choose(artifact, options)
    larger, queued = _default_batch_tokens(graph, on_gpu=on_gpu)
    if (profile := _profile_of(artifact, options)) is not None:
        found = profile.one_at_a_time if parallel_batches == 1 else profile.best
        queued = min(queued, found.max_batch_tokens)
    else:
        found = Arrangement(1, cores, larger, graph.kind)
    if parallel_batches is not None and parallel_batches != found.parallel_batches:
        found = replace(found, threads=max(1, cores // parallel_batches))
    return _with_fixed(found, options), options.max_batch_tokens or queued


def _profile_of(artifact: Artifact, options: EngineOptions) -> Profile | None:
    """Return the stored result, or for graph="padded" that of "auto" if it is the padded graph."""
    profile = remembered(artifact, options)
    if profile is not None or options.graph != "padded":
        return profile
    profile = remembered(artifact, replace(options, graph="auto"))
    return profile if profile is not None and profile.best.graph == "padded" else None


def choose_tuned(artifact: Artifact, options: EngineOptions) -> Graph:
    """Select the graph like `graphs.choose`, or the padded graph if `tune` measured that it is faster.

    Raises:
        ProviderError: `options` require the packed graph, and it cannot run.
    """
    graph = choose(artifact, options)
    if graph.is_packed and (profile := remembered(artifact, options)) and profile.best.graph == "padded":
        return Graph(artifact.graph, None, "the padded graph, which is faster here (measured by tune)")
    return graph


def _default_batch_tokens(graph: Graph, *, on_gpu: bool) -> tuple[int, int]:
    """Return the maximum tokens per batch for calls, and for an AsyncEmbedder and the server."""
    if on_gpu:
        return DEFAULT_GPU_BATCH_TOKENS, DEFAULT_GPU_QUEUE_TOKENS
    uses_amx = graph.layout == "packed_cpu" and kernels_level() == "amx"
    return DEFAULT_AMX_BATCH_TOKENS if uses_amx else DEFAULT_BATCH_TOKENS, DEFAULT_BATCH_TOKENS


def describe(arrangement: Arrangement) -> str:
    """Format an arrangement for display."""
    return (
        f"{arrangement.graph} graph, {arrangement.parallel_batches} x {arrangement.threads} threads, "
        f"batches of {arrangement.max_batch_tokens:,} tokens"
    )


def _with_fixed(arrangement: Arrangement, options: EngineOptions) -> Arrangement:
    names = ("parallel_batches", "threads", "max_batch_tokens")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return replace(arrangement, **given)


class _OneSession(AbstractContextManager["_OneSession"]):
    """Keeps only the latest session open, so that an artifact that fits into memory can be tuned."""

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self._artifact, self._options = artifact, options
        self._session: Session | None = None

    def of(self, arrangement: Arrangement) -> Session:
        options = replace(self._options, threads=arrangement.threads, graph=arrangement.graph)
        if self._session is None or options != self._options:
            self.__exit__()
            self._session, self._options = Session(self._artifact, options), options
            # The first run allocates memory.
            _run(self._artifact, self._session, _tokens(self._artifact, _SAMPLE_LENGTHS[:1]), arrangement)
        return self._session

    def __exit__(self, *_error: object) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _thread_counts() -> list[int]:
    """Return the numbers of threads per batch to measure: all cores, 1, and 4 and 8 if below all cores."""
    cores = usable_cores().count
    return sorted({cores, 1, *(count for count in (4, 8) if count < cores)}, reverse=True)


def _arrangements(graph: Kind, budgets: Sequence[int] = _BUDGETS) -> Iterator[Arrangement]:
    cores = usable_cores().count
    for count, budget in itertools.product(_thread_counts(), budgets):
        yield Arrangement(max(1, cores // count), count, budget, graph)


def _padded_arrangements() -> Iterator[Arrangement]:
    # Larger batches do not make the padded graph faster; see benchmarks/decisions/cpu-throughput.md.
    return _arrangements("padded", [DEFAULT_BATCH_TOKENS])


def _gpu_arrangements(graph: Kind) -> Iterator[Arrangement]:
    # All arrangements run the same graph. A comparison of graphs would favor the padded graph: it is slow for
    # new input shapes, which real texts have, but `tune` repeats the same shapes.
    for parallel_batches, budget in itertools.product(_GPU_PARALLEL_BATCHES, _GPU_BUDGETS):
        yield Arrangement(parallel_batches, usable_cores().count, budget, graph)


def _tokens(artifact: Artifact, lengths: Sequence[int]) -> Tokens:
    manifest = artifact.manifest
    return random_tokens(manifest.architecture.vocabulary, np.minimum(lengths, manifest.contract.max_tokens))


def _rate(artifact: Artifact, session: Session, tokens: Tokens, arrangement: Arrangement) -> float:
    start = time.perf_counter()
    _run(artifact, session, tokens, arrangement)
    return int(tokens.lengths.sum()) / (time.perf_counter() - start)


def _run(artifact: Artifact, session: Session, tokens: Tokens, arrangement: Arrangement) -> None:
    out = np.empty((len(tokens.ids), artifact.manifest.contract.dim), dtype=np.float32)
    run_batches(
        session,
        tokens,
        out,
        max_batch_tokens=arrangement.max_batch_tokens,
        parallel_batches=arrangement.parallel_batches,
        halve=False,
    )


def _profile(medians: Sequence[tuple[Arrangement, float]]) -> Profile:
    best = _best(medians)
    alone = [one for one in medians if one[0].parallel_batches == 1 and one[0].graph == best.graph]
    return Profile(best, _best(alone) if alone else best, medians)


def _store(profile: Profile, artifact: Artifact, options: EngineOptions) -> None:
    cache_json(_profile_file(artifact, options), dataclasses.asdict(profile))


def _best(medians: Sequence[tuple[Arrangement, float]]) -> Arrangement:
    """Return the fastest arrangement.

    Within 2 %, prefer the packed graph, then fewer parallel batches, then smaller batches.
    """
    fastest = max(rate for _, rate in medians)
    good = [arrangement for arrangement, rate in medians if rate * _WORTHWHILE >= fastest]
    return min(good, key=lambda one: (one.graph == "padded", one.parallel_batches, one.max_batch_tokens))


def _profile_file(artifact: Artifact, options: EngineOptions) -> Path:
    graph = choose(artifact, options)
    what = [
        artifact.manifest.files[artifact.manifest.weights].sha256,
        graph.file.name,
        options.device,
        options.graph,
        *([] if options.gpu is None else [str(require_gpu(options.gpu))]),
        *([] if graph.library is None else [kernels_version(), kernels_level()]),
        cpu_name(),
        *cpu_features(),
        str(usable_cores().count),
        str(import_onnxruntime().__version__),
    ]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()
    return cache_folder() / "profiles" / f"{name[:32]}.json"
