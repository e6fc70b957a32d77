"""Write an artifact to OUT.partial, measure it, and rename it to OUT if it passes its gate.

export.py and import_onnx.py call `write_artifact` with a function that writes the graph.
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
from koe5_export.foreign_settings import FOREIGN_SETTINGS, write_foreign_settings
from koe5_export.precision import Precision
from koe5_export.progress import Progress, silent
from koe5_export.settings import write_tokenizer
from koe5_export.texts import PROBES
from koe5_export.verify import certify, expect, golden_embeddings
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
    GRAPHS,
    MANIFEST,
    PACKED_GRAPHS,
    TOKENIZER,
    File,
    describe_file,
    weights_of,
)
from koe5_onnx.engine.graphs import FUSED_OPERATORS

Announce = Callable[[Certificate], None]
"""Callback that gets a certificate which passed the gate, before the artifact is renamed to `out`."""
Write = Callable[[Path, Progress], Mapping[str, Any]]
"""Function that writes graphs and weights to the artifact folder, and returns the recipe for the manifest.

The artifact's tokenizer.json is already in this folder."""

_NAMES = {
    *(name for graph in GRAPHS.values() for name in (graph, weights_of(graph))),
    *PACKED_GRAPHS,
    *FOREIGN_SETTINGS,
    TOKENIZER,
    MANIFEST,
}
"""All files that an artifact may have."""
_ROOM_FACTOR = 1.1


def unannounced(certificate: Certificate) -> None:
    """Ignore a certificate."""


@dataclass(frozen=True, kw_only=True)
class ArtifactOptions(ContractOptions):
    """Options that exports and imports share."""

    verification: Sequence[str] = ()
    """Texts to measure on in addition to the built-in ones."""
    gate: Mapping[str, float] = field(default_factory=dict)
    """Bounds stricter than those of the precision, by their names in `Gate`."""
    force: bool = False
    """True to replace an existing artifact after the new one has passed its gate."""
    announce: Announce = unannounced
    """Called for each certificate: that of the padded graph and, if there is one, of the packed graph."""


@dataclass(frozen=True)
class ArtifactSpec:
    """Checkpoint, contract, precision and options of an artifact."""

    checkpoint: Checkpoint
    """Checkpoint against which the artifact is measured."""
    contract: Contract
    precision: Precision
    options: ArtifactOptions


def write_artifact(spec: ArtifactSpec, write: Write, out: Path, report: Progress = silent) -> Artifact:
    """Write an artifact, measure it against PyTorch, and rename it to `out`.

    Raises:
        InputError: `out` exists and cannot be replaced, a bound is not valid, or the disk is full.
        CheckpointError: The tokenizer does not match the weights, or sentence-transformers differs from the
            contract.
        FidelityError: The artifact is outside the bounds of its gate; no artifact is written.
        MissingDependencyError: torch, transformers or sentence-transformers is not installed.
    """
    options = spec.options
    gate = spec.precision.gate.tightened(options.gate)
    _require_tokenizer_fits(spec.checkpoint, spec.contract)
    with _named_when_done(out, options.force) as folder:
        _require_room(folder, spec)
        (folder / "onnx").mkdir()
        write_tokenizer(spec.checkpoint.folder, folder / TOKENIZER)
        write_foreign_settings(spec.checkpoint.encoder_folder, spec.contract, spec.precision.name, folder)
        expected = expect(spec.checkpoint, spec.contract, folder / TOKENIZER, options.verification, report)
        recipe = write(folder, report)
        manifest = _manifest(spec, folder, recipe, report)
        certificate = certify(Artifact(folder, manifest), expected, gate, report=report)
        options.announce(certificate)
        manifest = replace(manifest, certificate=certificate)
        if set(PACKED_GRAPHS) & set(manifest.files):
            packed = certify(Artifact(folder, manifest), expected, gate, "packed", report)
            options.announce(packed)
            manifest = replace(manifest, packed_certificate=packed)
        manifest = replace(manifest, selftest=golden_embeddings(Artifact(folder, manifest)))
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Artifact(out, manifest)


def _manifest(spec: ArtifactSpec, folder: Path, recipe: Mapping[str, Any], report: Progress) -> Manifest:
    source, files = _hashed(spec.checkpoint, folder, report)
    return Manifest(
        format_version=FORMAT_VERSION,
        source=source,
        architecture=spec.checkpoint.config.architecture(spec.checkpoint.parameters),
        precision=spec.precision.name,
        recipe=recipe,
        target=spec.precision.target,
        contract=spec.contract,
        files=files,
        certificate=None,
        tokenizer_probes=_probes(folder / TOKENIZER, spec.contract),
        fused_operators=FUSED_OPERATORS,
    )


def _probes(file: Path, contract: Contract) -> dict[str, tuple[int, ...]]:
    """Return texts and their token ids, which other versions of the tokenizers library must reproduce."""
    tokenizer = Tokenizer(file, contract.max_tokens, contract.unicode_form)
    return {text: tuple(ids.tolist()) for text, ids in zip(PROBES, tokenizer.encode(PROBES).ids, strict=True)}


def _hashed(checkpoint: Checkpoint, folder: Path, report: Progress) -> tuple[Source, dict[str, File]]:
    paths = [folder / name for name in _files_of(folder)]
    before = checkpoint.weight_bytes
    total = before + sum(path.stat().st_size for path in paths)
    report("hash", 0, total)
    source = checkpoint.source(lambda done: report("hash", done, total))
    files = {}
    for path in paths:
        file = describe_file(path)
        files[path.relative_to(folder).as_posix()] = file
        before += file.bytes
        report("hash", before, total)
    return source, files


def _files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _require_tokenizer_fits(checkpoint: Checkpoint, contract: Contract) -> None:
    found = Tokenizer(checkpoint.tokenizer, contract.max_tokens).vocabulary
    if found > checkpoint.config.vocabulary:
        raise CheckpointError(
            f"{checkpoint.tokenizer} has {found} entries, but the word embeddings have only "
            f"{checkpoint.config.vocabulary} rows. Use the tokenizer that belongs to the weights"
        )


def _require_room(folder: Path, spec: ArtifactSpec) -> None:
    table = spec.checkpoint.config.vocabulary * spec.checkpoint.config.hidden
    linears = spec.checkpoint.parameters - table
    precision = spec.precision
    needed = int(_ROOM_FACTOR * (table * precision.table_bytes + linears * precision.weight_bytes))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder.parent} has {free / 1e6:.0f} MB free, but the artifact requires {needed / 1e6:.0f} MB. "
            "Free disk space, or choose another folder"
        )


@contextmanager
def _named_when_done(out: Path, force: bool) -> Iterator[Path]:
    """Yield a temporary folder; rename it to `out` at the end, or remove it if an error is raised."""
    if out.exists() and not force:
        raise InputError(f"{out} exists. Pass a new folder, or --force to replace it")
    if out.exists() and not (out / MANIFEST).is_file():
        raise InputError(f"{out} is not an artifact, so --force does not replace it. Remove it first")
    partial = out.with_name(out.name + ".partial")
    _remove_leftover(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftover(partial: Path) -> None:
    """Remove the folder of an interrupted export; raise an error if it has files of another kind."""
    if not partial.exists():
        return
    names = set(_files_of(partial)) if partial.is_dir() else {partial.name}
    if foreign := names - _NAMES:
        raise InputError(
            f"{partial} contains {', '.join(sorted(foreign))}, which an export would delete. Move them"
        )
    shutil.rmtree(partial)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`. An existing `out` is removed after that, or restored on an error."""
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
