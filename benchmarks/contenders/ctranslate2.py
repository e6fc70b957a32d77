"""CTranslate2 in int8, which removes padding itself. Pooling and normalization use numpy."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.contenders.engine import Array, Batched, Engine, Ids, Opening, Request

BATCHES: Sequence[int] = (256, 512, 1024, 2048)
"""Tokens with padding per batch."""


def load() -> Mapping[str, str]:
    """Import the library and return its versions."""
    import ctranslate2

    return {"ctranslate2": ctranslate2.__version__}


def open_engine(opening: Opening) -> Engine:
    """Open a converted model for int8 computation."""
    import ctranslate2

    encoder = ctranslate2.Encoder(
        str(opening.files / "model"), device="cpu", compute_type="int8", intra_threads=opening.threads
    )

    def run(ids: Ids) -> Array:
        hidden = np.array(encoder.forward_batch([row.tolist() for row in ids]).last_hidden_state)
        pooled = np.stack([some[: len(row)].mean(0) for some, row in zip(hidden, ids, strict=True)])
        return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), np.float32)

    return Batched(opening.checkpoint / "tokenizer.json", opening.batch or 1024, run)


def prepare(request: Request) -> None:
    """Convert a checkpoint ("ctranslate2-int8")."""
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory(dir=request.out) as name:
        folder = Path(name)
        _acceptable(request.source, folder)
        TransformersConverter(str(folder)).convert(str(request.out / "model"), quantization="int8")


def _acceptable(checkpoint: Path, folder: Path) -> None:
    """Copy the checkpoint with links to its weights, and add what the converter requires.

    The converter requires one vocabulary entry per row of the embedding table, and an old configuration key.
    """
    for file in checkpoint.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file.resolve())
        elif file.is_file():
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["position_embedding_type"] = "absolute"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    added = {word["id"] for word in tokenizer["added_tokens"] if word["id"] >= len(words)}
    missing = config["vocab_size"] - len(words) - len(added)
    words.extend([f"<unused{number}>", -100.0] for number in range(missing))
    if added:  # the new entries would take their ids
        raise ValueError(f"{checkpoint} has unsupported tokens {sorted(added)} after the vocabulary")
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
