"""Prepare the contenders' files once per checkpoint.

Files are in FOLDER/KEY/KIND, where KEY is the beginning of the hash of the checkpoint's weights. A folder
gets its final name when it is complete. Each kind of files is prepared in its own process. A benchmark runs
only one of these processes at a time, because each needs the memory of a large encoder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from koe5_export.checkpoint import Checkpoint
from koe5_export.texts import CALIBRATION

from benchmarks.contenders.process import environment_of
from benchmarks.contenders.registry import OWN, Contender, python_of
from koe5_onnx import InputError, Koe5Error
from koe5_onnx.files import atomic_path

_LINES_A_PASSAGE = 12
_CALIBRATED = 16
"""Number of short calibration texts, and number of long ones."""


class PreparationError(Koe5Error, RuntimeError):
    """A contender's files could not be prepared."""


@dataclass(frozen=True)
class Recipe:
    """How to prepare one kind of files."""

    family: str
    """Name of the engine module whose `prepare` makes the files."""
    source: str | None = None
    """Kind of the files that are converted; None converts the checkpoint."""


RECIPES: Mapping[str, Recipe] = {
    "onnx": Recipe("onnxruntime"),
    "ort-dynamic-int8": Recipe("onnxruntime", "onnx"),
    "ort-fp16": Recipe("onnxruntime", "onnx"),
    "openvino-fp32": Recipe("openvino", "onnx"),
    "openvino-int8": Recipe("openvino", "openvino-fp32"),
    "ctranslate2-int8": Recipe("ctranslate2"),
}


@dataclass(frozen=True)
class Store:
    """Prepared files of one checkpoint.

    Args:
        checkpoint: Folder of the checkpoint.
        folder: Folder for the files of all checkpoints.
        artifacts: Folders of existing artifacts by precision; other artifacts are exported.
        environment: Name of the environment (see registry.py) in which other libraries prepare files.
    """

    checkpoint: Path
    folder: Path
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    environment: str = "contenders"

    @property
    def own(self) -> Path:
        """The folder of this checkpoint's files.

        Raises:
            CheckpointError: The checkpoint is missing.
        """
        return self.folder / Checkpoint.open(str(self.checkpoint)).source().weights_sha256[:12]

    def files_of(self, contender: Contender) -> Path:
        """Return the folder that a contender opens. Prepare it if it is missing.

        Raises:
            PreparationError: The folder could not be prepared.
            InputError: The artifact that was passed does not exist, or a Python environment is missing.
        """
        where, _, kind = contender.files.partition(" ")
        if where == "checkpoint":
            return self.checkpoint
        return self._artifact(kind) if where == "artifact" else self._prepared(kind)

    def _artifact(self, precision: str) -> Path:
        if precision in self.artifacts:
            given = self.artifacts[precision]
            if not (given / "manifest.json").is_file():
                raise InputError(f"{given} is not an artifact. Pass one of precision {precision}")
            return given
        out = self.own / f"koe5-{precision}"
        if not out.is_dir():
            command: list[str | Path] = ["-m", "koe5_onnx.cli", "export", self.checkpoint, out]
            _run(out, OWN, [*command, "--precision", precision], "")
        return out

    def _prepared(self, kind: str) -> Path:
        out = self.own / kind
        if out.is_dir():
            return out
        recipe = RECIPES[kind]
        source = self.checkpoint if recipe.source is None else self._prepared(recipe.source)
        make = ("-m", "benchmarks.contenders.make", recipe.family, kind)
        with atomic_path(out) as partial:
            partial.mkdir(parents=True)
            _run(out, self.environment, [*make, source, partial], json.dumps(calibration_texts()))
        return out


def calibration_texts() -> list[str]:
    """Return texts with their prompts: the first ones as queries, and groups of the next ones as passages."""
    queries = [f"query: {line}" for line in CALIBRATION[:_CALIBRATED]]
    rest = CALIBRATION[_CALIBRATED:]
    starts = range(0, _CALIBRATED * _LINES_A_PASSAGE, _LINES_A_PASSAGE)
    return queries + [f"passage: {' '.join(rest[start : start + _LINES_A_PASSAGE])}" for start in starts]


def _run(out: Path, environment: str, command: Sequence[str | Path], standard_input: str) -> None:
    print(f"making {out}", file=sys.stderr)
    done = subprocess.run(
        [python_of(environment), *command],
        input=standard_input,
        env=environment_of(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PreparationError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}")
