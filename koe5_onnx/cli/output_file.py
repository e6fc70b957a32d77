"""Write the output files of the command line: .npy and .jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from koe5_onnx import Encoded, InputError


def suffix_of_output(path: Path) -> str | None:
    """Return the kind of an output: ".npy" or ".jsonl"; None for any other."""
    suffix = path.suffix.lower()
    return suffix if suffix in (".npy", ".jsonl") else None


def require_output(path: Path, input_name: str) -> None:
    """Check that `path` can be the output.

    Raises:
        InputError: The path is a folder or the input, or its parent folder does not exist.
    """
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of the output does not exist. Create it first")
    if path.is_dir():
        raise InputError(f"the output {path} is a folder. Pass a file name")
    if path.exists() and Path(input_name).exists() and path.samefile(input_name):
        raise InputError(f"the output {path} is the input, which would be overwritten. Pass another name")


def write(stream: BinaryIO, encoded: Encoded, suffix: str | None) -> None:
    """Write embeddings as a NumPy array (".npy") or as one JSON object per line (".jsonl")."""
    if suffix == ".npy":
        np.save(stream, encoded.embeddings, allow_pickle=False)
        return
    for index, embedding in enumerate(encoded.embeddings):
        record = {
            "index": index,
            # Nine significant digits restore the same float32; float() alone would print up to seventeen.
            "embedding": [float(f"{value:.9g}") for value in embedding.tolist()],
            "tokens": int(encoded.tokens[index]),
            "truncated": bool(encoded.truncated[index]),
        }
        stream.write(json.dumps(record).encode() + b"\n")
