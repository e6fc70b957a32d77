"""The export line: checkpoint -> contract -> graph -> verify -> publish.

Everything is written into OUT.partial; only an artifact that passed its gate gets the name OUT.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from koe5_export.calibrate import Calibration
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.graph import write_encoder
from koe5_export.linear import PRECISIONS
from koe5_export.rounding import DAMPING
from koe5_export.smooth import STRENGTH, SmoothLayer, plain, smooth
from koe5_export.texts import CALIBRATION, with_prompts
from koe5_export.verify import GATES, certify, expect
from koe5_export.weights import Layer, Norm
from koe5_export.writer import GraphWriter
from koe5_onnx import Artifact, CheckpointError, Contract, InputError, Manifest, Tokenizer
from koe5_onnx.artifact import FORMAT_VERSION, GRAPH, MANIFEST, TOKENIZER, WEIGHTS, describe_file

Progress = Callable[[str, int, int], None]
"""Called with the step's name, the parts done and the parts in all."""

_BYTES_PER_WEIGHT = {"fp32": 4.0, "int8": 1.0}
_ROOM_FACTOR = 1.1


@dataclass(frozen=True)
class ExportOptions:
    """What an export may be told."""

    precision: str = "fp32"
    calibration: Sequence[str] = CALIBRATION
    """Texts that int8 is fitted to; half get the query prompt, half the passage prompt."""
    verification: Sequence[str] = ()
    """Texts to measure on beside the built-in ones."""
    gate: Mapping[str, float] = field(default_factory=dict)
    """Bounds stricter than the precision's own, by their names in `Gate`."""
    like: str | None = None
    """Hub id whose contract a local copy shares."""
    force: bool = False
    """Replace an existing artifact, once the new one is proved."""


def export_checkpoint(
    checkpoint: Checkpoint, out: Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> Artifact:
    """Export a checkpoint, measure it against PyTorch, and publish it as the folder `out`.

    Args:
        checkpoint: The opened checkpoint.
        out: Folder of the artifact.
        options: See ExportOptions.
        progress: Told how far the steps are.

    Returns:
        The published artifact; its manifest holds the certificate.

    Raises:
        InputError: `out` exists, an option is out of range, or the disk has no room.
        CheckpointError: The checkpoint cannot be exported.
        FidelityError: The artifact misses its gate; nothing is left behind.
        MissingDependencyError: torch or transformers is not installed.
    """
    options = options or ExportOptions()
    report = progress or _silent
    if options.precision not in PRECISIONS:
        raise InputError(f"precision is {options.precision!r}: expected one of {', '.join(PRECISIONS)}")
    gate = GATES[options.precision].tightened(options.gate)
    contract = read_contract(checkpoint, options.like)
    _require_tokenizer_fits(checkpoint, contract)
    with _publishing(out, options.force) as folder:
        _require_room(folder, checkpoint, options.precision)
        report("reference", 0, 1)
        expected = expect(checkpoint, contract, options.verification)
        manifest = _write(checkpoint, contract, options, folder, report)
        report("measure", 0, 1)
        certificate = certify(Artifact(folder, manifest), expected, gate)
        manifest = replace(manifest, certificate=certificate)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        report("measure", 1, 1)
    return Artifact(out, manifest)


def _silent(step: str, done: int, total: int) -> None:
    """Report progress to nobody."""


def _write(
    checkpoint: Checkpoint, contract: Contract, options: ExportOptions, folder: Path, report: Progress
) -> Manifest:
    """Write graph, weights, tokenizer and a manifest without certificate."""
    smoothed = options.precision != "fp32"
    with GraphWriter(folder / GRAPH, folder / WEIGHTS) as writer:
        layers = _smoothed(checkpoint, contract, options.calibration) if smoothed else _plain(checkpoint)
        counted = _counted(layers, checkpoint.config.layers, report)
        write_encoder(writer, checkpoint, contract, counted, PRECISIONS[options.precision])
    shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        source=checkpoint.source(),
        architecture=checkpoint.config.architecture,
        precision=options.precision,
        recipe=_recipe(options) if smoothed else {},
        contract=contract,
        files={name: describe_file(folder / name) for name in (GRAPH, WEIGHTS, TOKENIZER)},
        certificate=None,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _recipe(options: ExportOptions) -> dict[str, Any]:
    """How int8 was reached, for the manifest."""
    texts = "\n".join(options.calibration).encode()
    return {
        "weights": "int8 a column, rounded with error compensation",
        "activations": "uint8 a token",
        "word_embeddings": "int8 a row",
        "smoothing_strength": STRENGTH,
        "rounding_damping": DAMPING,
        "calibration_texts": len(options.calibration),
        "calibration_sha256": hashlib.sha256(texts).hexdigest(),
    }


def _layers(checkpoint: Checkpoint) -> Iterator[tuple[Norm, Layer]]:
    """Each layer with the norm in front of it, read as it is asked for."""
    norm = checkpoint.embedding_norm()
    for number in range(checkpoint.config.layers):
        layer = checkpoint.layer(number)
        yield norm, layer
        norm = layer.output_norm


def _plain(checkpoint: Checkpoint) -> Iterator[SmoothLayer]:
    return (plain(norm, layer) for norm, layer in _layers(checkpoint))


def _smoothed(checkpoint: Checkpoint, contract: Contract, texts: Sequence[str]) -> Iterator[SmoothLayer]:
    """The layers smoothed by what the calibration texts do in them, each read once."""
    tokenizer = Tokenizer(checkpoint.tokenizer, contract.max_tokens)
    calibration = Calibration(checkpoint, tokenizer.encode(with_prompts(texts, contract)).ids)
    for norm, layer in _layers(checkpoint):
        yield smooth(norm, layer, calibration.advance(norm, layer))


def _counted(layers: Iterator[SmoothLayer], total: int, report: Progress) -> Iterator[SmoothLayer]:
    report("layers", 0, total)
    for done, layer in enumerate(layers, 1):
        yield layer
        report("layers", done, total)


def _require_tokenizer_fits(checkpoint: Checkpoint, contract: Contract) -> None:
    found = Tokenizer(checkpoint.tokenizer, contract.max_tokens).vocabulary
    if found > checkpoint.config.vocabulary:
        raise CheckpointError(
            f"{checkpoint.tokenizer} has {found} entries, the word embeddings have "
            f"{checkpoint.config.vocabulary}: tokenizer and weights do not belong together"
        )


def _require_room(folder: Path, checkpoint: Checkpoint, precision: str) -> None:
    needed = int(checkpoint.config.parameters * _BYTES_PER_WEIGHT[precision] * _ROOM_FACTOR)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder.parent} has {free / 1e6:.0f} MB free, the artifact needs {needed / 1e6:.0f} MB"
        )


@contextmanager
def _publishing(out: Path, force: bool) -> Iterator[Path]:
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
    if foreign := names - {GRAPH, WEIGHTS, TOKENIZER, MANIFEST}:
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
