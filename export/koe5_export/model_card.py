"""The similarity matrix that a sentence-transformers model card prints for its own example sentences.

It was computed by the model's authors, with their code on their machine: the one check of an artifact that
shares nothing with this project, not even the checkpoint.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from koe5_onnx import InputError

_ROUNDING_NOISE = 1e-5
"""What fp32 arithmetic on another machine may add to half a unit of the last printed digit."""
_INT8_TOLERANCE = 0.02
"""Two embeddings at cosine 0.9995 to their references move a similarity by at most about this."""


@dataclass(frozen=True)
class Card:
    """Sentences and their printed similarities."""

    sentences: Sequence[str]
    similarity: npt.NDArray[np.float64]
    """float64[n, n]."""
    decimals: int
    """Digits after the point that the card prints."""


def tolerance(precision: str, decimals: int) -> float:
    """How far an artifact of this precision may be from a card's printed similarities."""
    printed: float = 0.5 * 10**-decimals + _ROUNDING_NOISE
    return printed if precision == "fp32" else max(printed, _INT8_TOLERANCE)


def read_card(file: Path) -> Card:
    """Read a card: Markdown with a Python example, or JSON with `sentences` and `similarity`.

    Raises:
        InputError: The file cannot be read, or prints no such matrix.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}): expected a model card") from error
    if file.suffix == ".json":
        return _card_of_json(file, text)
    for block in re.findall(r"```(?:python|py)\s*\n(.*?)```", text, flags=re.DOTALL):
        sentences, printed = _sentences(block), _printed_matrix(block)
        if sentences and printed:
            return _card(file, sentences, printed)
    raise InputError(
        f"{file} prints no similarities: expected a python example with a list of sentences "
        "and, in a comment, a square matrix of numbers"
    )


def _card_of_json(file: Path, text: str) -> Card:
    try:
        data = json.loads(text, parse_float=str, parse_int=str)
        sentences, printed = data["sentences"], data["similarity"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: expected an object with sentences and similarity ({error!r})") from error
    decimals = {"decimals": int(data["similarity_decimals"])} if "similarity_decimals" in data else {}
    return _card(file, sentences, printed, **decimals)


def _sentences(block: str) -> list[str]:
    """The first list of at least two string literals in a piece of Python."""
    try:
        tree = ast.parse(block)
    except SyntaxError:
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.List) and len(node.elts) >= 2:
            values = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            texts = [value for value in values if isinstance(value, str)]
            if len(texts) == len(node.elts):
                return texts
    return []


def _printed_matrix(block: str) -> list[list[str]]:
    """The numbers, as printed, of the last [[...], [...]] in the comments of a piece of Python."""
    comments = "\n".join(re.findall(r"^\s*#(.*)$", block, flags=re.MULTILINE))
    matrices = re.findall(r"\[\s*\[.*?\]\s*\]", comments, flags=re.DOTALL)
    rows = re.findall(r"\[([^\[\]]+)\]", matrices[-1]) if matrices else []
    return [re.findall(r"-?\d+\.\d+|-?\d+\.?", row) for row in rows]


def _card(file: Path, sentences: Sequence[str], printed: Sequence[Sequence[str]], decimals: int = 0) -> Card:
    size = len(sentences)
    if [len(row) for row in printed] != [size] * size:
        shape = f"{len(printed)} rows of {sorted({len(row) for row in printed})} numbers"
        raise InputError(f"{file} has {size} sentences and prints {shape}: expected {size} x {size}")
    digits = max(len(number.partition(".")[2]) for row in printed for number in row)
    return Card(sentences, np.array(printed, dtype=np.float64), decimals or digits)
