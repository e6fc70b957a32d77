"""Write the artifact tests/data/tiny-int8 and its golden embeddings: python tests/data/make_tiny.py.

The artifact is committed so that the runtime can be tested without PyTorch. Write it again after a change of
the artifact format or of the int8 graph, and say so in the commit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from koe5_export import ExportOptions, export_checkpoint
from koe5_export.checkpoint import Checkpoint
from koe5_export.contract import read_contract
from koe5_export.reference import embed_reference
from koe5_export.seeded import Size, write_seeded_checkpoint
from koe5_export.texts import EDGES, SAMPLE_PASSAGES, SAMPLE_QUERIES, VERIFICATION

HERE = Path(__file__).parent
SIZE = Size(layers=2, hidden=64, heads=4, intermediate=128, vocabulary=1200)
PROMPTS = (None, "query", "passage")


def main() -> None:
    """Export a seeded checkpoint and embed the golden texts with sentence-transformers."""
    texts = [*VERIFICATION[::10], *EDGES, *SAMPLE_QUERIES, *SAMPLE_PASSAGES, "서울 " * 80, "길이 " * 600]
    prompts = [PROMPTS[turn % 3] for turn in range(len(texts))]
    with tempfile.TemporaryDirectory() as folder:
        write_seeded_checkpoint(Path(folder) / "tiny-seeded", SIZE)
        checkpoint = Checkpoint.open(Path(folder) / "tiny-seeded")
        export_checkpoint(checkpoint, HERE / "tiny-int8", ExportOptions(precision="int8", force=True))
        embeddings = embed_reference(checkpoint.folder, read_contract(checkpoint), texts, prompts)
    golden = json.dumps({"texts": texts, "prompts": prompts}, ensure_ascii=False, indent=1)
    (HERE / "golden.json").write_text(golden + "\n", encoding="utf-8")
    np.savez_compressed(HERE / "golden.npz", embeddings=embeddings)


if __name__ == "__main__":
    main()
