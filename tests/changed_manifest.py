"""Copies of the tiny artifact with another contract, for tests of what the runtime makes of it."""

import json
from pathlib import Path

from koe5_onnx.artifact import MANIFEST


def set_contract(artifact: Path, **changes: object) -> None:
    """Change fields of an artifact's contract."""
    manifest = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    manifest["contract"] |= changes
    (artifact / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
