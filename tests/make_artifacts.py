"""Export a checkpoint with random weights from a fixed seed, in several precisions, for a session of nox.

python tests/make_artifacts.py FOLDER SHAPE PRECISION...
"""

from __future__ import annotations

import sys
from pathlib import Path

from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import Size, write_seeded_checkpoint

sys.path.insert(0, str(Path(__file__).parent / "data"))
from make_tiny import SIZE

SHAPES = {"tiny": SIZE, "heads-of-64": Size(3, 128, 2, 256, 1200)}
"""Shapes of checkpoints: that of the tiny artifact, and one whose heads have 64 values, as in KoE5."""

folder, shape, *precisions = sys.argv[1:]
checkpoint = Path(folder, "checkpoint")
write_seeded_checkpoint(checkpoint, SHAPES[shape])
for precision in precisions:
    options = ExportOptions(precision=precision)
    export_checkpoint(Checkpoint.open(checkpoint), Path(folder, precision), options)
