"""Write golden-trained.npz: python tests/data/make_golden_trained.py CHECKPOINT (from `make trained`).

The file contains token ids and sentence-transformers' embeddings of the golden texts that have a prompt.
Write it again only after an intended change of the checkpoint, and say so in the commit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).parent


def main() -> None:
    """Embed each text separately and write the file."""
    encoder = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
    data = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))
    pairs = [pair for pair in zip(data["texts"], data["prompts"], strict=True) if pair[1] is not None]
    embeddings = [encoder.encode(text, prompt_name=prompt, show_progress_bar=False) for text, prompt in pairs]
    ids = [
        encoder.tokenizer(encoder.prompts[prompt] + text, truncation=True, max_length=512)["input_ids"]
        for text, prompt in pairs
    ]
    np.savez_compressed(
        HERE / "golden-trained.npz",
        ids=np.concatenate(ids).astype(np.int32),
        lengths=np.array([len(some) for some in ids], np.int32),
        embeddings=np.stack(embeddings),
    )


if __name__ == "__main__":
    main()
