"""Changes to JSON files of a copied checkpoint or artifact."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from koe5_onnx.artifact import MANIFEST


@contextmanager
def edited(file: Path) -> Iterator[Any]:
    """Yield the data of a JSON file, {} if it is missing, and write it when the block ends."""
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    yield data
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data), encoding="utf-8")


def set_contract(artifact: Path, **changes: object) -> None:
    """Change fields of an artifact's contract."""
    with edited(artifact / MANIFEST) as manifest:
        manifest["contract"] |= changes
