"""Prepare a contender's files. prepared.py runs this module in the environment that has the packages.

python -m benchmarks.contenders.make FAMILY KIND SOURCE OUT < texts.json
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

from benchmarks.contenders.engine import Request

_CARRIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")
"""Files that are copied next to a prepared model if the source has them, because libraries need them."""


def main() -> None:
    """Prepare the files that the command line names."""
    family, kind, source, out = sys.argv[1:]
    request = Request(kind, Path(source), Path(out), json.load(sys.stdin))
    importlib.import_module(f"benchmarks.contenders.{family}").prepare(request)
    for name in _CARRIED:
        if (request.source / name).is_file():
            shutil.copy(request.source / name, request.out)


if __name__ == "__main__":
    main()
