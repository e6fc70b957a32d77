"""Publish an artifact: it gets its name only after it was written completely and passed its gate.

Everything is written to OUT.partial. The modules that write graphs (export.py, optimum.py, import_onnx.py)
pass `publish` a function that does so; the rest is the same for all of them.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import ContractOptions
from koe5_export.fused import OPERATORS
from koe5_export.precision import Precision
from koe5_export.progress import Progress, silent
from koe5_export.settings import write_tokenizer
from koe5_export.texts import PROBES
from koe5_export.verify import certify, expect
from koe5_onnx import (
    Artifact,
    Certificate,
    CheckpointError,
    Contract,
    InputError,
    Manifest,
    Source,
    Tokenizer,
)
from koe5_onnx.artifact import (
    FORMAT_VERSION,
    GRAPH,
    MANIFEST,
    PACKED_GRAPHS,
    TOKENIZER,
    WEIGHTS,
    File,
    describe_file,
)

Announce = Callable[[Certificate], None]
"""Called with a certificate that passed the gate, before its artifact is published."""
Write = Callable[[Path, Path, Progress], Mapping[str, Any]]
"""Writes the graph and its weights to the two files given and returns the recipe for the manifest.

The artifact's tokenizer.json is there already, in the same folder."""

_FILES = (GRAPH, *PACKED_GRAPHS, WEIGHTS, TOKENIZER)
_ROOM_FACTOR = 1.1


def unannounced(certificate: Certificate) -> None:
    """Announce a certificate to nobody."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions(ContractOptions):
    """What the caller of an export or an import may choose."""

    verification: Sequence[str] = ()
    """Texts to measure on in addition to the built-in ones."""
    gate: Mapping[str, float] = field(default_factory=dict)
    """Bounds stricter than the precision's own, by their names in `Gate`."""
    force: bool = False
    """Replace an existing artifact, once the new one has passed its gate."""
    announce: Announce = unannounced
    """Called with each certificate before the artifact is published."""


@dataclass(frozen=True)
class Plan:
    """What is to be published."""

    checkpoint: Checkpoint
    """What the artifact is measured against."""
    contract: Contract
    precision: Precision
    options: PublishOptions


def publish(plan: Plan, write: Write, out: Path, report: Progress = silent) -> Artifact:
    """Write an artifact, measure it against PyTorch, and give it the name `out`.

    Raises:
        InputError: `out` exists (and not `force`), a bound is out of range, or the disk has no room.
        CheckpointError: The tokenizer does not fit the weights.
        FidelityError: The artifact misses its gate; nothing is left behind.
        MissingDependencyError: torch or transformers is not installed.
    """
    options = plan.options
    gate = plan.precision.gate.tightened(options.gate)
    _require_tokenizer_fits(plan.checkpoint, plan.contract)
    with _named_when_done(out, options.force) as folder:
        _require_room(folder, plan)
        write_tokenizer(plan.checkpoint.folder, folder / TOKENIZER)
        expected = expect(plan.checkpoint, plan.contract, folder / TOKENIZER, options.verification, report)
        recipe = write(folder / GRAPH, folder / WEIGHTS, report)
        manifest = _manifest(plan, folder, recipe, report)
        certificate = certify(Artifact(folder, manifest), expected, gate, report=report)
        options.announce(certificate)
        manifest = replace(manifest, certificate=certificate)
        if set(PACKED_GRAPHS) & set(manifest.files):
            packed = certify(Artifact(folder, manifest), expected, gate, "packed", report)
            options.announce(packed)
            manifest = replace(manifest, fused_certificate=packed)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Artifact(out, manifest)


def _manifest(plan: Plan, folder: Path, recipe: Mapping[str, Any], report: Progress) -> Manifest:
    """Return the manifest of the files in `folder`, without a certificate."""
    source, files = _hashed(plan.checkpoint, [folder / name for name in _FILES], report)
    return Manifest(
        format_version=FORMAT_VERSION,
        source=source,
        architecture=plan.checkpoint.config.architecture(plan.checkpoint.parameters),
        precision=plan.precision.name,
        recipe=recipe,
        target=plan.precision.target,
        contract=plan.contract,
        files=files,
        certificate=None,
        tokenizer_probes=_probes(folder / TOKENIZER, plan.contract),
        fused_operators=OPERATORS,
    )


def _probes(file: Path, contract: Contract) -> dict[str, tuple[int, ...]]:
    """Odd texts and their ids, to be found again by every version of the tokenizer library."""
    tokenizer = Tokenizer(file, contract.max_tokens, contract.unicode_form)
    return {text: tuple(ids.tolist()) for text, ids in zip(PROBES, tokenizer.encode(PROBES).ids, strict=True)}


def _hashed(
    checkpoint: Checkpoint, paths: Sequence[Path], report: Progress
) -> tuple[Source, dict[str, File]]:
    """Hash the checkpoint's weights and those of the artifact's files that exist."""
    there = [path for path in paths if path.exists()]
    before = checkpoint.weight_bytes
    total = before + sum(path.stat().st_size for path in there)
    report("hash", 0, total)
    source = checkpoint.source(lambda done: report("hash", done, total))
    files = {}
    for path in there:
        files[path.name] = describe_file(path)
        before += files[path.name].bytes
        report("hash", before, total)
    return source, files


def _require_tokenizer_fits(checkpoint: Checkpoint, contract: Contract) -> None:
    found = Tokenizer(checkpoint.tokenizer, contract.max_tokens).vocabulary
    if found > checkpoint.config.vocabulary:
        raise CheckpointError(
            f"{checkpoint.tokenizer} has {found} entries, the word embeddings have "
            f"{checkpoint.config.vocabulary}: tokenizer and weights do not belong together"
        )


def _require_room(folder: Path, plan: Plan) -> None:
    table = plan.checkpoint.config.vocabulary * plan.checkpoint.config.hidden
    linears = plan.checkpoint.parameters - table
    precision = plan.precision
    needed = int(_ROOM_FACTOR * (table * precision.table_bytes + linears * precision.weight_bytes))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder.parent} has {free / 1e6:.0f} MB free, the artifact needs {needed / 1e6:.0f} MB: "
            "free some, or choose another folder"
        )


@contextmanager
def _named_when_done(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write into, renamed to `out` when the block ends well and removed when it does not."""
    if out.exists() and not force:
        raise InputError(f"{out} exists: give a new folder, or --force to replace it")
    if out.exists() and not (out / MANIFEST).is_file():
        raise InputError(f"{out} exists and is no artifact: --force replaces artifacts only")
    partial = out.with_name(out.name + ".partial")
    _remove_leftover(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftover(partial: Path) -> None:
    """Remove what a killed export left, and nothing else."""
    if not partial.exists():
        return
    names = {path.name for path in partial.iterdir()} if partial.is_dir() else {partial.name}
    if foreign := names - {*_FILES, MANIFEST}:
        raise InputError(
            f"{partial} holds {', '.join(sorted(foreign))}: an export would write there; move it"
        )
    shutil.rmtree(partial)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; an artifact that has this name keeps it if that fails."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f"{out.name}.{secrets.token_hex(8)}.old")
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)
