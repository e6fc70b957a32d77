"""Contenders ready to be measured: files prepared, process started, embeddings checked, batch size chosen."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders.agreement import compare, reference_of
from benchmarks.contenders.process import ContenderError, ContenderProcess
from benchmarks.contenders.registry import Contender
from benchmarks.speed.arguments import Setting
from benchmarks.speed.results import write_json
from benchmarks.speed.texts import Corpus
from koe5_onnx import InputError
from koe5_onnx.engine.machine import cpu_name
from koe5_onnx.files import read_json

CHECKED_TEXTS = 4
"""Number of texts per corpus that are compared with PyTorch. One call embeds all of them, which also checks
padding and order."""
_LEAST_FREE_BYTES = 1 << 30
_SWEEP_TOKENS = 2048


@dataclass
class Opened:
    """A contender with a running process."""

    contender: Contender
    worker: ContenderProcess
    files: Path
    versions: dict[str, str]
    batches: list[int]
    """Batch sizes to try."""
    about: str
    cosine_min: float
    batch: dict[str, int] = field(default_factory=dict)
    """Batch size by corpus; 0 is the default of the engine module."""

    def describe(self) -> dict[str, Any]:
        """Return versions, graph, lowest cosine and batch sizes as JSON-serializable data."""
        return {
            "versions": self.versions,
            "about": self.about,
            "cosine_min": self.cosine_min,
            "batch": self.batch,
        }


@dataclass
class Field:
    """All contenders of a run."""

    opened: dict[str, Opened]
    wrong: dict[str, str]
    """Why a contender's embeddings are wrong, by contender name. These contenders are not timed."""


@contextmanager
def open_field(setting: Setting) -> Iterator[Field]:
    """Prepare all files, then start and check the contenders one by one.

    The processes of contenders with correct embeddings run until the context ends.
    """
    files = {one.name: setting.store.files_of(one) for one in setting.contenders}
    texts = list(dict.fromkeys(text for one in setting.corpora for text in one.texts[:CHECKED_TEXTS]))
    reference = reference_of(setting.store.checkpoint, texts, setting.store.own / "reference")
    field_ = Field({}, {})
    with ExitStack() as stack:
        for contender in setting.contenders:
            _require_memory(contender)
            worker = stack.enter_context(
                ContenderProcess(contender, files[contender.name], setting.store.checkpoint, setting.threads)
            )
            try:
                loaded, opened = worker.ask("load"), worker.ask("open")
                found = compare(worker.embed(texts), reference)
                fault = found.fault(contender)
            except ContenderError as error:
                fault = str(error)
            if fault is not None:
                print(f"{contender.name} is wrong: {fault}", file=sys.stderr)
                field_.wrong[contender.name] = fault
                worker.close()
                continue
            print(f"{contender.name}: cosine {found.cosine_min:.6f} to PyTorch", file=sys.stderr)
            field_.opened[contender.name] = Opened(
                contender,
                worker,
                files[contender.name],
                loaded["versions"],
                list(contender.options.get("batches", loaded["batches"])),
                opened["about"],
                found.cosine_min,
            )
        yield field_


def choose_batches(
    opened: Opened,
    corpora: Sequence[Corpus],
    folder: Path,
    threads: int,
    machine: str | None = None,
    tokens: int = _SWEEP_TOKENS,
) -> None:
    """Choose the fastest batch size for each corpus, by a new sweep or from a saved one.

    Args:
        opened: The contender, whose `batch` is filled in.
        corpora: Corpora to choose batch sizes for.
        folder: Folder in which sweeps are saved. A saved sweep is used again for the same corpus, number of
            threads, machine and versions.
        threads: Number of threads of the library.
        machine: Name of the machine; None uses the CPU's name.
        tokens: Number of tokens in the sample that the sweep embeds.
    """
    file = folder / "batches" / f"{opened.contender.name}.json"
    known = read_json(file, InputError, "delete it") if file.is_file() else {}
    where = f"{threads} threads, {machine or cpu_name()}, {opened.versions}"
    for corpus in corpora:
        key = f"{corpus.name} of {len(corpus.texts)}, {where}"
        if key not in known:
            known[key] = _swept(opened, corpus, tokens)
            write_json(file, known)
        opened.batch[corpus.name] = known[key]


def _swept(opened: Opened, corpus: Corpus, tokens: int) -> int:
    """Time two passes per batch size on a sample of a corpus. Return the batch size of the fastest pass."""
    if not opened.batches:
        return 0
    sample = sample_of(corpus, tokens)
    opened.worker.ask("embed", texts=sample[:2])
    seconds = dict.fromkeys(opened.batches, math.inf)
    for batch in [*opened.batches, *opened.batches]:
        taken = opened.worker.ask("embed", texts=sample, batch=batch)["seconds"]
        seconds[batch] = min(seconds[batch], taken)
    best = min(seconds, key=seconds.__getitem__)
    shown = ", ".join(f"{batch}: {taken:.2f} s" for batch, taken in seconds.items())
    print(f"{opened.contender.name}, {corpus.name}: batch {best} ({shown})", file=sys.stderr)
    return best


def sample_of(corpus: Corpus, tokens: int) -> list[str]:
    """Return the first texts of a corpus that together have at least `tokens` tokens."""
    found: list[str] = []
    for text, length in zip(corpus.texts, corpus.lengths, strict=True):
        found.append(text)
        tokens -= length
        if tokens <= 0:
            break
    return found


def _require_memory(contender: Contender) -> None:
    """Stop before the system runs out of memory.

    Raises:
        InputError: Too little memory is available.
    """
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            if free < _LEAST_FREE_BYTES:
                raise InputError(
                    f"{free >> 20} MiB of memory are available for {contender.name}, expected at least "
                    f"{_LEAST_FREE_BYTES >> 20}. Select fewer contenders with --contender"
                )
