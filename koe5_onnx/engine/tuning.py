"""Batch size and workers, measured on this machine and remembered for it.

What is best depends on caches and cores, not on texts: `tune` runs random tokens through the real graph for
some seconds and keeps what it finds under the user's cache folder. Opening an artifact looks it up; nothing
is measured unasked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from koe5_onnx.artifact import WEIGHTS, Artifact
from koe5_onnx.engine.cuda.provider import require_gpu
from koe5_onnx.engine.graphs import Kernels, choose
from koe5_onnx.engine.machine import cpu_features, cpu_name, usable_cores
from koe5_onnx.engine.pipeline import run_batches
from koe5_onnx.engine.providers import CUDA, import_onnxruntime, parse_device
from koe5_onnx.engine.session import Session
from koe5_onnx.errors import ProviderError
from koe5_onnx.files import atomic_path, cache_folder
from koe5_onnx.text.tokenizer import Tokens, random_tokens

DEFAULT_BATCH_TOKENS = 512
"""On CPUs larger batches fall out of the cache; measured in benchmarks/NOTES.md."""

DEFAULT_GPU_BATCH_TOKENS = 32768
"""On an H200, 16,384 is 5 % slower and 65,536 is 1 % faster; see benchmarks/GPU.md."""

_BUDGETS = (256, 512, 1024, 2048, 4096)
_GPU_BUDGETS = (16384, 32768, 65536, 131072)
_GPU_WORKERS = (1, 2)
"""With two, one lays out and copies a batch while the other's runs."""
_GPU_SAMPLES = 100
"""Times the sample below: 300,000 tokens, several of the largest batches."""
_WORTHWHILE = 1.02
"""A larger batch, or more workers, must be this much faster than the smaller to be preferred."""
_SAMPLE_LENGTHS = (512, 512, 300, 200, 120, *(60, 45, 32, 24) * 10)
"""Pages and sentences, about half of the tokens each."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Arrangement:
    """Workers, the threads of each and the tokens of a batch."""

    workers: int
    threads: int
    max_batch_tokens: int


@dataclass(frozen=True)
class Profile:
    """What was fastest on one machine for one graph, and how fast each arrangement was."""

    best: Arrangement
    """For throughput."""
    lowest_latency: Arrangement
    """The best with one worker, so that a single text has all cores."""
    tokens_per_second: Sequence[tuple[Arrangement, float]]
    """Medians, in the order of measuring."""


def tune(
    artifact: Artifact,
    device: str = "cpu",
    kernels: Kernels = "auto",
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
        device: "cpu", "cuda" or "cuda:N".
        kernels: Which graph.
        rounds: Measurements of each arrangement, at least 1.
        report: Told each arrangement's median.

    Raises:
        ProviderError: The device or the graph cannot be used, or no arrangement can.
    """
    on_gpu = _is_gpu(device)
    lengths = np.tile(
        np.minimum(_SAMPLE_LENGTHS, artifact.manifest.contract.max_tokens), _GPU_SAMPLES if on_gpu else 1
    )
    tokens = random_tokens(artifact.manifest.architecture.vocabulary, lengths)
    candidates = list(_gpu_arrangements() if on_gpu else _arrangements())
    found: dict[Arrangement, list[float]] = {one: [] for one in candidates}
    with _Sessions(artifact, device, kernels) as sessions:
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
    alone = [one for one in medians if one[0].workers == 1]
    profile = Profile(_best(medians), _best(alone), medians)
    _remember(_note_of(artifact, device, kernels), profile)
    return profile


def remembered(artifact: Artifact, device: str, kernels: Kernels) -> Profile | None:
    """What `tune` found for this artifact on this machine; None where it has not run, or cannot."""
    try:
        found = json.loads(_note_of(artifact, device, kernels).read_text(encoding="utf-8"))
        return Profile(
            Arrangement(**found["best"]),
            Arrangement(**found["lowest_latency"]),
            [(Arrangement(**one), float(rate)) for one, rate in found["tokens_per_second"]],
        )
    except (OSError, ValueError, KeyError, TypeError, ProviderError):
        return None


def arrange(
    artifact: Artifact,
    device: str,
    kernels: Kernels,
    workers: int | None,
    threads: int | None,
    max_batch_tokens: int | None,
) -> Arrangement:
    """What is given, and for the rest what `tune` found, else 1 worker, all cores, 512 tokens (32,768)."""
    on_gpu = _is_gpu(device)
    needed = None in (workers, max_batch_tokens) or on_gpu
    profile = remembered(artifact, device, kernels) if needed else None
    cores = usable_cores().count
    found = Arrangement(1, cores, DEFAULT_GPU_BATCH_TOKENS if on_gpu else DEFAULT_BATCH_TOKENS)
    if profile is not None:
        found = profile.lowest_latency if workers == 1 else profile.best
    workers = workers or found.workers
    return Arrangement(
        workers,
        max(1, cores // workers) if threads is None else threads,
        found.max_batch_tokens if max_batch_tokens is None else max_batch_tokens,
    )


def describe(arrangement: Arrangement) -> str:
    """An arrangement in words."""
    return (
        f"{arrangement.workers} x {arrangement.threads} threads, "
        f"batches of {arrangement.max_batch_tokens:,} tokens"
    )


def _is_gpu(device: str) -> bool:
    return parse_device(device)[0] == CUDA


class _Sessions(AbstractContextManager["_Sessions"]):
    """Sessions opened as arrangements need them, each once."""

    def __init__(self, artifact: Artifact, device: str, kernels: Kernels) -> None:
        self._artifact, self._device, self._kernels = artifact, device, kernels
        self._opened: dict[int, Session] = {}

    def of(self, arrangement: Arrangement) -> Session:
        threads = arrangement.threads
        if threads not in self._opened:
            self._opened[threads] = Session(self._artifact, self._device, threads, self._kernels)
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
    for workers, budget in itertools.product(_GPU_WORKERS, _GPU_BUDGETS):
        yield Arrangement(workers, usable_cores().count, budget)


def _rate(artifact: Artifact, session: Session, tokens: Tokens, arrangement: Arrangement) -> float:
    out = np.empty((len(tokens.ids), artifact.manifest.contract.dim), dtype=np.float32)
    start = time.perf_counter()
    run_batches(
        session,
        tokens,
        out,
        max_batch_tokens=arrangement.max_batch_tokens,
        parallel_batches=arrangement.workers,
        halve=False,
    )
    return int(tokens.lengths.sum()) / (time.perf_counter() - start)


def _best(medians: Sequence[tuple[Arrangement, float]]) -> Arrangement:
    """The fastest; of those about as fast, the one with fewer workers, then smaller batches."""
    fastest = max(rate for _, rate in medians)
    good = [arrangement for arrangement, rate in medians if rate * _WORTHWHILE >= fastest]
    return min(good, key=lambda one: (one.workers, one.max_batch_tokens))


def _note_of(artifact: Artifact, device: str, kernels: Kernels) -> Path:
    graph = choose(artifact, device, kernels)
    what = [
        artifact.manifest.files[WEIGHTS].sha256,
        graph.file.name,
        device,
        *([str(require_gpu(parse_device(device)[1])), kernels] if _is_gpu(device) else []),
        cpu_name(),
        *cpu_features(),
        str(usable_cores().count),
        str(import_onnxruntime().__version__),
    ]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()
    return cache_folder() / "profiles" / f"{name[:32]}.json"


def _remember(note: Path, profile: Profile) -> None:
    with suppress(OSError):  # a read-only home: the caller still has the profile
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(profile), indent=1), encoding="utf-8")
