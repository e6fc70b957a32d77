"""Edit JSON files of a copied checkpoint or artifact."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from koe5_onnx.artifact import MANIFEST


@contextmanager
def edited(file: Path) -> Iterator[Any]:
    """Yield the data of a JSON file, or {} if it is missing. Write the data back when the block ends."""
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    yield data
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data), encoding="utf-8")


def set_contract(artifact: Path, **changes: object) -> None:
    with edited(artifact / MANIFEST) as manifest:
        manifest["contract"] |= changes
