"""Make the artifacts of these tests: python tests/gpu/make_artifacts.py FOLDER. Requires PyTorch."""

import sys
from pathlib import Path

from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.seeded import Size, write_seeded_checkpoint

folder = Path(sys.argv[1])
# Heads of 64, as KoE5's.
write_seeded_checkpoint(folder / "checkpoint", Size(3, 128, 2, 256, 1200))
for precision in ("fp16", "fp32"):
    export_checkpoint(
        Checkpoint.open(folder / "checkpoint"), folder / precision, ExportOptions(precision=precision)
    )
