"""Contenders ready to be measured: files made, process started, embedding checked, batch size chosen."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders.agreement import compare, reference_of
from benchmarks.contenders.process import ContenderError, Worker
from benchmarks.contenders.registry import Contender
from benchmarks.speed.arguments import Setting
from benchmarks.speed.results import write_json
from benchmarks.speed.texts import Corpus
from koe5_onnx import InputError
from koe5_onnx.engine.machine import cpu_name
from koe5_onnx.files import read_json

CHECKED_TEXTS = 4
"""Of each corpus: embedded in one call, so that padding and order show."""
_LEAST_FREE_BYTES = 1 << 30
_SWEEP_TOKENS = 2048


@dataclass
class Opened:
    """One contender, alive."""

    contender: Contender
    worker: Worker
    files: Path
    versions: dict[str, str]
    batches: list[int]
    """Sizes worth trying."""
    about: str
    cosine_min: float
    batch: dict[str, int] = field(default_factory=dict)
    """Corpus to the size of its batches; 0 is the library's own."""

    def describe(self) -> dict[str, Any]:
        """As plain data."""
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
    """Name to what is wrong: these are not timed."""


@contextmanager
def open_field(setting: Setting) -> Iterator[Field]:
    """Make, start and check the contenders one by one; all stay alive until the end."""
    files = {one.name: setting.store.files_of(one) for one in setting.contenders}
    texts = list(dict.fromkeys(text for one in setting.corpora for text in one.texts[:CHECKED_TEXTS]))
    reference = reference_of(setting.store.checkpoint, texts, setting.store.own / "reference")
    field_ = Field({}, {})
    with ExitStack() as stack:
        for contender in setting.contenders:
            _require_memory(contender)
            worker = stack.enter_context(
                Worker(contender, files[contender.name], setting.store.checkpoint, setting.threads)
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
    """Take each corpus' best batch size: what an earlier sweep on such a machine found, else a sweep.

    Args:
        opened: The contender, whose `batch` is filled in.
        corpora: For each of them.
        folder: Where sweeps are remembered.
        threads: Of the library.
        machine: What the best size depends on; None is the CPU's name.
        tokens: Of the sample that is swept over.
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
    """The fastest of the sizes worth trying on a sample of a corpus, the better of two passes of each."""
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
    """The first texts of a corpus that have so many tokens together."""
    found: list[str] = []
    for text, length in zip(corpus.texts, corpus.lengths, strict=True):
        found.append(text)
        tokens -= length
        if tokens <= 0:
            break
    return found


def _require_memory(contender: Contender) -> None:
    """Stop before the kernel does.

    Raises:
        InputError: Too little memory is left.
    """
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            if free < _LEAST_FREE_BYTES:
                raise InputError(
                    f"{free >> 20} MiB are left before {contender.name} opens: name fewer with --contender"
                )
